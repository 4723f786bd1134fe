"""The workflows of the public CI run what is there. `make lint` holds them to their schema."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):(?!=)", MAKEFILE, re.M))
#: What is no target of ours: it installs the tools, or publishes what targets have built.
OTHERS = {"cargo", "cd", "cp", "gh", "grep", "mkdir", "pip", "python", "rustup", ".venv/bin/python"}


def jobs(path: Path) -> dict[str, dict[str, object]]:
    yaml = pytest.importorskip("ruamel.yaml", reason="comes with check-jsonschema")
    loaded: dict[str, dict[str, object]] = yaml.YAML(typ="safe").load(path)["jobs"]
    return loaded


def commands(path: Path) -> list[str]:
    """Each command of each step, once for each entry of the matrix."""
    found = []
    for job in jobs(path).values():
        matrix = job.get("strategy", {}).get("matrix", {})
        entries = matrix.get("include") or [
            {name: value} for name, values in matrix.items() for value in values
        ]
        for step in job["steps"]:
            lines = step.get("run", "").replace("\\\n", " ").splitlines()
            for entry in entries or [{}]:
                for line in lines:
                    for name, value in entry.items():
                        line = line.replace("${{ matrix." + name + " }}", str(value))
                    found += [part.strip() for part in line.split(" && ")]
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_command_of_a_workflow_is_a_target_or_a_tool_that_is_known(path: Path) -> None:
    asked = commands(path)
    assert asked
    for command in asked:
        program, _, rest = command.partition(" ")
        if program == "make":
            assert rest in TARGETS, command
        else:
            assert program in OTHERS, command
        assert "matrix." not in command


def test_the_workflows_run_what_tests_and_builds_there_is() -> None:
    made = {
        command.partition(" ")[2]
        for path in WORKFLOWS
        for command in commands(path)
        if command.startswith("make ")
    }
    assert {"dev", "lint", "dist", "site"} <= made
    # those that `make test` leaves out
    assert {target for target in TARGETS if target.startswith("test-")} <= made


def test_jobs_wait_for_jobs_that_are_there() -> None:
    for path in WORKFLOWS:
        all_jobs = jobs(path)
        for name, job in all_jobs.items():
            needs = job.get("needs", [])
            for needed in [needs] if isinstance(needs, str) else needs:
                assert needed in all_jobs, (path.name, name, needed)
