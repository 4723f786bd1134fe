"""The pages of the site: their examples run, and the feature table is held to what it links to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
#: test_docs.py runs those of the guide; the one of training trains a model of full size, for
#: minutes: test_training_trainer.py makes the same calls on a small one
#: integrations/test_documents.py runs those of the neighbours
ELSEWHERE = {"guide.md", "training.md", "integrations.md", "interpretability.md"}
PAGES = [page for page in sorted(DOCS.glob("*.md")) if page.name not in ELSEWHERE]


def examples(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if examples(page)], ids=lambda page: page.stem
)
def test_the_examples_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="needs the training extra")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "example"}
    for example in examples(page):
        exec(compile(example, page.name, "exec"), names)


def feature_rows() -> list[list[str]]:
    text = (DOCS / "features.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows]


def test_every_cell_of_ours_leads_to_a_page_or_a_test_and_to_a_heading_that_is_there():
    header, _, *rows = feature_rows()
    assert header[1] == "sparse_retrieval"
    assert len(rows) >= 30
    for row in rows:
        assert len(row) == len(header), row
        (link,) = re.findall(r"\]\(([^)]+)\)", row[1])
        path, _, anchor = link.partition("#")
        target = DOCS / path
        assert target.is_file(), row
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
            slugs = [re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, (row, slugs)


def test_cells_of_the_others_lead_to_their_own_pages():
    _, _, *rows = feature_rows()
    own = (
        "https://github.com/facebookresearch/faiss",
        "https://github.com/RyanCodrai/turbovec",
        "https://sbert.net/",
        ("https://qdrant.tech/", "https://docs.rs/qdrant-client/"),
        "https://github.com/recombee/CompresSAE",
    )
    linked = 0
    for row in rows:
        for cell, address in zip(row[2:], own, strict=True):
            for link in re.findall(r"\]\(([^)]+)\)", cell):
                assert link.startswith(address), (row[0], link)
                linked += 1
    assert linked >= 40


def test_the_site_holds_every_page_that_is_there():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    named = set(re.findall(r"([\w/]+\.md)$", nav, re.M))
    hooks = (ROOT / "tools" / "docs_hooks.py").read_text(encoding="utf-8")
    made = set(re.findall(r'"(\w+\.md)"', hooks))
    there = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert there - named == set(), "add it to nav in mkdocs.yml"
    assert named - there - made == set()
