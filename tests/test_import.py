"""What importing costs and pulls in, what is public, and what the docs show."""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil
import re
from pathlib import Path

import pytest

import sparse_retrieval as sr

ROOT = Path(__file__).parent.parent


def test_importing_needs_numpy_alone(run_python):
    done = run_python(
        "import sys, json, numpy; before = set(sys.modules); import sparse_retrieval;"
        "tops = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "print(json.dumps(sorted(tops - set(sys.stdlib_module_names))))"
    )
    assert done.returncode == 0, done.stderr
    # numpy loads some parts of itself only when they are asked for
    assert set(json.loads(done.stdout)) <= {"numpy", "sparse_retrieval"}


BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""


@pytest.mark.parametrize("name", ["CompresSAE", "Trainer", "train", "TrainConfig", "History"])
def test_without_torch_its_names_say_which_extra_to_install(run_python, name):
    script = BLOCKED.format(blocked={"torch"}) + (
        f"import sparse_retrieval as sr\ntry:\n    sr.{name}\n"
        "except ImportError as error:\n    print(error)"
    )
    done = run_python(script)
    assert done.returncode == 0, done.stderr
    assert "pip install 'sparse_retrieval[train]'" in done.stdout


def test_without_any_optional_library_codes_are_indexed_and_searched(run_python):
    script = BLOCKED.format(
        blocked={"torch", "scipy", "safetensors", "tqdm", "typer", "rich", "matplotlib"}
    ) + (
        "import numpy as np, sparse_retrieval as sr, tempfile, pathlib\n"
        "codes = sr.SparseCodes([[0, 1], [1, 2]], [[1, 2], [3, 4]], dim=4)\n"
        "path = pathlib.Path(tempfile.mkdtemp()) / 'a.sridx'\n"
        "sr.SparseIndex.from_codes(codes, dictionary=sr.Dictionary(np.eye(4))).save(path)\n"
        "print(sr.SparseIndex.open(path).search(np.eye(4)[:1], 1).ids.tolist())\n"
        "for call in (codes.to_scipy, codes.to_torch, sr.Dictionary(np.eye(4)).save):\n"
        "    try:\n"
        "        call(path) if call.__name__ == 'save' else call()\n"
        "    except ImportError as error:\n"
        "        print(error)\n"
    )
    done = run_python(script)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "[[0]]"
    assert len(lines) == 4
    assert all("pip install 'sparse_retrieval[" in line for line in lines[1:])


def test_public_names_exist_and_an_unknown_one_is_an_attribute_error():
    pytest.importorskip("torch", reason="needs the training extra")
    for name in sr.__all__:
        assert getattr(sr, name) is not None
    assert dir(sr) == sorted(sr.__all__)
    with pytest.raises(AttributeError, match="no attribute 'SparseIndexx'"):
        _ = sr.SparseIndexx


def test_the_version_is_the_same_everywhere():
    from importlib.metadata import version

    cargo = (ROOT / "Cargo.toml").read_text()
    expected = re.search(r'^version = "(.+)"$', cargo, re.MULTILINE)
    assert expected is not None
    assert sr.__version__ == version("sparse_retrieval") == expected[1]


def modules() -> list[str]:
    names = ["sparse_retrieval"]
    for found in pkgutil.walk_packages(sr.__path__, "sparse_retrieval."):
        if not found.name.endswith("__main__"):
            names.append(found.name)
    return names


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings_print_what_they_say(name):
    pytest.importorskip("torch", reason="needs the training extra")
    result = doctest.testmod(importlib.import_module(name), verbose=False)
    assert result.failed == 0


def test_docstrings_hold_examples_of_the_classes_that_users_meet():
    finder = doctest.DocTestFinder()
    for public in (sr.SparseCodes, sr.SparseIndex, sr.Dictionary):
        assert any(test.examples for test in finder.find(public)), public
