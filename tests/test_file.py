"""Files: what is saved comes back, by the specification; damage and absence are named."""

from __future__ import annotations

import json
import os
import resource
import stat
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparse_retrieval as sr
import sridx_spec
from strategies import any_values, as_codes, code_rows

CODES = sr.SparseCodes([[0, 1], [1, 2], [0, 3]], [[1, 2], [3, 4], [5, -6]], dim=4)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "items.sridx"


@pytest.fixture
def saved(path) -> Path:
    sr.SparseIndex.from_codes(CODES, metric="cosine", value_bits=8).save(path)
    return path


@given(data=st.data())
def test_a_saved_index_comes_back_and_is_as_the_specification_says(tmp_path, data):
    dim = data.draw(st.sampled_from([1, 40, 65_536, 65_537]), label="dim")
    rows = data.draw(code_rows(dim, any_values, max_rows=20), label="rows")
    codes = as_codes(rows, dim)
    metric = data.draw(st.sampled_from(["inner_product", "cosine"]))
    bits = data.draw(st.sampled_from([32, 16, 8]))
    kind = data.draw(st.sampled_from(["positions", "ascending", "numbers", "strings"]), label="ids")
    ids = None if kind == "positions" else np.arange(len(rows)) * 3 - 10
    if kind in ("numbers", "strings"):
        ids[ids == -1] = 10**15
        np.random.default_rng(len(rows)).shuffle(ids)
    elif ids is not None:
        ids -= 1  # -11, -8, -5, -2, 1: never -1, which marks missing results
    if kind == "strings":
        ids = ["", "ü"][: len(ids)] + [str(number) for number in ids[2:]]
    has_dictionary = dim == 40 and data.draw(st.booleans())
    dictionary = sr.Dictionary(np.eye(40)) if has_dictionary else None
    modes = ("sparse", "dense", "reconstructed") if has_dictionary else ("sparse",)
    metadata = data.draw(st.sampled_from([None, {"a": [1, "é"]}]))
    index = sr.SparseIndex.from_codes(
        codes,
        dictionary=dictionary,
        ids=ids,
        metric=metric,
        value_bits=bits,
        modes=modes,
        metadata=metadata,
    )
    path = tmp_path / "items.sridx"
    index.save(path)
    for mmap in (True, False):
        again = sr.SparseIndex.open(path, mmap=mmap)
        again.verify()
        assert again.stats() == index.stats() | {"mapped": mmap}
        assert again.metadata == metadata
        np.testing.assert_array_equal(again.ids, index.ids)
        for mode in modes:
            queries = codes[:5] if mode != "dense" else codes[:5].to_dense()
            one, two = index.search(queries, 9, mode=mode), again.search(queries, 9, mode=mode)
            assert one.scores.tobytes() == two.scores.tobytes()
            assert one.ids.tolist() == two.ids.tolist()

    header, sections = sridx_spec.read(path)
    assert header["rows"]["count"] == len(rows)
    assert sridx_spec.ids(header, sections) == index.ids.tolist()
    stored = sridx_spec.rows(header, sections)
    levels = {32: None, 16: 32767, 8: 127}[bits]
    for row, pairs in zip(rows, stored, strict=True):
        ranked = sorted(row.items(), key=lambda pair: (-abs(pair[1]), pair[0]))
        padding = [(0, 0)] * (len(pairs) - len(ranked))
        assert [pair[0] for pair in pairs] == [p[0] for p in ranked] + [p[0] for p in padding]
        values = [pair[1] for pair in ranked]
        if levels is not None and values:
            step = np.float32(abs(values[0])) / np.float32(levels)
            quotients = [value / float(step) if step else 0.0 for value in values]
            values = np.clip(np.rint(quotients), -levels, levels).tolist()
        assert [pair[1] for pair in pairs] == values + [0] * len(padding)


def test_the_same_index_gives_the_same_bytes(tmp_path):
    files = []
    for threads in (1, 2):
        index = sr.SparseIndex.from_codes(CODES, metric="cosine", value_bits=8, threads=threads)
        for mmap in (True, False):
            path = tmp_path / f"{threads}{mmap}.sridx"
            index.save(path)
            files.append(path.read_bytes())
            sr.SparseIndex.open(path, mmap=mmap).save(path)
            files.append(path.read_bytes())
    assert len(set(files)) == 1


def test_a_file_written_from_the_specification_opens(path, saved):
    header, sections = sridx_spec.read(saved)
    raw = {name: section.tobytes() for name, section in sections.items()}
    header["a key of the future"] = {"b": 1}
    header["sections"].append(
        {"name": "a section of the future", "dtype": "f8e5", "shape": [3], "required": False}
    )
    raw["a section of the future"] = b"abc"
    path.write_bytes(sridx_spec.assemble(header, raw))
    index = sr.SparseIndex.open(path)
    index.verify()
    expected = sr.SparseIndex.from_codes(CODES, metric="cosine", value_bits=8)
    np.testing.assert_array_equal(index.search(CODES, 3).ids, expected.search(CODES, 3).ids)


