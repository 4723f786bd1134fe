"""Training reads every kind of data as it reads an array, and refuses bad data by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from sparse_retrieval.training import CompresSAE, TrainConfig, as_row_source, train
from sparse_retrieval.training.feed import ahead, rows_feed, stream_feed
from sparse_retrieval.training.mining import Neighbourhoods, nearest_others
from sparse_retrieval.training.sampling import Place, share_of, windows
from sparse_retrieval.training.sources import Stream
from training_data import assert_trains_alike, mixture, same_bytes

X = mixture(150).astype(np.float16)  # what every kind of data can hold


pytestmark = pytest.mark.usefixtures("one_thread")


class Columns:
    """A data set as Hugging Face's: entries by number are dicts, many at once a dict of lists."""

    column_names = ("label", "embedding")

    def __init__(self, x: np.ndarray, kind: type = list) -> None:
        self.x, self.kind, self.fetched = x, kind, 0
        self.shape = (len(x), 2)  # rows and columns, as theirs

    def __len__(self) -> int:
        return len(self.x)

    def with_format(self, kind: str, columns: list[str]) -> Columns:
        assert (kind, columns) == ("numpy", ["embedding"])
        return Columns(self.x, np.asarray)

    def __getitem__(self, rows: Any) -> dict[str, Any]:
        if isinstance(rows, int):
            return {"label": "a", "embedding": self.x[rows].tolist()}
        return {"label": ["a"] * len(rows), "embedding": self.kind(self.x[rows])}


class Entries(Dataset[Any]):
    """A map-style data set of torch."""

    def __init__(self, x: np.ndarray, wrap: Callable[[Tensor], Any]) -> None:
        self.x, self.wrap = torch.from_numpy(x), wrap

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, row: int) -> Any:
        return self.wrap(self.x[row])


