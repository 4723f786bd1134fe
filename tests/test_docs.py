"""What the documents say is so: examples run, figures come from results, names and links exist."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import _docs_training
import sparse_retrieval as sr
from _results import load
from sparse_retrieval.cli import _errors

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "examples" / "data" / "README.md"]
)


@pytest.fixture(scope="module")
def render_docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "render_docs", ROOT / "benches" / "render_docs.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", read("README.md"), re.DOTALL)
    assert len(example.strip().splitlines()) <= 10
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(example, names)
    assert names["ids"].shape == names["scores"].shape == (3, 10)
    assert names["ids"][:, 0].tolist() == [0, 1, 2], "each query is an item"
    sr.SparseIndex.open(tmp_path / "items.sridx").verify()


def test_the_examples_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", read("docs/guide.md"), re.DOTALL)
    assert len(examples) >= 2
    names: dict[str, object] = {}
    for example in examples:
        exec(example, names)
    assert names["ids"][:, 0].tolist() == [10_000, 10_001, 10_002], "each query is an item"


@pytest.mark.usefixtures("one_thread")
def test_the_examples_of_training_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = np.random.default_rng(0).normal(size=(1_064, 384)).astype(np.float32)
    pq.write_table(pa.table({"embedding": rows.tolist()}), "embeddings.parquet")
    examples = re.findall(r"```python\n(.*?)```", read("docs/training.md"), re.DOTALL)
    assert len(examples) == 2
    # as written but for the width of the code: 4,096 latents would take minutes
    examples = [example.replace("hidden_dim=4096", "hidden_dim=256") for example in examples]
    names: dict[str, object] = {"x": rows[:64]}
    exec(examples[0], names)
    assert len(names["codes"]) == 64
    assert names["history"].loss[-1] < names["history"].loss[0]
    assert (
        sr.CompresSAE.from_pretrained("model").dictionary().n_atoms == names["dictionary"].n_atoms
    )
    exec(examples[1], names)
    assert names["history"].evaluations[0].step == 50
    assert (tmp_path / "run" / "checkpoint.pt").is_file()
    assert list((tmp_path / "logs").iterdir())


def test_every_figure_is_the_one_of_its_result_file(render_docs: ModuleType) -> None:
    assert render_docs.out_of_step() == [], "run `make docs`"


def test_a_stale_or_broken_block_is_found(render_docs: ModuleType) -> None:
    block = "<!-- begin: recall-curve -->\n{}<!-- end: recall-curve -->\n"
    stale = block.format("| 1 | 2 |\n")
    renewed = render_docs.rendered(stale)
    assert renewed != stale
    assert render_docs.rendered(renewed) == renewed
    with pytest.raises(ValueError, match="no block is called 'nonsense'"):
        render_docs.rendered(stale.replace("recall-curve", "nonsense"))
    with pytest.raises(ValueError, match="1 markers make 0 blocks"):
        render_docs.rendered("<!-- begin: recall-curve -->\n")


def test_a_gain_is_told_from_what_changes_with_the_seed() -> None:
    verdict = _docs_training.ablation_verdict
    assert verdict([0.05], 0.001) == "one seed"
    assert verdict([0.007, 0.0072], 0.001) == "gains"
    assert verdict([-0.008, -0.007], 0.001) == "loses"
    assert verdict([0.002, 0.0021], 0.003) == "within the spread"
    assert verdict([0.004, -0.001], 0.005) == "within the spread"


def test_a_default_of_training_is_what_gained_beyond_the_spread(render_docs: ModuleType) -> None:
    results = load("training_ablations")
    noise = _docs_training.ablation_noise(results)
    gains = _docs_training._gains(results, results["trials"]["cooldown"])
    assert _docs_training.ablation_verdict(gains, noise) == "gains"
    assert sr.TrainConfig().schedule == "cooldown"
    assert results["training"]["schedule"] == "constant", "what the others are compared with"


def test_the_result_file_has_the_order_that_theory_gives(render_docs: ModuleType) -> None:
    results = load("recall_modes")
    recall = {(row["mode"], row["value_bits"]): row["recall"] for row in results["modes"]}
    for bits in (32, 16, 8):
        assert recall["dense", bits] > recall["reconstructed", bits] > recall["sparse", bits]
    for mode in ("dense", "reconstructed", "sparse"):
        assert abs(recall[mode, 32] - recall[mode, 8]) < 0.01
    assert results["data"]["queries"] == 1000
    assert {"cpu", "cores", "date", "versions"} <= set(results["machine"])


def test_no_rival_is_above_our_curve_between_32_and_130_bytes(render_docs: ModuleType) -> None:
    ours = render_docs._our_rows()
    assert {row["seeds"] for row in ours} == {3}
    compared = 0
    for begin in render_docs._RIVALS.values():
        for row in render_docs._per_bytes_rows(*begin):
            if 32 <= row["bytes"] <= 130:
                best = max(own["recall"] for own in ours if own["bytes"] <= row["bytes"])
                assert best > row["recall"], row
                compared += 1
    assert compared >= 10


def test_links_lead_to_files() -> None:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_the_guide_lists_the_public_names() -> None:
    table = read("docs/guide.md").partition("<!-- names:")[2]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(listed) == sorted(sr.__all__)


def test_the_exit_codes_are_those_of_the_program() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", read("docs/cli.md"), re.MULTILINE)}
    codes = {
        _errors.OK,
        _errors.FAILED,
        _errors.USAGE,
        _errors.INTERRUPTED,
        _errors.BROKEN_PIPE,
    }
    assert listed == codes


def test_every_subcommand_is_documented() -> None:
    from sparse_retrieval.cli._app import app

    text = read("docs/cli.md")
    names = [command.name for command in app.registered_commands]
    assert len(names) == 13
    for name in names:
        assert re.search(rf"^\| `{name}\b", text, re.MULTILINE), name


def test_the_commands_of_the_readme_are_targets_with_a_line_of_help() -> None:
    makefile = read("Makefile")
    for target in ("help", "dev", "test", "lint", "bench", "demo", "docs"):
        assert re.search(rf"^{target}:.* ## \S", makefile, re.MULTILINE), target
    for command in re.findall(r"(?:^|`)make (\w+)", read("README.md"), re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, re.MULTILINE), command


def test_ci_runs_the_test_command_of_the_readme() -> None:
    path = ROOT / ".ci" / "run"
    assert os.access(path, os.X_OK)
    assert path.read_text(encoding="utf-8").rstrip().endswith("exec make test")
    assert "\nmake test\n" in read("README.md")


def test_the_version_is_one() -> None:
    (cargo,) = re.findall(r'^version = "(.+)"$', read("Cargo.toml"), re.MULTILINE)
    assert sr.__version__ == cargo
    assert f"## {cargo}" in read("CHANGELOG.md")


def test_the_same_points_give_the_same_svg(tmp_path: Path) -> None:
    from sparse_retrieval.cli._curves import Point
    from sparse_retrieval.cli._picture import draw

    rng = np.random.default_rng(0)
    points = [Point("a", f"k={k}", 4.0 * k, float(rng.random())) for k in (2, 4, 8)]
    for name in ("one.svg", "two.svg"):
        draw(points, tmp_path / name, title="t", description="digest of the points")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert "digest of the points" in (tmp_path / "one.svg").read_text(encoding="utf-8")
