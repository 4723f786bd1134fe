"""Learning a dictionary in closed form, and encoding by pursuit: what `Dictionary` calls.

Rounds of pursuit and dictionary update run in Rust; here items are cut into batches of
float32, so that neither arrays on disk nor streams are ever held whole. Knows nothing of
indexes, files or torch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_retrieval import _native
from sparse_retrieval._arrays import as_count, as_numbers, as_real, as_threads
from sparse_retrieval._rows import open_rows
from sparse_retrieval.codes import SparseCodes

#: Called with the rows done and the rows there are to do (None where a stream does not tell).
Progress = Callable[[int, "int | None"], None]

#: Rows of a batch: long enough for every thread, 12 MB at 384 columns.
BATCH_ROWS = 8192

#: Share of mean(diag(A^T A)) that holds an atom where it was (see `learn`).
REGULARISATION = 0.01

#: How far beyond its solution a round steps, in units of the step it took (see `learn`).
MOMENTUM = 0.8


@dataclass(frozen=True)
class FitRound:
    """How one round of learning went.

    Attributes
    ----------
    cosine : float
        Mean cosine of training rows and their decoded codes, with the atoms that the round
        began with.
    held_out_cosine : float or None
        The same over rows that no round learns from; None where none were held out.
    usage : ndarray of uint64, shape (s,)
        Training rows whose code holds each atom.
    unused, duplicates : int
        Atoms that were replaced: because no row used them, or because they nearly equalled
        another one.
    seconds : float
        Wall time of the round, held-out rows included.
    """

    cosine: float
    held_out_cosine: float | None
    usage: npt.NDArray[np.uint64]
    unused: int
    duplicates: int
    seconds: float

    @property
    def replaced(self) -> int:
        """Atoms replaced in all."""
        return self.unused + self.duplicates


@dataclass(frozen=True)
class Learnt:
    """Atoms of unit norm (s, d), the mean that was subtracted (d,) or None, and the rounds."""

    atoms: npt.NDArray[np.float32]
    mean: npt.NDArray[np.float32] | None
    rounds: tuple[FitRound, ...]


def default_memory_limit() -> int:
    """Half of the machine's memory in bytes, 8 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return 8 << 30


def _as_limit(memory_limit_bytes: int | None) -> int:
    if memory_limit_bytes is None:
        return default_memory_limit()
    return as_count(memory_limit_bytes, "memory_limit_bytes", least=0, most=2**63 - 1)


class Encoders:
    """The native encoder of some atoms, made on first use and kept.

    Its Gram matrix takes s^2 bytes with ``gram="int8"``, two and four times that with
    ``"int16"`` and ``"float32"``, and none with ``"free"``.
    """

    def __init__(self, atoms: npt.NDArray[np.float32]) -> None:
        self._atoms = atoms
        self._made: tuple[str, _native.PursuitEncoder] | None = None

    def get(
        self, gram: str, *, memory_limit_bytes: int | None = None, threads: int | None = None
    ) -> _native.PursuitEncoder:
        """The encoder with this kind of Gram matrix; the one made last is kept."""
        threads = as_threads(threads)
        if self._made is None or self._made[0] != gram:
            limit = _as_limit(memory_limit_bytes)
            encoder = _native.PursuitEncoder(
                self._atoms, gram=gram, memory_limit_bytes=limit, threads=threads
            )
            self._made = (gram, encoder)
        return self._made[1]