def test_a_file_of_the_first_version_still_opens_and_answers():
    golden = Path(__file__).parent / "formats"
    answers = json.loads((golden / "v1.json").read_text())
    answers |= json.loads((golden / "v1_complete.json").read_text())
    for name, expected in answers.items():
        index = sr.SparseIndex.open(golden / name)
        index.verify()
        for mode, wanted in expected["results"].items():
            queries = np.array(wanted["queries"], dtype=np.float64)
            if mode != "dense":
                queries = sr.SparseCodes.from_dense(queries)
            result = index.search(queries, 5, mode=mode)
            assert result.ids.tolist() == wanted["ids"]
            # bits, not decimals: the same file and query give the same bytes for ever
            assert result.scores.tobytes().hex() == wanted["scores_hex"]


def test_golden_files_of_ids_and_journals_still_open_and_answer():
    golden = Path(__file__).parent / "formats"
    for name, expected in json.loads((golden / "v1_ids.json").read_text()).items():
        index = sr.SparseIndex.open(golden / name)
        index.verify()
        assert index.ids.tolist() == expected["all_ids"]
        sridx_spec.ids(*sridx_spec.read(golden / name))
        queries = sr.SparseCodes.from_dense(np.array(expected["queries"]))
        result = index.search(queries, 5)
        assert result.ids.tolist() == expected["ids"]
        assert result.scores.tobytes().hex() == expected["scores_hex"]
        journal = golden / f"{name}.journal"
        if journal.exists():
            checksum = struct.unpack_from("<Q", (golden / name).read_bytes(), 24)[0]
            changes = sridx_spec.journal(journal.read_bytes(), checksum)
            kinds = [kind for frame in changes for kind, _ in frame]
            assert kinds == ["add", "remove", "remove", "add"]
            found = index.stats()["changes"]
            assert (found["added"], found["removed"]) == (6, 2)
            assert found["journal_bytes"] == len(journal.read_bytes())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b"", "0 bytes are too few for an index file"),
        (lambda b: b[:31], "31 bytes are too few"),
        (lambda b: b"PK" + b[2:], "not a .sridx file"),
        (lambda b: b[:8] + struct.pack("<I", 7) + b[12:], "format version 7.*upgrade"),
        (lambda b: b[:-1], "section `\\w+` spans bytes .* the file is cut short"),
        (lambda b: b[: len(b) // 2], "the file (is cut short|is damaged)"),
        (lambda b: b + b"\0", "trailing bytes"),
        (lambda b: b[:40] + b"!" + b[41:], "header checksum is .* the file is damaged"),
    ],
)
@pytest.mark.parametrize("mmap", [True, False])
def test_damaged_files_are_refused_with_the_file_and_the_reason(saved, change, message, mmap):
    saved.write_bytes(change(saved.read_bytes()))
    with pytest.raises(sr.IndexFormatError, match=message) as caught:
        sr.SparseIndex.open(saved, mmap=mmap)
    assert str(caught.value).startswith(str(saved))
    assert isinstance(caught.value, ValueError)


def test_every_truncation_is_refused(saved):
    whole = saved.read_bytes()
    for length in range(len(whole)):
        saved.write_bytes(whole[:length])
        with pytest.raises(sr.IndexFormatError):
            sr.SparseIndex.open(saved)


def test_every_flipped_byte_is_found_by_open_or_verify(saved):
    whole = saved.read_bytes()
    for at in range(len(whole)):
        saved.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        with pytest.raises(sr.IndexFormatError):
            sr.SparseIndex.open(saved).verify()


def test_a_damaged_section_is_named_with_its_offset_and_both_checksums(saved):
    header, _ = sridx_spec.read(saved)
    rows = next(section for section in header["sections"] if section["name"] == "rows")
    data = bytearray(saved.read_bytes())
    data[rows["offset"]] ^= 1
    saved.write_bytes(data)
    index = sr.SparseIndex.open(saved)  # opening reads the header only
    expected = (
        rf"section `rows` at byte {rows['offset']}: checksum \w+, header says {rows['checksum']}"
    )
    with pytest.raises(sr.IndexFormatError, match=expected):
        index.verify()


def test_missing_files_and_folders_are_os_errors(tmp_path, path):
    with pytest.raises(FileNotFoundError, match=r"cannot open .*none\.sridx"):
        sr.SparseIndex.open(tmp_path / "none.sridx")
    with pytest.raises(IsADirectoryError):
        sr.SparseIndex.open(tmp_path)
    index = sr.SparseIndex.from_codes(CODES)
    with pytest.raises(FileNotFoundError, match="cannot write"):
        index.save(tmp_path / "none" / "items.sridx")
    with pytest.raises(IsADirectoryError):
        index.save(tmp_path)
    with pytest.raises(TypeError):
        index.save(None)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc as a folder")
