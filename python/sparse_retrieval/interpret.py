"""What latents stand for, and why two things match: answers made of items and latents.

An atom is read by the items that use it most; a match is the sum of what each latent of the item
adds to its score. numpy alone. Knows codes, dictionaries and indexes; draws nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sparse_retrieval._arrays import as_count, as_rows
from sparse_retrieval._ids import as_ids
from sparse_retrieval.codes import SparseCodes, as_codes

if TYPE_CHECKING:
    from sparse_retrieval.dictionary import Dictionary
    from sparse_retrieval.index import SparseIndex

#: Items whose codes are unpacked at once: 16 MB at k = 32.
_BATCH_ITEMS = 1 << 16


class Use(NamedTuple):
    """An item that uses an atom.

    Attributes
    ----------
    id : int or str
        The item's position, or its id where an index was described.
    name : str or None
        Its name, where names were given.
    value : float
        The atom's value in the item's code.
    """

    id: Any
    name: str | None
    value: float


@dataclass(frozen=True)
class AtomDescription:
    """What an atom stands for, by the items that use it; `str` of it is a small table.

    Attributes
    ----------
    atom : int
        The latent.
    uses, items : int
        Items whose code holds it, of so many.
    positive, negative : tuple of Use
        The items of the largest positive and of the largest negative values. The two sides of an
        atom often stand for different things.
    similar : tuple of (int, float)
        The atoms nearest to this one, and their cosines: largest absolute values first.
    """

    atom: int
    uses: int
    items: int
    positive: tuple[Use, ...]
    negative: tuple[Use, ...]
    similar: tuple[tuple[int, float], ...]

    @property
    def share(self) -> float:
        """The share of items that use the atom; 0 of no items."""
        return self.uses / self.items if self.items else 0.0

    def __str__(self) -> str:
        lines = [f"atom {self.atom}: used by {self.uses} of {self.items} items ({self.share:.2%})"]
        for use in self.positive + self.negative:
            lines.append(f"  {use.value:+.3f}  {use.id if use.name is None else use.name}")
        near = ", ".join(f"{atom} ({cosine:+.2f})" for atom, cosine in self.similar)
        return "\n".join([*lines, f"  similar atoms: {near}"] if near else lines)


class Contribution(NamedTuple):
    """What one latent of an item adds to a score.

    Attributes
    ----------
    latent : int
    item_value : float
        Its value in the item's code.
    query_value : float or None
        Its value in the query's code, 0 where only the item has it; None for a dense query,
        which has no code.
    weight : float
        The query's weight of the latent, u: ``score`` is the weight times the item's value, times
        the item's scale.
    score : float
        What it adds.
    """

    latent: int
    item_value: float
    query_value: float | None
    weight: float
    score: float


@dataclass(frozen=True)
class MatchExplanation:
    """Why an item has the score that it has; `str` of it is a small table.

    Attributes
    ----------
    id : int or str
        The item.
    mode : str
        As `SparseIndex.search` compares.
    score : float
        As `SparseIndex.search` returns it.
    contributions : tuple of Contribution
        One a latent of the item, those that add or take most first; in mode "sparse" the latents
        that the query has too, others add nothing. Their scores and ``mean_score`` sum up to
        the score, within half a thousandth of their absolute sum (scales of values coded by
        rank are stored in half precision).
    mean_score : float
        What the dictionary's mean adds; 0 without one.
    """

    id: Any
    mode: str
    score: float
    contributions: tuple[Contribution, ...]
    mean_score: float

    @property
    def shared(self) -> tuple[Contribution, ...]:
        """The contributions of latents that query and item both have."""
        return tuple(part for part in self.contributions if part.query_value)

    def __str__(self) -> str:
        lines = [f"item {self.id}: {self.mode} score {self.score:.4f}"]
        for part in self.contributions:
            both = " (in both)" if part.query_value else ""
            lines.append(f"  {part.score:+.4f}  latent {part.latent}{both}")
        if self.mean_score:
            lines.append(f"  {self.mean_score:+.4f}  the mean")
        return "\n".join(lines)


def describe(
    dictionary: Dictionary, atom: Any, codes: Any, *, names: Any = None, top: int = 10
) -> AtomDescription:
    """What an atom stands for; see `Dictionary.describe`."""
    from sparse_retrieval.index import SparseIndex

    atom = as_count(atom, "atom", least=0, most=dictionary.n_atoms - 1)
    top = as_count(top, "top")
    if isinstance(codes, SparseIndex):
        ids = codes.ids
        parts = [
            codes.get(ids[first : first + _BATCH_ITEMS])
            for first in range(0, len(ids), _BATCH_ITEMS)
        ]
        dim, n = codes.dim, len(ids)
        found = [_values_of(part, atom) for part in parts]
    else:
        items = as_codes(codes, dim=dictionary.n_atoms)
        dim, n, ids = items.dim, len(items), None
        parts, found = [items], [_values_of(items, atom)]
    if dim != dictionary.n_atoms:
        raise ValueError(f"codes have {dim} latents; expected {dictionary.n_atoms}, the atoms")
    names = _as_names(names, n)
    starts = np.cumsum([0] + [len(part) for part in parts])
    rows = np.concatenate(
        [np.empty(0, np.int64)]
        + [row + start for (row, _), start in zip(found, starts[:-1], strict=True)]
    )
    values = np.concatenate([np.empty(0, np.float32)] + [value for _, value in found])

    def uses(order: npt.NDArray[Any]) -> tuple[Use, ...]:
        return tuple(
            Use(
                int(rows[at]) if ids is None else ids[rows[at]],
                None if names is None else names[rows[at]],
                float(values[at]),
            )
            for at in order[:top]
        )

    ascending = np.argsort(values, kind="stable")
    descending = np.argsort(-values, kind="stable")  # of equal values lower positions first
    return AtomDescription(
        atom=atom,
        uses=len(values),
        items=n,
        positive=uses(descending[: int((values > 0).sum())]),
        negative=uses(ascending[: int((values < 0).sum())]),
        similar=_similar(dictionary, atom, min(top, 5)),
    )


def _values_of(codes: SparseCodes, latent: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Rows that hold the latent, and its value in each."""
    at = np.flatnonzero(codes.latents == latent)
    rows = np.searchsorted(codes.indptr, at.astype(np.uint64), side="right") - 1
    return rows, codes.values[at]


