"""Folders, cards, and the real client against a hub of our own on the loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError

import sparse_retrieval as sr
from hub_server import Hub, environment, hub_server
from sparse_retrieval.integrations import hub


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.standard_normal((900, 6)) @ rng.standard_normal((6, 16))).astype(np.float32)


@pytest.fixture(scope="module")
def dictionary(x: np.ndarray) -> sr.Dictionary:
    return sr.Dictionary.fit(x, n_atoms=32, k=4, rounds=2)


@pytest.fixture(scope="module")
def model() -> sr.CompresSAE:
    return sr.CompresSAE(16, 32, k=4, seed=1)


def same(one: sr.Dictionary, other: sr.Dictionary) -> bool:
    if (one.mean is None) != (other.mean is None):
        return False
    return np.array_equal(one.atoms, other.atoms) and (
        one.mean is None or np.array_equal(one.mean, other.mean)
    )


def test_a_dictionary_comes_back_from_its_folder(dictionary: sr.Dictionary, tmp_path: Path) -> None:
    for number, made in enumerate([dictionary, sr.Dictionary(np.eye(3), mean=np.ones(3))]):
        folder = tmp_path / "new" / str(number)
        made.save_pretrained(folder)
        assert sorted(p.name for p in folder.iterdir()) == ["config.json", "dictionary.safetensors"]
        assert same(sr.Dictionary.from_pretrained(folder), made)
        assert same(sr.Dictionary.from_pretrained(str(folder)), made)


def test_a_models_folder_gives_its_atoms_without_torch(
    model: sr.CompresSAE, tmp_path: Path, run_python: Any
) -> None:
    model.save_pretrained(tmp_path)
    assert same(sr.Dictionary.from_pretrained(tmp_path), model.dictionary())
    done = run_python(
        "import sys, sparse_retrieval as sr\n"
        "print(sr.Dictionary.from_pretrained(sys.argv[1]), 'torch' in sys.modules)",
        str(tmp_path),
    )
    assert done.stdout == "Dictionary(32 atoms of width 16) False\n", done.stderr


def test_a_card_holds_the_measured_table_and_is_read_by_the_hubs_own_parser(
    dictionary: sr.Dictionary, model: sr.CompresSAE, x: np.ndarray, tmp_path: Path
) -> None:
    for made, n_rows in ((dictionary, 2), (model, 8)):
        measured = hub.measure(made, x[:800], x[800:], n=10)
        assert len(measured) == n_rows
        made.save_pretrained(tmp_path, measured=measured)
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.library_name == "sparse_retrieval"
        assert type(made).__name__.lower() in card.data.tags
        for row in measured:
            expected = (
                f"| {row.codes} | {row.mode} | {row.nonzeros} | {row.value_bits:g} | "
                f"{row.bytes_per_item:.0f} | {row.recall:.3f} |"
            )
            assert expected in card.text
        assert "800 items, 100 queries" in card.text


def test_what_is_measured_is_the_recall_of_the_index(
    dictionary: sr.Dictionary, x: np.ndarray
) -> None:
    items, queries = x[:800], x[800:]
    (row,) = hub.measure(dictionary, items, queries, n=10, k=4, value_bits=[32])
    decoded = dictionary.decode(dictionary.encode(items, k=4)).astype(np.float64)
    decoded /= np.linalg.norm(decoded, axis=1, keepdims=True)
    unit = items / np.linalg.norm(items, axis=1, keepdims=True)
    found = np.argsort(-queries @ decoded.T, axis=1)[:, :10]
    true = np.argsort(-queries @ unit.T, axis=1)[:, :10]
    shares = [len(np.intersect1d(f, t)) / 10 for f, t in zip(found, true, strict=True)]
    assert row.recall == pytest.approx(np.mean(shares), abs=0.002)  # ties in float32
    assert (row.codes, row.mode, row.nonzeros, row.n) == ("pursuit", "dense", 4, 10)
    assert (row.items, row.queries) == (800, 100)


def test_a_card_without_measurements_says_so_and_its_example_runs(
    dictionary: sr.Dictionary, model: sr.CompresSAE, x: np.ndarray, tmp_path: Path
) -> None:
    for made in (dictionary, model):
        made.save_pretrained(tmp_path / type(made).__name__, measured=[])
        text = (tmp_path / type(made).__name__ / "README.md").read_text()
        assert "Nothing was measured" in text
        code = text.partition("```python\n")[2].partition("```")[0]
        code = code.replace("owner/name", str(tmp_path / type(made).__name__))
        names: dict[str, Any] = {"x": x, "queries": x[:3]}
        exec(code, names)
        assert names["ids"].shape == (3, 10)


@pytest.mark.parametrize(
    ("damage", "error", "match"),
    [
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "config.json does not exist"),
        (lambda f: (f / "config.json").write_text("{"), ValueError, "no readable JSON"),
        (lambda f: (f / "config.json").write_text("[]"), ValueError, "does not describe"),
        (lambda f: edit(f, version=2), ValueError, "version 2, this release reads 1"),
        (lambda f: edit(f, config={"n_atoms": 3}), ValueError, "from different saves"),
        (lambda f: edit(f, format="sparse_retrieval.CompresSAE"), FileNotFoundError, "model.safe"),
        (lambda f: (f / "dictionary.safetensors").write_bytes(b"x"), ValueError, "safetensors"),
    ],
)
def test_a_damaged_folder_is_refused(
    dictionary: sr.Dictionary,
    tmp_path: Path,
    damage: Any,
    error: type[Exception],
    match: str,
) -> None:
    dictionary.save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=match):
        sr.Dictionary.from_pretrained(tmp_path)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_paths_are_never_asked_of_the_hub(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", str(tmp_path / "absent"), "absent", Path("some/name")):
        with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
            sr.Dictionary.from_pretrained(path)
        with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
            sr.CompresSAE.from_pretrained(path)


def test_a_snapshot_in_the_cache_is_read_without_a_network(
    dictionary: sr.Dictionary, tmp_path: Path
) -> None:
    snapshot = tmp_path / "models--owner--name" / "snapshots" / ("0" * 40)
    dictionary.save_pretrained(snapshot)
    refs = tmp_path / "models--owner--name" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    options = {"cache_dir": tmp_path, "local_files_only": True}
    assert same(sr.Dictionary.from_pretrained("owner/name", **options), dictionary)
    with pytest.raises(LocalEntryNotFoundError):
        sr.Dictionary.from_pretrained("owner/other", **options)


def test_without_the_hub_library_a_name_says_what_to_install(run_python: Any) -> None:
    done = run_python(
        "import sys; sys.modules['huggingface_hub'] = None\n"
        "import sparse_retrieval as sr, numpy as np\n"
        "for call in (lambda: sr.Dictionary.from_pretrained('owner/name'),\n"
        "             lambda: sr.Dictionary(np.eye(2)).push_to_hub('owner/name')):\n"
        "    try:\n        call()\n    except ImportError as error:\n        print(error)\n"
    )
    assert done.stdout.count("pip install 'sparse_retrieval[hub]'") == 2, done.stderr
    assert "owner/name is no folder here" in done.stdout


@pytest.fixture
def endpoint() -> Iterator[str]:
    with hub_server() as address:
        yield address


PUSH_AND_PULL = """
import sys
import numpy as np, sparse_retrieval as sr
from sparse_retrieval.integrations import hub
what, folder = sys.argv[1:]
kind = getattr(sr, what)
made = kind.from_pretrained(folder)
x = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)
row = hub.measure(made, x[:200], x[200:], n=10, value_bits=[32])
print(made.push_to_hub("owner/" + what, measured=row, token="hf_x", commit_message="first"))
back = kind.from_pretrained("owner/" + what, token="hf_x")
atoms = (lambda m: m.atoms if what == "Dictionary" else m.dictionary().atoms)
print(np.array_equal(atoms(back), atoms(made)), back)
"""


@pytest.mark.parametrize("what", ["Dictionary", "CompresSAE"])
def test_the_real_client_pushes_and_pulls_the_same_bits(
    what: str,
    dictionary: sr.Dictionary,
    model: sr.CompresSAE,
    endpoint: str,
    tmp_path: Path,
    run_python: Any,
) -> None:
    made = dictionary if what == "Dictionary" else model
    made.save_pretrained(tmp_path / "made")
    env = environment(endpoint, tmp_path)
    done = run_python(PUSH_AND_PULL, what, str(tmp_path / "made"), env=env)
    assert done.returncode == 0, done.stderr
    address, answer = done.stdout.splitlines()[:2]
    assert address == f"{endpoint}/owner/{what}/commit/{'1' * 40}"
    assert answer.startswith("True " + what)
    assert Hub.commits == [(f"owner/{what}", "first")]
    weights = "dictionary.safetensors" if what == "Dictionary" else "model.safetensors"
    files = Hub.repositories[f"owner/{what}"]
    assert {"README.md", "config.json", weights} <= set(files)
    assert files[weights] == (tmp_path / "made" / weights).read_bytes()
    assert f'from_pretrained("owner/{what}")' in files["README.md"].decode()
    assert "Recall@10" in files["README.md"].decode()


def test_a_model_comes_back_with_its_card(model: sr.CompresSAE, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path, measured=[])
    back = sr.CompresSAE.from_pretrained(tmp_path)
    assert all(
        torch.equal(one, other)
        for one, other in zip(model.parameters(), back.parameters(), strict=True)
    )


def test_measuring_refuses_too_few_items_and_what_is_no_model(
    dictionary: sr.Dictionary, x: np.ndarray
) -> None:
    with pytest.raises(ValueError, match="recall@100 needs at least"):
        hub.measure(dictionary, x[:50], x)
    with pytest.raises(TypeError, match="expected a CompresSAE"):
        hub.measure("model", x, x)
    with pytest.raises(TypeError, match="expected a CompresSAE"):
        hub.model_card(3)