def test_an_unwritable_folder_is_an_os_error_even_for_root():
    with pytest.raises(OSError, match=r"cannot write /proc/self/items\.sridx"):
        sr.SparseIndex.from_codes(CODES).save("/proc/self/items.sridx")


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, saved):
    before = saved.read_bytes()
    script = textwrap.dedent(
        """
        import resource, signal, sys
        import numpy as np
        import sparse_retrieval as sr
        codes = sr.SparseCodes(np.zeros((100_000, 1), int), np.ones((100_000, 1)), dim=2)
        index = sr.SparseIndex.from_codes(codes)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # as a full disk
        try:
            index.save(sys.argv[1])
        except OSError as error:
            print(error)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(saved)], capture_output=True, text=True, check=True
    )
    assert "cannot write" in done.stdout
    assert saved.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [saved.name]


def test_a_saved_file_has_the_permissions_that_the_umask_leaves(path):
    old = os.umask(0o027)
    try:
        sr.SparseIndex.from_codes(CODES).save(path)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_an_open_index_stays_valid_while_its_file_is_replaced(saved):
    index = sr.SparseIndex.open(saved)
    expected = index.search(CODES, 3)
    other = sr.SparseCodes([[3]], [[1.0]], dim=4)
    sr.SparseIndex.from_codes(other, metric="cosine").save(saved)
    again = index.search(CODES, 3)
    assert again.scores.tobytes() == expected.scores.tobytes()
    assert len(sr.SparseIndex.open(saved)) == 1
    # and onto the very file that it is mapped from
    index.save(saved)
    assert len(sr.SparseIndex.open(saved)) == 3
    assert index.search(CODES, 3).ids.tobytes() == expected.ids.tobytes()


def test_a_relative_path_without_a_folder_is_saved_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sr.SparseIndex.from_codes(CODES).save("items.sridx")
    assert len(sr.SparseIndex.open("items.sridx")) == 3


def test_opening_a_gigabyte_makes_no_copy_and_reads_no_rows(path):
    # 1 GB of rows as a hole in the file: whoever reads them pays memory or time, whoever does
    # not needs neither
    n, width = 5_600_000, 32
    header = {
        "writer": "test",
        "rows": {"count": n, "dim": 100, "latent_bits": 16, "values": "float32", "width": width},
        "metric": "inner_product",
        "modes": {"sparse": None},
        "sections": [
            {"name": "rows", "dtype": "u8", "shape": [n * width * 6], "required": True}
            | {"offset": 0, "length": n * width * 6, "checksum": "0" * 16}
        ],
    }
    for _ in range(3):  # the offset depends on the length of the header that holds it
        length = len(json.dumps(header))
        header["sections"][0]["offset"] = -(-(32 + length) // 64) * 64
    start = header["sections"][0]["offset"]
    path.write_bytes(sridx_spec.assemble(header, {"rows": b""}, fix_up=False)[:start])
    with path.open("r+b") as file:
        file.truncate(start + n * width * 6)
    script = textwrap.dedent(
        """
        import resource, sys
        import sparse_retrieval as sr
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = peak()
        index = sr.SparseIndex.open(sys.argv[1])
        assert len(index) == 5_600_000
        print(peak() - before)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 4096, "kilobytes that opening added to the peak"


def test_saving_needs_little_memory_beyond_the_index(path):
    rng = np.random.default_rng(0)
    codes = sr.SparseCodes(
        np.tile(np.arange(32), (200_000, 1)), rng.standard_normal((200_000, 32)), dim=32
    )
    index = sr.SparseIndex.from_codes(codes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    index.save(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < 38_400_000 / 2, "less than half of the 38 MB of rows"


def test_a_damaged_mean_leaves_no_results_rather_than_scores_that_are_no_numbers(path):
    dictionary = sr.Dictionary(np.eye(4), mean=[0.5, 0.25, 0, 0])
    sr.SparseIndex.from_codes(CODES, dictionary=dictionary, modes=["dense"]).save(path)
    header, _ = sridx_spec.read(path)
    offset = next(s["offset"] for s in header["sections"] if s["name"] == "mean")
    data = bytearray(path.read_bytes())
    data[offset : offset + 4] = struct.pack("<f", float("nan"))
    path.write_bytes(data)
    index = sr.SparseIndex.open(path)
    assert index.search(np.eye(4), 3).ids.tolist() == [[-1] * 3] * 4
    with pytest.raises(sr.IndexFormatError, match="mean"):
        index.verify()
