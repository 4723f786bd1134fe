"""An index that changes answers, at every moment, as one built of the items of that moment."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

import sparse_retrieval as sr
from strategies import any_values, as_codes, code_rows

DIM = 40
EVERY: tuple[Any, ...] = ("sparse", "reconstructed", "dense")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "items.sridx"


def codes_of(n: int, seed: int, k: int = 4, dim: int = DIM) -> sr.SparseCodes:
    rng = np.random.default_rng(seed)
    support = rng.permuted(np.tile(np.arange(dim), (n, 1)), axis=1)[:, :k]
    return sr.SparseCodes(support, rng.standard_normal((n, k)), dim=dim)


def same(one: sr.SearchResult, two: sr.SearchResult) -> None:
    assert one.scores.tobytes() == two.scores.tobytes()
    assert one.ids.tolist() == two.ids.tolist()


ATOMS = np.random.default_rng(0).standard_normal((DIM, 30))
ATOMS /= np.linalg.norm(ATOMS, axis=1, keepdims=True)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"metric": "cosine"},
    {"value_bits": 16},
    {"value_bits": 8, "metric": "cosine"},
    {"value_bits": 4},
    {"value_bits": 3.5, "metric": "cosine"},
    {"value_bits": 2.5, "metric": "cosine", "complete": True},
    {"value_bits": 4, "metric": "cosine", "dictionary": sr.Dictionary(ATOMS)}
    | {"modes": EVERY, "unit_items": True},
    {"value_bits": 8, "metric": "cosine", "dictionary": sr.Dictionary(ATOMS)} | {"modes": EVERY},
    {"dictionary": sr.Dictionary(ATOMS, mean=np.arange(30) / 9)},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("strings", [False, True])
def test_it_answers_as_an_index_of_the_items_that_are_left(path, options, strings):
    items = codes_of(300, seed=1)
    names: Any = [f"n{i}" for i in range(300)] if strings else np.arange(300) * 7
    # codebooks are those of the base: with all of its rows in the reference they are the same
    base = sr.SparseIndex.from_codes(items[:200], ids=names[:200], **options)
    base.save(path)
    index = sr.SparseIndex.open(path)
    index.add(items[200:260], ids=names[200:260])
    index.remove([names[i] for i in (0, 5, 199, 230)])
    index.add(items[260:], ids=names[260:])
    index.update(items[3:5], [names[7], names[250]])
    left = [i for i in range(300) if i not in (0, 5, 199, 230, 7, 250)]
    expected_ids = [names[i] for i in left] + [names[7], names[250]]
    assert index.ids.tolist() == expected_ids
    assert len(index) == len(expected_ids) == index.stats()["items"]

    rows = sr.SparseCodes.concatenate([items[np.array(left)], items[3:5]])
    coded = options.get("value_bits", 32) < 8
    with sr.IndexWriter(
        path.with_suffix(".reference"),
        dim=DIM,
        codebooks=base if coded else None,
        **options,
    ) as writer:
        writer.add(rows, ids=expected_ids)
    reference = sr.SparseIndex.open(path.with_suffix(".reference"))
    saved = path.with_suffix(".saved")
    index.save(saved)
    index.commit()
    again = sr.SparseIndex.open(path)
    for mode in index.modes:
        queries = items[:9] if mode != "dense" else np.random.default_rng(2).normal(size=(9, 30))
        for k in (1, 10, 400):
            expected = reference.search(queries, k, mode=mode)
            for tested in (index, again, sr.SparseIndex.open(saved)):
                same(tested.search(queries, k, mode=mode), expected)
    for opened in (again, sr.SparseIndex.open(saved)):
        opened.verify()
    again.save(path)
    assert path.read_bytes() == saved.read_bytes()
    np.testing.assert_array_equal(
        index.get(expected_ids).to_dense(), reference.get(expected_ids).to_dense()
    )
    if not coded:
        # a header says which program and how well codes decode; nothing else differs
        assert saved.read_bytes() == path.with_suffix(".reference").read_bytes()


def test_positions_as_ids_stay_with_their_items_and_new_ones_follow(path):
    items = codes_of(12, seed=3)
    sr.SparseIndex.from_codes(items[:10]).save(path)
    index = sr.SparseIndex.open(path)
    index.add(items[10:11])
    index.save(path)
    assert "ids" not in {section["name"] for section in index.stats()["sections"]}
    index.remove([10, 2])
    assert 2 not in index
    index.add(items[11:])
    assert index.ids.tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 9, 11]
    assert index.search(items[11], 1).ids.tolist() == [[11]]
    index.add(items[2:3], ids=[2])
    assert 2 in index
    index.save(path)
    assert sr.SparseIndex.open(path).ids.tolist() == [0, 1, 3, 4, 5, 6, 7, 8, 9, 11, 2]


@pytest.mark.parametrize("names", [["a", "b", "c"], [5, 6, 7]], ids=["strings", "numbers"])
def test_an_emptied_and_saved_index_keeps_its_kind_of_ids(path, names):
    sr.SparseIndex.from_codes(codes_of(3, seed=1), ids=names).save(path)
    index = sr.SparseIndex.open(path)
    index.remove(names)
    kind = index.ids.dtype
    for reader in (index.save(path) or index, sr.SparseIndex.open(path)):
        assert reader.ids.dtype == kind
        assert len(reader) == 0
        assert reader.search(codes_of(1, seed=2), 1).ids.tolist() == [[-1 if 5 in names else None]]
    with pytest.raises(ValueError, match="pass ids="):
        index.add(codes_of(1, seed=3))
    index.add(codes_of(1, seed=3), ids=names[:1])
    index.save(path)
    assert sr.SparseIndex.open(path).ids.tolist() == names[:1]


def test_a_change_that_fails_changes_nothing(path):
    items = codes_of(20, seed=4)
    numbers = sr.SparseIndex.from_codes(items[:10], ids=np.arange(10), value_bits=4)
    strings = sr.SparseIndex.from_codes(items[:10], ids=list("abcdefghij"))
    plain = sr.SparseIndex.from_codes(items[:10])
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: numbers.add(items[10:11]), ValueError, "pass ids="),
        (lambda: numbers.add(items[10:12], ids=[20, 3]), ValueError, "id 3 is in the index"),
        (lambda: numbers.add(items[10:12], ids=[20, 20]), ValueError, "must be unique"),
        (lambda: numbers.add(items[10:12], ids=[20]), ValueError, "1 ids for 2 items"),
        (lambda: numbers.add(items[10:11], ids=[-1]), ValueError, "the id -1"),
        (lambda: numbers.add(items[10:11], ids=["x"]), ValueError, "ids are strings, those of"),
        (lambda: strings.add(items[10:11], ids=[1]), ValueError, "ids are numbers, those of"),
        (lambda: strings.add(items[10:11], ids=["a"]), ValueError, 'id "a" is in the index'),
        (lambda: numbers.remove([3, 77]), KeyError, "no item has the id 77"),
        (lambda: numbers.remove([3, 3]), ValueError, "must be unique"),
        (lambda: numbers.remove(["3"]), KeyError, "ids are numbers here"),
        (lambda: strings.remove([3]), KeyError, "ids are strings here"),
        (lambda: numbers.update(items[:2], [3, 77]), KeyError, "no item has the id 77"),
        (lambda: numbers.add(codes_of(1, 5, k=3), ids=[20]), ValueError, "no level of 0"),
        (lambda: numbers.add(codes_of(1, 5, k=5), ids=[20]), ValueError, r"\.top\(4\)"),
        (lambda: plain.add(codes_of(1, 5, dim=41)), ValueError, "41 latents"),
        (lambda: plain.get([10]), KeyError, "no item has the id 10"),
        (lambda: plain.reconstruct([0]), ValueError, "holds no dictionary"),
        (lambda: plain.commit(), ValueError, "save it, and open the file"),
        (lambda: plain.reload(), ValueError, "has no file"),
        (lambda: plain.add(items, ids=[1.5] * 20), TypeError, "expected integers or strings"),
        (lambda: plain.add(items, ids=["a", 1]), TypeError, r"ids\[1\] is 1"),
        (lambda: plain.remove("abc"), TypeError, "sequence of ids"),
        (lambda: plain.remove([[1]]), ValueError, "shape"),
    ]
    before = [index.search(items, 20) for index in (numbers, strings, plain)]
    for change, kind, message in cases:
        with pytest.raises(kind, match=message):
            change()
    for index, expected in zip((numbers, strings, plain), before, strict=True):
        same(index.search(items, 20), expected)
        assert len(index) == 10
    plain.add(items[:0])
    plain.remove([])
    assert plain.stats()["changes"]["added"] == 0


@given(data=st.data())
def test_codes_come_back_as_they_went_in(data):
    codes = as_codes(data.draw(code_rows(DIM, any_values, max_rows=20)), DIM)
    for metric in ("inner_product", "cosine"):
        index = sr.SparseIndex.from_codes(codes, metric=metric)
        got = index.get(range(len(codes)))
        np.testing.assert_array_equal(got.indptr, codes.indptr)
        np.testing.assert_array_equal(got.latents, codes.latents)
        np.testing.assert_array_equal(got.values, codes.values)
    index = sr.SparseIndex.from_codes(codes, value_bits=16)
    dense = codes.to_dense()
    step = np.abs(dense).max(axis=1, keepdims=True, initial=0) / 32767
    # a subnormal step is itself off by up to half of the least number, 32767 times
    most = 0.5001 * step + 32767 * np.finfo(np.float32).smallest_subnormal
    assert (np.abs(index.get(range(len(codes))).to_dense() - dense) <= most).all()


def test_reconstruct_gives_what_the_dictionary_decodes(real_parts):
    codes, dictionary, _ = real_parts
    ids = np.arange(len(codes)) + 5
    plain = sr.SparseIndex.from_codes(codes, dictionary=dictionary, ids=ids)
    wanted = np.array([7, 5, 7, 900])
    expected = dictionary.decode(codes[wanted - 5])
    np.testing.assert_allclose(plain.reconstruct(wanted), expected, atol=1e-5)
    coded = sr.SparseIndex.from_codes(
        codes, dictionary=dictionary, ids=ids, metric="cosine", value_bits=8
    )
    unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(coded.reconstruct(wanted), unit, atol=0.02)
    np.testing.assert_allclose(np.linalg.norm(coded.reconstruct(wanted), axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(
        dictionary.decode(coded.get(wanted)), coded.reconstruct(wanted), atol=1e-5
    )


def test_strings_are_found_whatever_holds_them():
    codes = codes_of(4, seed=6)
    names = ["é", "", "日本", "a"]
    pa = pytest.importorskip("pyarrow")
    for given_ids in (
        names,
        tuple(names),
        np.array(names),
        np.array(names, object),
        pa.array(names),
    ):
        index = sr.SparseIndex.from_codes(codes, ids=given_ids, metric="cosine")
        assert index.ids.tolist() == names
        assert index.ids.dtype == object
        assert index.search(codes, 1).ids[:, 0].tolist() == names
        found = index.search(codes[0].to_dense()[0], 6)
        assert found.ids.shape == (6,)
        assert found.ids[4:].tolist() == [None, None]
        assert "日本" in index
        assert "b" not in index
        assert 1 not in index
        assert index.get(["a"]).latents.tolist() == codes[3].latents.tolist()


@pytest.mark.parametrize("strings", [False, True])
@pytest.mark.parametrize("bits", [32, 8])
def test_filters_and_exclusions_hold_on_an_index_that_has_changed(strings, bits):
    items = codes_of(900, seed=11)
    names: Any = [f"n{i}" for i in range(900)] if strings else (np.arange(900) * 7919) % 9001
    name = lambda rows: [names[i] for i in rows]  # noqa: E731
    index = sr.SparseIndex.from_codes(items[:700], ids=names[:700], value_bits=bits)
    index.add(items[700:], ids=names[700:])
    gone = set(range(0, 900, 7))
    before = index.bitmap(name([1, 2]))
    index.remove(name(gone))
    left = [i for i in range(900) if i not in gone]
    fresh = sr.SparseIndex.from_codes(
        sr.SparseCodes.concatenate([items[i : i + 1] for i in left]),
        ids=name(left),
        value_bits=bits,
    )
    rng = np.random.default_rng(12)
    mask = rng.random(len(left)) < 0.3
    chosen = [i for i, flag in zip(left, mask, strict=True) if flag]
    exclude = [name(rng.choice(left, m, replace=False)) for m in (0, 300, 1, 40)]
    for k in (1, 5, 1000):
        expected = fresh.search(items[:4], k, filter=mask, exclude=exclude)
        for allowed in (mask, name(chosen), sr.Bitmap.from_mask(mask), index.bitmap(name(chosen))):
            same(index.search(items[:4], k, filter=allowed, exclude=exclude), expected)
        same(
            index.search(items[:4], k, exclude=exclude), fresh.search(items[:4], k, exclude=exclude)
        )
    assert len(index.bitmap(name(chosen))) == len(index) == len(left)
    assert index.bitmap(name(chosen)).to_mask().tolist() == mask.tolist()
    with pytest.raises(ValueError, match="changed since this bitmap"):
        index.search(items[:1], 3, filter=before)
    with pytest.raises(ValueError, match="which no item of the index has"):
        index.search(items[:1], 3, filter=name([0]))
    with pytest.raises(ValueError, match="which no item of the index has"):
        index.search(items[:1], 3, exclude=[name([0])])


def test_a_pickle_refers_to_the_file(path):
    codes = codes_of(10, seed=7)
    index = sr.SparseIndex.from_codes(codes)
    with pytest.raises(TypeError, match="save it"):
        pickle.dumps(index)
    index.save(path)
    for mmap in (True, False):
        opened = sr.SparseIndex.open(path, mmap=mmap)
        text = pickle.dumps(opened)
        assert len(text) < 1_000
        again = pickle.loads(text)
        assert again.stats()["mapped"] == mmap
        same(again.search(codes, 3), index.search(codes, 3))
    opened.remove([3])
    with pytest.raises(TypeError, match="commit or save"):
        pickle.dumps(opened)
    opened.commit()
    assert 3 not in pickle.loads(pickle.dumps(opened))


def test_a_reader_keeps_its_moment_until_it_reloads(path):
    codes = codes_of(30, seed=8)
    sr.SparseIndex.from_codes(codes[:10]).save(path)
    reader, writer = sr.SparseIndex.open(path), sr.SparseIndex.open(path)
    assert not reader.reload()
    writer.add(codes[10:20])
    writer.commit()
    assert len(reader) == 10
    assert reader.reload()
    assert len(reader) == 20
    writer.save(path)  # the same items, in a new file and without a journal
    same(reader.search(codes, 30), writer.search(codes, 30))
    assert reader.reload()
    writer.remove([4])
    reader.remove([5])
    writer.commit()
    with pytest.raises(RuntimeError, match="changed by another writer"):
        reader.commit()
    with pytest.raises(ValueError, match="discard=True"):
        reader.reload()
    assert reader.reload(discard=True)
    assert 5 in reader
    assert 4 not in reader
    reader.remove([5])
    other = sr.IndexWriter(path, dim=DIM)
    with pytest.raises(BlockingIOError):
        reader.commit()
    other.abort()
    reader.commit()


def test_searches_of_other_threads_see_whole_changes_only():
    items = codes_of(400, seed=9)
    index = sr.SparseIndex.from_codes(items[:200], ids=np.arange(200))
    stop = threading.Event()
    seen: list[frozenset[int]] = []
    failures: list[BaseException] = []

    def search() -> None:
        try:
            while not stop.is_set():
                found = index.search(items[:2], 500)
                seen.append(frozenset(found.ids[1].tolist()) - {-1})
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    moments = {frozenset(range(200))}
    current = set(range(200))
    for step in range(40):
        new = range(200 + 5 * step, 205 + 5 * step)
        index.add(items[list(new)], ids=np.array(new))
        current |= set(new)
        moments.add(frozenset(current))
        gone = [3 * step, 200 + 5 * step]
        index.remove(gone)
        current -= set(gone)
        moments.add(frozenset(current))
        index.update(items[[step + 150, 1]], [150 + step // 2, 201 + 5 * step])
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(seen) > 10
    assert set(seen) <= moments


def test_changes_of_two_threads_are_both_there():
    index = sr.SparseIndex.from_codes(codes_of(10, seed=10), ids=np.arange(10))

    def work(first: int) -> None:
        for i in range(25):
            index.add(codes_of(4, seed=i), ids=np.arange(4) + first + 4 * i)
            index.remove([first + 4 * i])

    threads = [threading.Thread(target=work, args=(1000 * t,)) for t in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(index) == 10 + 3 * 75
    index.search(codes_of(2, seed=1), 5)


class Model(RuleBasedStateMachine):
    """The index, and a dict of what it should hold, in the order in which it should."""

    ids = Bundle("ids")

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "items.sridx"
        self.rows: dict[Any, dict[int, float]] = {}
        self.committed: dict[Any, dict[int, float]] = {}

    @initialize(
        target=ids,
        rows=code_rows(DIM, any_values, max_rows=8),
        strings=st.booleans(),
        bits=st.sampled_from([32, 16, 8]),
        metric=st.sampled_from(["inner_product", "cosine"]),
    )
    def begin(self, rows: Any, strings: bool, bits: int, metric: Any) -> Any:
        self.strings, self.options = strings, {"value_bits": bits, "metric": metric}
        self.next = 0
        names = [self.fresh() for _ in rows]
        self.rows = dict(zip(names, rows, strict=True))
        self.built(self.path)
        self.index = sr.SparseIndex.open(self.path)
        self.committed = dict(self.rows)
        return multiple(*names)

    def fresh(self) -> Any:
        self.next += 1
        number = self.next * 7919 % 1009  # in no order
        return f"n{number}" if self.strings else number

    def built(self, path: Path) -> sr.SparseIndex:
        built = sr.SparseIndex.from_codes(
            as_codes(list(self.rows.values()), DIM),
            ids=list(self.rows) or (np.array([], "U") if self.strings else []),
            **self.options,
        )
        built.save(path)
        return built

    @rule(target=ids, rows=code_rows(DIM, any_values, max_rows=6))
    def add(self, rows: Any) -> Any:
        names = [self.fresh() for _ in rows]
        self.index.add(as_codes(rows, DIM), ids=names if rows else None)
        self.rows.update(zip(names, rows, strict=True))
        return multiple(*names)

    @rule(gone=st.lists(consumes(ids), min_size=1, max_size=4, unique=True))
    def remove(self, gone: Any) -> None:
        self.index.remove(gone)
        for name in gone:
            del self.rows[name]

    @rule(name=ids, row=code_rows(DIM, any_values, max_rows=1))
    def update(self, name: Any, row: Any) -> None:
        if row:
            self.index.update(as_codes(row[:1], DIM), [name])
            del self.rows[name]
            self.rows[name] = row[0]

    @rule()
    def commit(self) -> None:
        self.index.commit()
        self.committed = dict(self.rows)

    @rule()
    def save(self) -> None:
        self.index.save(self.path)
        self.committed = dict(self.rows)

    @precondition(lambda self: list(self.committed.items()) == list(self.rows.items()))
    @rule(mmap=st.booleans())
    def reopen(self, mmap: bool) -> None:
        self.index = sr.SparseIndex.open(self.path, mmap=mmap)
        self.index.verify()

    @rule()
    def another_reader_sees_what_was_committed(self) -> None:
        assert sr.SparseIndex.open(self.path).ids.tolist() == list(self.committed)

    @rule(queries=code_rows(DIM, any_values, max_rows=3), k=st.integers(1, 20))
    def search(self, queries: Any, k: int) -> None:
        expected = self.built(self.path.with_suffix(".model"))
        asked = as_codes(queries, DIM)
        same(self.index.search(asked, k), expected.search(asked, k))

    @invariant()
    def it_has_the_ids_of_the_model(self) -> None:
        if self.rows or hasattr(self, "index"):
            assert self.index.ids.tolist() == list(self.rows)
            assert len(self.index) == len(self.rows)

    def teardown(self) -> None:
        self.folder.cleanup()


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_after_a_reload_dense_queries_are_encoded_with_the_new_dictionary(tmp_path):
    path = tmp_path / "items.sridx"
    rng = np.random.default_rng(0)
    atoms = [np.linalg.qr(rng.standard_normal((8, 8)))[0] for _ in range(2)]
    x = rng.standard_normal((40, 8))

    def write(which):
        dictionary = sr.Dictionary(atoms[which])
        codes = dictionary.encode(x, k=3)
        modes = ("sparse", "dense")
        sr.SparseIndex.from_codes(codes, dictionary=dictionary, modes=modes).save(path)

    write(0)
    index = sr.SparseIndex.open(path)
    index.search(x[:5], 3, mode="sparse")  # keeps the dictionary that encoded the queries
    write(1)
    assert index.reload()
    found = index.search(x[:5], 3, mode="sparse")
    expected = sr.SparseIndex.open(path).search(x[:5], 3, mode="sparse")
    assert found.scores.tobytes() == expected.scores.tobytes()
    assert found.ids.tolist() == expected.ids.tolist()
