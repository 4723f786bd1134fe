"""The example from text to answers, on the MiniLM that a package ships."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("text_search", ROOT / "examples/text_search.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_texts_are_embedded_encoded_indexed_and_found(example: ModuleType, tmp_path: Path) -> None:
    index, recall = example.build(tmp_path, limit=150)
    assert len(index) == 150
    assert index.bytes_per_item < 50
    assert recall > 0.5
    (name, score, text), *_ = example.answer(tmp_path, index.metadata["texts"][index.ids[7]])
    assert (name, text) == (index.ids[7], index.metadata["texts"][name])
    assert score > 0.7
    example.add(tmp_path, {"new": "A recipe for bread with walnuts and honey."})
    assert example.answer(tmp_path, "how is walnut bread baked?", 1)[0][0] == "new"


def test_the_model_that_the_package_ships_embeds_as_the_sample_was_embedded(
    example: ModuleType,
) -> None:
    """The sample holds descriptions of Debian packages; names alone are near them on average."""
    from sentence_transformers import SentenceTransformer

    folder = ROOT / "examples" / "data"
    names = (folder / "names.txt").read_text().splitlines()[:60]
    x = (np.load(folder / "embeddings_i8.npy") * np.load(folder / "scales_f32.npy").reshape(-1, 1))[
        :60
    ]
    model = SentenceTransformer(str(example.model_folder()), device="cpu")
    found = model.encode(names, show_progress_bar=False) @ x.T.astype(np.float32)
    own, others = np.diag(found).mean(), (found.sum() - np.trace(found)) / (60 * 59)
    assert own > others + 0.15
