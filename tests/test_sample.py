"""The sample in examples/data is what its record says, and its script remakes it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sparse_retrieval.cli._errors import CommandError
from sparse_retrieval.cli.sample import load_sample

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "data"


@pytest.fixture(scope="module")
def make_sample() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_sample", FOLDER / "make_sample.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads((FOLDER / "sample.json").read_text(encoding="utf-8"))


def test_files_have_the_recorded_checksums_and_sizes(record: dict) -> None:
    for name, entry in record["files"].items():
        content = (FOLDER / name).read_bytes()
        assert len(content) == entry["bytes"], name
        assert hashlib.sha256(content).hexdigest() == entry["sha256"], name


def test_the_folder_stays_below_eight_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 8_000_000


def test_the_readme_is_the_one_that_the_script_writes(
    record: dict, make_sample: ModuleType
) -> None:
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == make_sample.readme(record)


def test_the_sample_loads_as_unit_rows_with_a_name_each() -> None:
    sample = load_sample(FOLDER)
    assert sample.embeddings.shape == (16_384, 384)
    assert sample.embeddings.dtype == np.float32
    assert len(set(sample.names)) == 16_384
    # 384 roundings of at most half a level each: the norm moves by less than 1 in 100.
    norms = np.linalg.norm(sample.embeddings, axis=1)
    np.testing.assert_allclose(norms, 1, atol=0.01)


def test_the_script_gives_the_same_bytes_twice_and_only_names(
    tmp_path: Path, make_sample: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    rng = np.random.default_rng(0)
    full = rng.normal(size=(50, 6)).astype(np.float16)
    full[7] = 0
    np.save(source / make_sample.SOURCE_EMBEDDINGS, full)
    (source / make_sample.SOURCE_NAMES).write_text(
        "".join(f"package{row}: what: it does\n" for row in range(50)), encoding="utf-8"
    )
    monkeypatch.setattr(make_sample, "ROWS", 49)
    written = []
    for name in ("first", "second"):
        out = tmp_path / name
        out.mkdir()
        with np.errstate(invalid="ignore"):  # the zero row has no cosine
            make_sample.make(source, out)
        written.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert written[0] == written[1]
    names = written[0]["names.txt"].decode().split()
    rows = [int(name.removeprefix("package")) for name in names]
    assert rows == sorted(rows)
    levels = np.load(tmp_path / "first" / "embeddings_i8.npy")
    scales = np.load(tmp_path / "first" / "scales_f32.npy")
    # Half a level, and the rounding of one float32 division.
    error = np.abs(levels * scales[:, None] - full[rows].astype(np.float32))
    assert (error <= scales[:, None] * (0.5 + 1e-5)).all()


def test_a_missing_folder_is_named_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"no such file; the sample is examples/data of a clone"):
        load_sample(tmp_path)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    for path in FOLDER.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    (tmp_path / "names.txt").write_text("one\n", encoding="utf-8")
    with pytest.raises(CommandError, match=r"1 names, but sample.json says \(16384, 384\)"):
        load_sample(tmp_path)
