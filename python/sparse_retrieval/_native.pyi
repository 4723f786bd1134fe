"""The Rust core as Python sees it. Checked against the built module by stubtest.

Private: use :class:`sparse_retrieval.SparseCodes` and :class:`sparse_retrieval.SparseIndex`,
which validate what comes in here.
"""

from collections.abc import Callable
from typing import Any, final

import numpy as np
import numpy.typing as npt

__all__ = [
    "Bitmap",
    "DictionaryRound",
    "Index",
    "IndexFormatError",
    "IndexWriter",
    "PursuitEncoder",
    "__version__",
    "build_info",
    "calls_in_flight",
    "canonical_codes",
    "extrapolated_atoms",
    "merge",
    "rescore",
]

__version__: str

class IndexFormatError(ValueError):
    """A file is not a sound index file; the message says what is wrong and where."""

def build_info() -> dict[str, Any]:
    """Version, build profile, instruction sets available and chosen, default threads.

    Returns
    -------
    dict
        ``version``, ``profile`` ("release" or "debug"), ``isa_available`` (list of names, the
        plainest first), ``isa`` (the one that searches use now: the widest, or what the
        environment variable SPARSE_RETRIEVAL_ISA names), ``threads``.

    Raises
    ------
    ValueError
        If SPARSE_RETRIEVAL_ISA names no instruction set, or one that this CPU lacks.
    """

def calls_in_flight() -> int:
    """Calls of this process that wait for their turn or run now, in any thread.

    A call that leaves ``threads`` open has a share of the processors that is the smaller the more
    of them there are.
    """

def canonical_codes(
    indptr: npt.NDArray[np.int64],
    latents: npt.NDArray[np.int32] | npt.NDArray[np.int64] | npt.NDArray[np.uint32],
    values: npt.NDArray[np.float32],
    dim: int,
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32], npt.NDArray[np.float32]]:
    """Validate a CSR matrix: rows sorted, zeros dropped, duplicates and NaN refused.

    Parameters
    ----------
    indptr : ndarray of int64, shape (n + 1,)
    latents : ndarray of int32, int64 or uint32, shape (nnz,)
    values : ndarray of float32, shape (nnz,)
    dim : int

    Returns
    -------
    indptr : ndarray of uint64, shape (n + 1,)
    latents : ndarray of uint32, shape (nnz',)
    values : ndarray of float32, shape (nnz',)

    Raises
    ------
    ValueError
        With the row, for anything that is not sound.
    """

@final
class Bitmap:
    """A set of positions, one bit each."""

    def __new__(cls, packed: npt.NDArray[np.uint8], n: int) -> Bitmap:
        """Bits of ``n`` positions, lowest first; ValueError for other than ceil(n / 8) bytes."""
    def __len__(self) -> int: ...
    @property
    def count(self) -> int:
        """How many positions are in it."""
    @property
    def packed(self) -> npt.NDArray[np.uint8]:
        """Its bits; a copy."""

