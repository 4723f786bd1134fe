"""The examples of the pages on neighbours and on interpretation run as they stand."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["integrations", "interpretability"])
def test_the_examples_of_a_page_run_one_after_the_other(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("embeddings_i8.npy", "names.txt"):
        shutil.copy(ROOT / "examples" / "data" / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) == {"integrations": 10, "interpretability": 1}[page]
    names: dict[str, object] = {}
    for example in examples:
        exec(example, names)


def test_every_extra_has_a_program_that_uses_it() -> None:
    pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    import check_extras

    assert set(check_extras.extras()) == set(check_extras.PROGRAMS)