def _similar(dictionary: Dictionary, atom: int, top: int) -> tuple[tuple[int, float], ...]:
    cosines = dictionary.atoms @ dictionary.atoms[atom]
    order = np.argsort(-np.abs(cosines), kind="stable")
    others = order[order != atom][:top]
    return tuple((int(other), float(cosines[other])) for other in others)


def _as_names(names: Any, n: int) -> Sequence[str] | None:
    if names is None:
        return None
    if isinstance(names, str):
        raise TypeError(f"names is {names!r}; expected a sequence of strings, one an item")
    listed = [str(name) for name in names]
    if len(listed) != n:
        raise ValueError(f"there are {len(listed)} names for {n} items; expected one an item")
    return listed


def explain_match(index: SparseIndex, query: Any, id: Any, *, mode: Any = None) -> MatchExplanation:
    """Why an item has its score; see `SparseIndex.explain_match`."""
    item = index.get([id])  # KeyError names an id that is not there
    asked = index._asked(query, mode, None)
    if len(asked) != 1:
        raise ValueError(f"there are {len(asked)} queries; expected one")
    mode = index._mode_for(asked, mode)
    score = float(index.search(query, 1, mode=mode, filter=as_ids([id])).scores.reshape(-1)[0])
    codes = asked if isinstance(asked, SparseCodes) else None
    of_query = None if codes is None else codes.to_dense()[0].astype(np.float64)
    if mode == "sparse":
        assert of_query is not None  # the mode compares codes with codes
        weights, mean_score = _unit(of_query) if index.metric == "cosine" else of_query, 0.0
        scale = _inverse_norm(item.values) if index.metric == "cosine" else 1.0
    else:
        weights, mean_score, scale = _compared_in_embedding_space(index, item, asked)
    parts = [
        Contribution(
            latent=int(latent),
            item_value=float(value),
            query_value=None if of_query is None else float(of_query[latent]),
            weight=float(weights[latent]),
            score=float(weights[latent] * value * scale),
        )
        for latent, value in zip(item.latents, item.values.astype(np.float64), strict=True)
    ]
    if mode == "sparse":
        parts = [part for part in parts if part.query_value]
    parts.sort(key=lambda part: (-abs(part.score), part.latent))
    return MatchExplanation(id, mode, score, tuple(parts), mean_score)


def _compared_in_embedding_space(
    index: SparseIndex, item: SparseCodes, asked: Any
) -> tuple[npt.NDArray[np.float64], float, float]:
    """Weights ``u = W q``, what the mean adds, and the item's scale."""
    dictionary = index.dictionary
    assert dictionary is not None  # without one there are no such modes
    if isinstance(asked, SparseCodes):
        row = dictionary.decode(asked)[0].astype(np.float64)
    else:
        row = as_rows(asked, "query", np.float64)[0]
    scale = 1.0
    if index.metric == "cosine":
        row = _unit(row)
        if not index.unit_items:
            scale = _inverse_norm(dictionary.decode(item))
    mean_score = 0.0 if dictionary.mean is None else float(dictionary.mean @ row)
    return dictionary.atoms.astype(np.float64) @ row, mean_score, scale


def _inverse_norm(values: npt.NDArray[Any]) -> float:
    norm = float(np.linalg.norm(values.astype(np.float64)))
    return 1.0 / norm if norm > 0 else 0.0


def _unit(row: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return row * _inverse_norm(row)