class Going(IterableDataset[Any]):
    """An iterable data set: rows, one by one."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x

    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.from_numpy(self.x))


def npy(folder: Path, x: np.ndarray = X) -> Path:
    np.save(folder / "x.npy", x)
    return folder / "x.npy"


def parquet(folder: Path, x: np.ndarray = X, name: str = "x", size: int | None = None) -> Path:
    kind = pa.list_(pa.from_numpy_dtype(x.dtype), *([] if size is None else [size]))
    table = pa.table({"id": list(range(len(x))), "v": pa.array(x.tolist(), type=kind)})
    pq.write_table(table, folder / f"{name}.parquet", row_group_size=40)
    return folder / f"{name}.parquet"


def safetensors(folder: Path, x: np.ndarray = X, dtype: torch.dtype = torch.float16) -> Path:
    save_file({"x": torch.from_numpy(x).to(dtype)}, folder / "x.safetensors")
    return folder / "x.safetensors"


def parts(folder: Path) -> list[Path]:
    np.save(folder / "a.npy", X[:60])
    return [folder / "a.npy", parquet(folder, X[60:])]


KINDS: dict[str, Callable[[Path], Any]] = {
    ".npy": npy,
    ".npy as str": lambda folder: str(npy(folder)),
    ".parquet of lists": lambda folder: parquet(folder, X.astype(np.float32)),
    ".parquet of fixed lists": lambda folder: parquet(folder, X, size=16),
    ".safetensors": safetensors,
    "several files": parts,
    "TensorDataset": lambda _: TensorDataset(torch.from_numpy(X), torch.zeros(len(X))),
    "data set of rows": lambda _: Entries(X, lambda row: row),
    "data set of dicts": lambda _: Entries(X, lambda row: {"n": 3, "embedding": row}),
    "data set of columns": lambda _: Columns(X),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_can_be_fetched_train_as_the_array_does(tmp_path: Path, kind: str) -> None:
    # the order of rows rather than of windows, which .parquet would be read in
    config = TrainConfig(steps=6, batch_size=64, shuffle="rows")
    assert_trains_alike(KINDS[kind](tmp_path), X, config)


def test_bfloat16_files_are_read_as_they_are(tmp_path: Path) -> None:
    path = safetensors(tmp_path, X, torch.bfloat16)
    rows = as_row_source(path).take(np.arange(5))
    assert torch.equal(rows, torch.from_numpy(X[:5]).bfloat16().float())


@pytest.mark.parametrize("window_rows", [1, 64, 100, 1000])
def test_windows_hold_every_row_at_most_once_and_batches_are_full(window_rows: int) -> None:
    for epoch in range(3):
        found = list(windows(5000, 64, 3, epoch, window_rows))
        rows = np.concatenate([window.ravel() for window in found])
        assert len(rows) == 5000 // 64 * 64  # what is left over is less than a batch
        assert len(np.unique(rows)) == len(rows)
        assert all((np.diff(window, axis=1) > 0).all() for window in found)
    assert not np.array_equal(rows[:64], next(windows(5000, 64, 3, 0, window_rows))[0])


def test_a_window_is_made_of_blocks_from_all_over() -> None:
    n, rows = 100_000, 8192
    first = next(windows(n, 512, 0, 0, rows)).ravel()
    assert len(first) == rows
    blocks = np.unique(first // 1024)
    assert len(blocks) <= 9  # the last block of all may be short
    assert blocks.max() - blocks.min() > 30
    batch = next(windows(n, 512, 0, 0, rows))[0]
    assert len(np.unique(batch // 1024)) >= 7  # rows of a batch come from all blocks of the window


def test_a_parquet_file_is_read_forwards_once_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = as_row_source(parquet(tmp_path))
    asked: list[np.ndarray] = []
    take = source.take
    monkeypatch.setattr(source, "take", lambda rows: asked.append(rows) or take(rows))
    config = TrainConfig(steps=6, batch_size=50)  # 3 batches an epoch, a window for all of them
    train(CompresSAE(16, 64, 4), source, config=config)
    assert len(asked) in (2, 3)  # the thread that reads ahead may have begun a third
    for rows in asked:
        np.testing.assert_array_equal(rows, np.arange(150))


def test_a_held_window_gives_the_rows_that_are_fetched_one_batch_at_a_time() -> None:
    source = as_row_source(X)

    def order(epoch: int) -> Any:
        return windows(len(X), 32, 1, epoch, 64)

    feeds = [rows_feed(source, order, Place(), rank=0, size=1, hold=hold) for hold in (True, False)]
    for (a, place), (b, _) in itertools.islice(zip(*feeds, strict=True), 11):
        assert torch.equal(a, b)
        later, _ = next(rows_feed(source, order, place, rank=0, size=1, hold=False))
        following = next(rows_feed(source, order, place, rank=0, size=1, hold=True))[0]
        assert torch.equal(later, following)


@pytest.mark.parametrize("hold", [True, False])
@pytest.mark.parametrize("size", [2, 3, 40])
def test_processes_share_each_batch_and_miss_no_row(size: int, hold: bool) -> None:
    source = as_row_source(X)

    def order(epoch: int) -> Any:
        return windows(len(X), 32, 1, epoch, 64)

    feeds = [
        rows_feed(source, order, Place(), rank=rank, size=size, hold=hold) for rank in range(size)
    ]
    alone = rows_feed(source, order, Place(), rank=0, size=1, hold=False)
    for _ in range(6):
        shares = [next(feed)[0] for feed in feeds]
        assert torch.equal(torch.cat(shares), next(alone)[0])
        counts = [len(share) for share in shares]
        assert max(counts) - min(counts) <= 1
    assert share_of(3, 0, 4) == slice(0, 0)


STREAMS: dict[str, Callable[[], Any]] = {
    "DataLoader": lambda: DataLoader(TensorDataset(torch.from_numpy(X)), batch_size=17),
    "iterable data set": lambda: Going(X),
    "loader of dicts": lambda: DataLoader(Entries(X, lambda row: {"e": row, "n": 1}), batch_size=9),
    "generator of arrays": lambda: (part for part in np.array_split(np.tile(X, (4, 1)), 9)),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_streams_are_trained_on(kind: str) -> None:
    model = CompresSAE(16, 64, 4)
    config = TrainConfig(steps=8, batch_size=64, window_rows=100)
    history = train(model, STREAMS[kind](), config=config, held_out=mixture(200)[150:])
    assert history.loss[-1] < 0.9 * history.loss[0]
    assert [e.step for e in history.evaluations] == list(range(1, 9))


def test_a_stream_gives_every_row_of_an_epoch_once_in_another_order_each_time() -> None:
    x = np.arange(1, 121, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    options = {"batch_size": 20, "window_rows": 50, "seed": 0, "rank": 0, "size": 1}
    feed = stream_feed(Stream(DataLoader(torch.from_numpy(x), batch_size=7)), Place(), **options)
    # 120 rows come as windows of 56 (whole batches of 7) and 64 with the short end: 2 + 3 batches
    epochs = []
    for _ in range(2):
        epochs.append([next(feed) for _ in range(5)])
        rows = np.concatenate([batch[:, 0].numpy() for batch, _ in epochs[-1]])
        assert len(np.unique(rows)) == 100
    assert not torch.equal(epochs[0][0][0], epochs[1][0][0])
    stream = Stream(DataLoader(torch.from_numpy(x), batch_size=7))
    again = stream_feed(stream, epochs[0][2][1], **options)  # from a place in the middle
    for batch, place in (*epochs[0][3:], *epochs[1]):
        other, there = next(again)
        assert torch.equal(batch, other)
        assert place == there


def test_reading_ahead_gives_the_same_batches_and_raises_when_it_is_their_turn() -> None:
    def feed() -> Iterator[Any]:
        yield 1, Place()
        yield 2, Place()
        raise ValueError("broken row")

    reader = ahead(feed())
    assert next(reader)[0] == 1
    assert next(reader)[0] == 2
    with pytest.raises(ValueError, match="broken row"):
        next(reader)


def test_neighbours_are_those_that_a_search_of_the_codes_returns() -> None:
    x, model = mixture(120), CompresSAE(16, 64, 4)
    train(model, x, steps=30, batch_size=60)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    decoded = model.dictionary().decode(model.sparse_codes(x))
    cosines = unit @ (decoded / np.linalg.norm(decoded, axis=1, keepdims=True)).T
    np.fill_diagonal(cosines, -2)
    expected = np.sort(np.argsort(-cosines, axis=1)[:, :3], axis=1)
    np.testing.assert_array_equal(
        np.sort(nearest_others(model, as_row_source(x), 3), axis=1), expected
    )
    nearer = np.argsort(-cosines, axis=1)[:, :100]
    order = Neighbourhoods(as_row_source(x), 3, seed=0)
    order.refresh(model)
    batches = next(order.windows(32, 0, 0))
    assert batches.shape == (120 // 8, 32)
    for batch in batches:
        assert len(np.unique(batch)) == 32
        held = np.isin(nearer[batch], batch).sum(axis=1)
        assert (held >= 3).sum() >= 8  # its anchors, at least
    assert not np.array_equal(batches, next(order.windows(32, 0, 1)))
    with pytest.raises(ValueError, match="hard_negatives must be less than the 120 rows"):
        Neighbourhoods(as_row_source(x), 120, seed=0)


def test_a_row_is_never_its_own_neighbour_even_where_it_does_not_find_itself() -> None:
    x, model = mixture(40), CompresSAE(16, 64, 1)  # one latent a code: many rows are alike
    x[5] = 0  # and one has no code at all
    nearest = nearest_others(model, as_row_source(x), 6)
    assert nearest.shape == (40, 6)
    assert not (nearest == np.arange(40)[:, None]).any()
    assert all(len(set(row)) == 6 for row in nearest.tolist())
    assert ((nearest >= 0) & (nearest < 40)).all()


def test_neighbours_are_looked_for_again_when_they_are_due_and_make_the_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[int] = []
    refresh = Neighbourhoods.refresh

    def counted(self: Neighbourhoods, model: CompresSAE) -> None:
        looked.append(len(told))
        refresh(self, model)

    monkeypatch.setattr(Neighbourhoods, "refresh", counted)
    told: list[int] = []
    config = TrainConfig(
        steps=12, batch_size=32, hard_negatives=3, ranking_start=0.5, mine_every=4, evaluate_every=6
    )
    model = CompresSAE(16, 64, 4)
    train(model, mixture(120), config=config, on_step=lambda metrics: told.append(metrics.step))
    assert looked == [6, 10]
    plain = CompresSAE(16, 64, 4)
    train(plain, mixture(120), steps=12, batch_size=32)
    assert not same_bytes(model, plain), "other batches from the seventh step on"


def test_a_stream_cannot_be_encoded_and_the_error_says_what_can() -> None:
    with pytest.raises(TypeError, match=r"x is a stream \(DataLoader\): it can be trained on"):
        CompresSAE(16, 64, 4).sparse_codes(DataLoader(torch.from_numpy(X)))


def broken(row: int, value: float = np.nan) -> np.ndarray:
    x = X.astype(np.float32)
    x[row, 3] = value
    return x


def ragged() -> Iterator[np.ndarray]:
    yield X[:10]
    yield X[10:20, :15]


BAD: dict[str, tuple[Callable[[Path], Any], dict[str, Any], type[Exception], str]] = {
    "NaN in .npy": (lambda f: npy(f, broken(7)), {}, ValueError, "in row 7"),
    "inf in .parquet": (lambda f: parquet(f, broken(7, np.inf)), {}, ValueError, "in row 7"),
    "NaN in .safetensors": (
        lambda f: safetensors(f, broken(9), torch.float32),
        {},
        ValueError,
        "in row 9",
    ),
    "NaN in a data set": (lambda f: Columns(broken(11)), {}, ValueError, "in row 11"),
    "NaN in a loader": (
        lambda f: DataLoader(torch.from_numpy(broken(25)), batch_size=10),
        {},
        ValueError,
        "in row 25",
    ),
    "width of .npy": (lambda f: npy(f, X[:, :9]), {}, ValueError, "x has 9 columns, this model"),
    "width of a stream": (lambda f: iter([X[:, :9]]), {}, ValueError, "x has 9 columns, this mod"),
    "ragged stream": (lambda f: ragged(), {}, ValueError, "row 10 of x has 15 columns, those bef"),
    "ragged data set": (
        lambda f: Entries(X, lambda r: r[: 16 - int(float(r[0]) * float(X[0, 0]) < 0)]),
        {},
        ValueError,
        "entries of x must be rows (d,) of one length",
    ),
    "1-D .npy": (lambda f: npy(f, X[:, 0]), {}, ValueError, "x must be two-dimensional (n, d)"),
    "integers in .npy": (
        lambda f: npy(f, X.astype(np.int8)),
        {},
        TypeError,
        "got an array of int8",
    ),
    "empty .npy": (lambda f: npy(f, X[:0]), {}, ValueError, "x is empty: shape (0, 16)"),
    "empty .parquet": (lambda f: parquet(f, X[:0], size=16), {}, ValueError, "x is empty: shape"),
    "empty data set": (lambda f: Entries(X[:0], lambda r: r), {}, ValueError, "x is empty"),
    "empty stream": (lambda f: iter([]), {}, ValueError, "x is empty: the stream has no rows"),
    "exhausted iterator": (
        lambda f: iter([X]),
        {"steps": 50},
        ValueError,
        "x is an iterator and has come to its end",
    ),
    "no such file": (lambda f: f / "none.npy", {}, FileNotFoundError, "none.npy"),
    "no such .safetensors": (lambda f: f / "n.safetensors", {}, FileNotFoundError, "n.safetensors"),
    "another file": (lambda f: f / "x.csv", {}, ValueError, "is neither .npy nor .parquet"),
    "widths of files": (
        lambda f: [npy(f), parquet(f, X[:, :9])],
        {},
        ValueError,
        "rows of different widths: [16, 9]",
    ),
    "column of an array": (lambda f: X, {"column": "v"}, ValueError, "only .parquet and .safe"),
    "column of .parquet": (parquet, {"column": "w"}, ValueError, "no column 'w'"),
    "tensor": (safetensors, {"column": "w"}, ValueError, "has no tensor 'w'; name one with column"),
    "column of a data set": (lambda f: Columns(X), {"column": "w"}, ValueError, "no column 'w'"),
    "integers in a data set": (
        lambda f: Entries(X, lambda r: r.int()),
        {},
        TypeError,
        "x must hold dense floating-point rows, got torch.int32",
    ),
    "words": (lambda f: iter([["a", "b"]]), {}, TypeError, "x must hold floating-point numbers"),
    "drawn from a stream": (
        lambda f: Going(X),
        {"held_out": 5},
        ValueError,
        "rows cannot be drawn from a stream",
    ),
    "held out of too few": (lambda f: X, {"held_out": 150}, ValueError, "less than the 150 rows"),
    "held out of zeros": (
        lambda f: X,
        {"held_out": np.zeros((4, 16), np.float32)},
        ValueError,
        "held_out has no row that is not zero",
    ),
    "width of held out": (lambda f: X, {"held_out": X[:, :9]}, ValueError, "x has 9 columns"),
    "neighbours of a stream": (
        lambda f: Going(X),
        {"hard_negatives": 3},
        ValueError,
        "hard_negatives need rows that can be fetched by number, and x is a stream",
    ),
    "few for a stream": (lambda f: Going(X), {"held_out": X[:9]}, ValueError, "has 9 rows"),
}


@pytest.mark.parametrize("case", BAD)
def test_training_refuses_data(tmp_path: Path, case: str) -> None:
    make, options, error, message = BAD[case]
    options = dict(options)
    trained = {name: options.pop(name) for name in ("steps", "hard_negatives") if name in options}
    config = TrainConfig(**{"steps": 3, "batch_size": 64, **trained})
    with pytest.raises(error) as caught:
        train(CompresSAE(16, 64, 4), make(tmp_path), config=config, **options)
    assert message in str(caught.value)