@final
class Index:
    """Rows, scales, ids and a dictionary, in memory or mapped."""

    @staticmethod
    def build(
        indptr: npt.NDArray[np.uint64],
        latents: npt.NDArray[np.uint32],
        values: npt.NDArray[np.float32],
        dim: int,
        *,
        dictionary: npt.NDArray[np.float32] | None,
        mean: npt.NDArray[np.float32] | None,
        ids: npt.NDArray[np.int64] | list[str] | None,
        metric: str,
        value_bits: float,
        complete: bool,
        modes: list[str],
        unit_items: bool,
        reconstruction_cosine: float | None,
        metadata: str | None,
        postings: int | None,
        threads: int | None,
        progress: Callable[[int], object] | None,
    ) -> Index:
        """Build from canonical codes; ``modes=[]`` stands for the usual ones."""
    def with_postings(
        self,
        block_items: int,
        *,
        threads: int | None,
        progress: Callable[[int], object] | None,
    ) -> Index:
        """The same index with postings, so many items a block."""
    @staticmethod
    def open(path: str, *, mmap: bool) -> Index:
        """Open a file, mapped or read whole."""
    def save(self, path: str) -> None:
        """Write a file, beside the target and then in its place."""
    def verify(self) -> None:
        """Read everything; IndexFormatError for the first thing wrong."""
    def add(
        self,
        indptr: npt.NDArray[np.uint64],
        latents: npt.NDArray[np.uint32],
        values: npt.NDArray[np.float32],
        dim: int,
        *,
        ids: npt.NDArray[np.int64] | list[str] | None,
        threads: int | None,
    ) -> None:
        """Add items."""
    def update(
        self,
        indptr: npt.NDArray[np.uint64],
        latents: npt.NDArray[np.uint32],
        values: npt.NDArray[np.float32],
        dim: int,
        ids: npt.NDArray[np.int64] | list[str],
        *,
        threads: int | None,
    ) -> None:
        """Replace the codes of items."""
    def remove(self, ids: npt.NDArray[np.int64] | list[str]) -> None:
        """Remove items."""
    def commit(self) -> int:
        """Append the changes to the journal of the file, synced; the bytes appended."""
    def reload(self, *, discard: bool) -> bool:
        """Read the file again; whether it, or its journal, is new."""
    def get(
        self, ids: npt.NDArray[np.int64] | list[str]
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32], npt.NDArray[np.float32]]:
        """Codes of items: indptr, latents, values."""
    def reconstruct(self, ids: npt.NDArray[np.int64] | list[str]) -> npt.NDArray[np.float32]:
        """Embeddings that items decode to, shape (n, d)."""
    def contains(self, ids: npt.NDArray[np.int64] | list[str]) -> list[bool]:
        """Whether an item has this id, for each of them."""
    def changes(self) -> dict[str, Any]:
        """``added``, ``removed``, ``uncommitted``, ``journal_bytes``."""
    def search_dense(
        self,
        queries: npt.NDArray[np.float64],
        k: int,
        *,
        mode: str,
        k_row: int | None,
        filter: Bitmap | npt.NDArray[np.int64] | list[str] | None,
        exclude: tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64] | list[str]] | None,
        approximate: tuple[int, int] | None,
        positions: bool,
        threads: int | None,
        progress: Callable[[int], object] | None,
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64] | list[str | None]]:
        """Scores and ids, shape (nq, at most k), of dense queries (nq, d).

        ``exclude`` is where each query's ids start, shape (nq + 1,), and all ids. With
        ``positions`` items are returned by position, whatever their ids.
        """
    def search_codes(
        self,
        indptr: npt.NDArray[np.uint64],
        latents: npt.NDArray[np.uint32],
        values: npt.NDArray[np.float32],
        dim: int,
        k: int,
        *,
        mode: str,
        k_row: int | None,
        filter: Bitmap | npt.NDArray[np.int64] | list[str] | None,
        exclude: tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64] | list[str]] | None,
        approximate: tuple[int, int] | None,
        positions: bool,
        threads: int | None,
        progress: Callable[[int], object] | None,
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64] | list[str | None]]:
        """Scores and ids, shape (nq, at most k), of canonical codes."""
    def explain(
        self,
        n_queries: int,
        k: int,
        *,
        mode: str,
        k_row: int | None,
        filter: Bitmap | npt.NDArray[np.int64] | list[str] | None,
        approximate: tuple[int, int] | None,
    ) -> tuple[str, str]:
        """The way that a search would go, and why."""
    def with_clusters(
        self,
        *,
        clusters: int | None,
        seed: int,
        threads: int | None,
        progress: Callable[[int], object] | None,
    ) -> Index:
        """The same index with clusters for approximate search."""
    def with_tuned(
        self, *, clusters: int, rerank: int, target: float, reached: float, k: int
    ) -> Index:
        """The same index with another tuned setting."""
    def decoded(self, positions: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
        """What items decode to, the mean included, shape (m, d); rows without their scales."""
    @property
    def tuned(self) -> dict[str, Any] | None:
        """``clusters``, ``rerank``, ``target``, ``reached`` and ``k``, or None."""
    @property
    def n_clusters(self) -> int:
        """Number of clusters; 0 where there are none."""
    def frozen(self) -> Index:
        """The index as it is now: positions mean the same in all calls of what is returned."""
    def ranks(self, positions: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Where items at ascending positions stand among all."""
    def ids_at(self, positions: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64] | list[str]:
        """The ids of items at these positions."""
    def bitmap(self, ids: npt.NDArray[np.int64] | list[str], *, what: str) -> Bitmap:
        """The items of these ids; ValueError, which calls them ``what``, for one that is not."""
    def sections(self) -> list[dict[str, Any]]:
        """Name, dtype, shape, bytes and growth with n of every section."""
    def __len__(self) -> int: ...
    @property
    def dim(self) -> int:
        """Number of latents."""
    @property
    def embedding_dim(self) -> int | None:
        """Width of the dictionary, or None."""
    @property
    def metric(self) -> str:
        """Name of the metric."""
    @property
    def value_bits(self) -> float:
        """Bits of a value, sign included; the mean over the ranks where they differ."""
    @property
    def is_complete(self) -> bool:
        """Whether every item has every latent, so that rows do not say which."""
    @property
    def magnitude_bits(self) -> list[int] | None:
        """Bits of magnitude of each rank, or None where values are not rank-coded."""
    @property
    def unit_items(self) -> bool:
        """Whether cosine takes the norm of every item in embedding space for 1."""
    @property
    def cosines(self) -> tuple[float | None, float | None]:
        """Mean cosines: of items and codes, and of codes before and after quantisation."""
    @property
    def width(self) -> int | None:
        """Nonzeros of every row, or None where rows differ."""
    @property
    def modes(self) -> list[str]:
        """Names of the modes."""
    @property
    def writer(self) -> str:
        """The program that built it."""
    @property
    def opened_mapped(self) -> bool:
        """Whether the file was opened to be mapped."""
    @property
    def is_mapped(self) -> bool:
        """True where rows are read from a mapped file."""
    @property
    def bytes_per_item(self) -> float:
        """Bytes of rows and scales an item."""
    @property
    def postings_block_items(self) -> int | None:
        """Items of a block of postings, or None where there are none."""
    @property
    def ids(self) -> npt.NDArray[np.int64] | list[str] | None:
        """The ids, or None where they are the positions; a copy."""
    @property
    def metadata(self) -> str | None:
        """The user's JSON, or None."""
    @property
    def dictionary(self) -> npt.NDArray[np.float32] | None:
        """The atoms, shape (s, d), or None; a copy."""
    @property
    def mean(self) -> npt.NDArray[np.float32] | None:
        """What is added to every decoded item, shape (d,), or None; a copy."""

@final
class IndexWriter:
    """Writes an index file from batches of canonical codes."""

    def __new__(
        cls,
        path: str,
        dim: int,
        *,
        dictionary: npt.NDArray[np.float32] | None,
        mean: npt.NDArray[np.float32] | None,
        metric: str,
        value_bits: float,
        complete: bool,
        modes: list[str],
        unit_items: bool,
        reconstruction_cosine: float | None,
        metadata: str | None,
        codebooks: Index | None,
        codebook_sample: int,
        longest: int | None,
        shortest: int | None,
    ) -> IndexWriter:
        """Begin a file; ``codebooks`` lends its own and goes before ``value_bits``."""
    def add(
        self,
        indptr: npt.NDArray[np.uint64],
        latents: npt.NDArray[np.uint32],
        values: npt.NDArray[np.float32],
        dim: int,
        *,
        ids: npt.NDArray[np.int64] | list[str] | None,
        threads: int | None,
    ) -> None:
        """Take items."""
    def finish(self) -> int:
        """Write the file; the number of items."""
    def abort(self) -> None:
        """Give up."""
    def __len__(self) -> int: ...

def merge(paths: list[str], out: str, *, progress: Callable[[int], object] | None) -> int:
    """Join files into one; the number of items."""

def rescore(
    candidates: npt.NDArray[np.int64],
    queries: npt.NDArray[np.float64],
    k: int,
    *,
    metric: str,
    positions: npt.NDArray[np.uint64],
    rows: npt.NDArray[np.uint64],
    vectors: npt.NDArray[np.uint16] | npt.NDArray[np.float32] | npt.NDArray[np.float64],
    threads: int | None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Scores and positions of the best of the candidates (nq, m), by their vectors.

    Those are of the items at the ascending ``positions`` (p,), shape (p, d); uint16 stands for the
    bits of float16. ``rows`` (p,) are what errors call them. -1 stands for no candidate, and for
    no result.
    """

def extrapolated_atoms(
    atoms: npt.NDArray[np.float32], previous: npt.NDArray[np.float32], *, momentum: float
) -> npt.NDArray[np.float32]:
    """Unit atoms, ``momentum`` times the last round's step beyond ``atoms``, shape (s, d)."""

@final
class PursuitEncoder:
    """A dictionary's atoms with their Gram matrix, ready to encode."""

    def __new__(
        cls,
        atoms: npt.NDArray[np.float32],
        *,
        gram: str,
        memory_limit_bytes: int,
        threads: int | None,
    ) -> PursuitEncoder:
        """Scale the atoms (s, d) to unit norm and build the Gram matrix."""
    def encode(
        self,
        x: npt.NDArray[np.float32],
        *,
        k: int,
        method: str,
        refit_every: int,
        normalise: bool,
        first_row: int,
        threads: int | None,
        progress: Callable[[int], object] | None,
    ) -> tuple[
        npt.NDArray[np.uint64],
        npt.NDArray[np.uint32],
        npt.NDArray[np.float32],
        npt.NDArray[np.float32],
    ]:
        """Encode rows (n, d): indptr, latents, values, and each row's reconstruction cosine."""

@final
class DictionaryRound:
    """One round of learning: batches are added, then the atoms are solved for."""

    def __new__(cls, encoder: PursuitEncoder, *, memory_limit_bytes: int) -> DictionaryRound:
        """Begin a round over no rows."""
    def add(
        self,
        x: npt.NDArray[np.float32],
        *,
        k: int,
        refit_every: int,
        first_row: int,
        threads: int | None,
        progress: Callable[[int], object] | None,
    ) -> None:
        """Encode rows (n, d) by pursuit and add them to the sums."""
    def finish(
        self, *, regularisation: float, threads: int | None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """New atoms (s, d) and a report: cosine, items, usage, unused, duplicates."""