def encode(
    encoder: _native.PursuitEncoder,
    x: Any,
    *,
    dim: int,
    k: int,
    method: str = "pursuit",
    refit_every: int = 8,
    normalise: bool = True,
    mean: npt.NDArray[np.float32] | None = None,
    column: str | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> Iterator[SparseCodes]:
    """Codes of `x`, one `SparseCodes` a batch; see `Dictionary.encode`.

    Parameters
    ----------
    x : array_like, shape (n, d), iterator of such, or path
        An array (also a memmap, a file, or anything with a shape that slices to one) is read
        `BATCH_ROWS` rows at a time; batches of an iterator are taken as they come.
    dim : int
        Atoms of the dictionary, s.
    """
    k = as_count(k, "k")
    refit_every = as_count(refit_every, "refit_every")
    threads = as_threads(threads)
    if mean is not None and not normalise:
        raise ValueError(
            "normalise=False with a dictionary that subtracts a mean: the mean is one of unit "
            "rows; encode with normalise=True, or fit with subtract_mean=False"
        )
    x = open_rows(x, column)
    total = len(x) if _is_array(x) else None
    for first_row, batch in _batches(x):
        if mean is not None:
            batch = _centred(batch, mean)
        indptr, latents, values, _ = encoder.encode(
            batch,
            k=k,
            method=method,
            refit_every=refit_every,
            normalise=normalise and mean is None,
            first_row=first_row,
            threads=threads,
            progress=_shifted(progress, first_row, total),
        )
        yield SparseCodes.from_csr(indptr, latents, values, dim)
        if progress is not None:
            progress(first_row + len(batch), total)


def learn(
    x: Any,
    *,
    n_atoms: int | None = None,
    k: int = 32,
    rounds: int = 8,
    seed: int = 0,
    held_out: int = 0,
    sample: int | None = 1_000_000,
    subtract_mean: bool = False,
    initial: npt.NDArray[np.float32] | None = None,
    mean: npt.NDArray[np.float32] | None = None,
    regularisation: float = REGULARISATION,
    momentum: float = MOMENTUM,
    gram: str = "int8",
    memory_limit_bytes: int | None = None,
    column: str | None = None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> Learnt:
    """Learn atoms from items; see `Dictionary.fit`.

    Each round encodes all rows by pursuit, X ~ A W, and solves for the atoms in closed form,
    W <- normalise((A^T A + l I)^-1 (A^T X + l W)) with l = `regularisation` times the mean of
    A^T A's diagonal. The sums A^T A (s x s) and A^T X (s x d) are gathered batch by batch in
    double precision: 8 s (s + d) bytes, whatever n. Unused atoms, and those within cosine .99 of
    one that more rows use, become the residuals of the worst reconstructed rows. The next round
    starts `momentum` times the last step beyond the solution (Nesterov's extrapolation), from the
    solution itself after a round whose cosine fell.

    Parameters
    ----------
    initial : ndarray of float32, shape (s, d), optional
        Atoms to start from instead of `n_atoms` rows drawn from `x`.
    mean : ndarray of float32, shape (d,), optional
        With `initial`: the mean that its dictionary subtracts.
    """
    x = open_rows(x, column)
    if not _is_array(x):
        x = as_numbers(x, "x")
    _check_shape(x)
    k, rounds = as_count(k, "k"), as_count(rounds, "rounds", least=0)
    threads = as_threads(threads)
    seed = as_count(seed, "seed", least=0, most=2**64 - 1)
    regularisation = as_real(regularisation, "regularisation", least=0)
    momentum = as_real(momentum, "momentum", least=0, most=1)
    rng = np.random.default_rng(seed)
    held_rows, rows = _split(len(x), held_out, sample, rng)
    if subtract_mean and mean is None:
        mean = _mean_of(x, rows)
    if initial is None:
        if n_atoms is None:
            n_atoms = default_atoms(len(rows))
        initial = _draw(x, rows, as_count(n_atoms, "n_atoms", most=65_536), mean, rng)
    limit = _as_limit(memory_limit_bytes)
    atoms, previous = initial, None
    reports: list[FitRound] = []
    work = (len(rows) + len(held_rows)) * rounds
    for number in range(rounds):
        began = time.perf_counter()
        encoder = _native.PursuitEncoder(
            atoms, gram=gram, memory_limit_bytes=limit, threads=threads
        )
        done = number * (len(rows) + len(held_rows))
        held_cosine = None
        if len(held_rows):
            held_cosine = _mean_cosine(encoder, x, held_rows, mean, k, threads)
            done += len(held_rows)
        current = _native.DictionaryRound(encoder, memory_limit_bytes=limit)
        for first_row, batch in _selected(x, rows, mean):
            current.add(
                batch,
                k=k,
                refit_every=8,
                first_row=first_row,
                threads=threads,
                progress=_shifted(progress, done, work),
            )
            done += len(batch)
        solved, report = current.finish(regularisation=regularisation, threads=threads)
        if reports and report["cosine"] < reports[-1].cosine:
            previous = None  # it stepped too far: on from here without a run-up
        atoms = solved
        if previous is not None and momentum:
            atoms = _native.extrapolated_atoms(solved, previous, momentum=momentum)
        previous = solved
        reports.append(
            FitRound(
                cosine=report["cosine"],
                held_out_cosine=held_cosine,
                usage=report["usage"],
                unused=report["unused"],
                duplicates=report["duplicates"],
                seconds=time.perf_counter() - began,
            )
        )
        if progress is not None:
            progress(done, work)
    return Learnt(atoms, mean, tuple(reports))


def default_atoms(n: int) -> int:
    """Atoms for `n` rows: a power of two with at least 12 rows an atom, 4,096 at most."""
    return 1 << min(12, max(1, n // 12).bit_length() - 1)


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "__getitem__") and hasattr(x, "__len__")


def _check_shape(x: Any) -> None:
    if len(x.shape) != 2 or 0 in x.shape:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; expected (n, d) with at least one row and one column"
        )


def _as_batch(x: Any) -> npt.NDArray[np.float32]:
    """Rows as C-contiguous float32; what overflows becomes inf, which the core refuses by row."""
    with np.errstate(over="ignore"):
        batch = np.ascontiguousarray(as_numbers(x, "x"), dtype=np.float32)
    if batch.ndim != 2:
        raise ValueError(f"x has shape {batch.shape}; expected (n, d)")
    return batch


def _batches(x: Any) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """`x` in batches, each with the number of its first row."""
    if isinstance(x, Iterator):
        first_row = 0
        for batch in x:
            rows = _as_batch(batch)
            yield first_row, rows
            first_row += len(rows)
        return
    if not _is_array(x):
        x = as_numbers(x, "x")
    if len(x.shape) != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}; expected (n, d)")
    for first_row in range(0, max(len(x), 1), BATCH_ROWS):
        yield first_row, _as_batch(x[first_row : first_row + BATCH_ROWS])


def _selected(
    x: Any, rows: npt.NDArray[np.int64], mean: npt.NDArray[np.float32] | None
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """The rows `rows` (ascending) of `x` in batches, centred where there is a mean.

    The number given with a batch is that of its first row in `x` where rows are consecutive.
    """
    for start in range(0, len(rows), BATCH_ROWS):
        chosen = rows[start : start + BATCH_ROWS]
        first, last = int(chosen[0]), int(chosen[-1])
        consecutive = last - first + 1 == len(chosen)
        batch = _as_batch(x[first : last + 1] if consecutive else x[chosen])
        if not consecutive:
            _check_finite(batch, chosen)
        yield first, batch if mean is None else _centred(batch, mean)


def _check_finite(batch: npt.NDArray[np.float32], rows: npt.NDArray[np.int64]) -> None:
    wrong = np.flatnonzero(~np.isfinite(batch).all(axis=1))
    if len(wrong):
        raise ValueError(
            f"row {rows[wrong[0]]} of x holds NaN, infinity or a number beyond float32; every "
            "value must be finite"
        )


def _unit(batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    rows = batch.astype(np.float64)
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return rows / np.where(norms > 0, norms, 1.0)[:, None]


def _centred(
    batch: npt.NDArray[np.float32], mean: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Unit rows less the mean; zero rows stay zero."""
    if batch.shape[1] != len(mean):
        raise ValueError(f"x has {batch.shape[1]} columns; expected {len(mean)}")
    unit = _unit(batch)
    centred = unit - mean
    centred[~unit.any(axis=1)] = 0.0
    return centred.astype(np.float32)


def _mean_of(x: Any, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    total = np.zeros(x.shape[1])
    for _, batch in _selected(x, rows, None):
        total += _unit(batch).sum(axis=0)
    mean: npt.NDArray[np.float32] = (total / len(rows)).astype(np.float32)
    return mean


def _split(
    n: int, held_out: int, sample: int | None, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which rows are held out and which are learnt from, both ascending."""
    held_out = as_count(held_out, "held_out", least=0)
    if held_out >= n:
        raise ValueError(f"held_out is {held_out} but x has {n} rows; some must be learnt from")
    train = n - held_out
    if sample is not None:
        train = min(train, as_count(sample, "sample"))
    if train == n:
        return np.empty(0, np.int64), np.arange(n)
    order = rng.permutation(n)
    return np.sort(order[:held_out]), np.sort(order[held_out : held_out + train])


def _draw(
    x: Any,
    rows: npt.NDArray[np.int64],
    n_atoms: int,
    mean: npt.NDArray[np.float32] | None,
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """`n_atoms` distinct unit rows of `x`; directions at random where there are too few."""
    if n_atoms > len(rows):
        raise ValueError(
            f"n_atoms is {n_atoms} but there are {len(rows)} rows to learn from; ask for "
            f"n_atoms={default_atoms(len(rows))} (at least 12 rows an atom), or bring more rows"
        )
    chosen = np.sort(rng.choice(rows, n_atoms, replace=False))
    drawn = np.concatenate([_unit(batch) for _, batch in _selected(x, chosen, mean)])
    _, first = np.unique(drawn, axis=0, return_index=True)
    usable = np.zeros(n_atoms, dtype=bool)
    usable[first] = True
    usable &= drawn.any(axis=1)
    random = rng.standard_normal((int((~usable).sum()), drawn.shape[1]))
    drawn[~usable] = random / np.linalg.norm(random, axis=1, keepdims=True)
    return drawn.astype(np.float32)


def _mean_cosine(
    encoder: _native.PursuitEncoder,
    x: Any,
    rows: npt.NDArray[np.int64],
    mean: npt.NDArray[np.float32] | None,
    k: int,
    threads: int | None,
) -> float:
    """Mean cosine of the rows and their decoded codes; zero rows are left out."""
    total, count = 0.0, 0
    for first_row, batch in _selected(x, rows, mean):
        *_, cosines = encoder.encode(
            batch,
            k=k,
            method="pursuit",
            refit_every=8,
            normalise=True,
            first_row=first_row,
            threads=threads,
            progress=None,
        )
        total += float(cosines.sum(dtype=np.float64))
        count += int(batch.any(axis=1).sum())
    return total / max(count, 1)


def _shifted(
    progress: Progress | None, base: int, total: int | None
) -> Callable[[int], None] | None:
    if progress is None:
        return None
    return lambda done: progress(base + done, total)
