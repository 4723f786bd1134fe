"""What the page shows of one version of an index. numpy alone; knows nothing of HTTP."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_retrieval.evaluate import exact_top_k, pca_int8, principal_axes, recall_at
from sparse_retrieval.index import SparseIndex

#: Items whose codes are read at once while atoms are listed.
_BATCH = 65_536
#: Items that stand for an atom.
STRONGEST = 12
#: Neighbours of an item, and the depth of recall.
NEIGHBOURS = 10
#: Queries that recall is measured with, and rows that the plainest rival is made of, at most.
_QUERIES = 200
_ROWS = 200_000


class Atlas:
    """An index, read for people.

    Parameters
    ----------
    index : SparseIndex
    names : list of str, optional
        Line i names the item of id i.
    originals : ndarray of float, shape (n, d), optional
        The embeddings that were encoded, in the index's order; a memmap is read where needed.
    queries : ndarray of float, shape (nq, d), optional
        Held-out embeddings for the curve. Default: some of the originals, each without itself.

    Raises
    ------
    ValueError
        If originals or queries are of another shape than the index.
    """

    def __init__(
        self,
        index: SparseIndex,
        *,
        names: list[str] | None = None,
        originals: npt.NDArray[Any] | None = None,
        queries: npt.NDArray[Any] | None = None,
    ) -> None:
        for what, rows in (("originals", originals), ("queries", queries)):
            if rows is not None and (rows.ndim != 2 or rows.shape[1] != index.embedding_dim):
                raise ValueError(
                    f"{what} have shape {rows.shape}; this index holds a dictionary for "
                    f"{index.embedding_dim} columns"
                )
        if originals is not None and len(originals) != len(index):
            raise ValueError(
                f"originals have {len(originals)} rows for {len(index)} items; give one an item, "
                "in the index's order"
            )
        self.index = index
        self._names = names
        self._originals = originals
        self._queries = queries
        self.ids = index.ids
        # what takes long is worked out once; who asks for something else need not wait for it
        self._atoms_lock, self._curve_lock = threading.Lock(), threading.Lock()
        self._atoms: tuple[npt.NDArray[Any], ...] | None = None
        self._curve: dict[str, Any] | None = None

    def name(self, item: Any) -> str:
        """What an item is called: its name, else its id."""
        if self._names is not None and isinstance(item, int) and 0 <= item < len(self._names):
            return self._names[item]
        return str(item)

    def summary(self) -> dict[str, Any]:
        """What the index is, and what else was given."""
        stats = self.index.stats()
        shown = ("items", "dim", "embedding_dim", "metric", "modes", "value_bits")
        return {
            **{key: stats[key] for key in (*shown, "nonzeros_per_item", "bytes_per_item")},
            "original_bytes": None if self._originals is None else self._originals.shape[1] * 4,
            "has_originals": self._originals is not None,
            "first": self._shown(self.ids[0].item() if self.ids.dtype != object else self.ids[0])
            if len(self.ids)
            else None,
        }

    def find(self, text: str, limit: int = 30) -> list[dict[str, Any]]:
        """Items whose name or id holds the text; at the beginning first."""
        wanted = text.strip().lower()
        if not wanted:
            return [self._shown(item) for item in self.ids[:limit].tolist()]
        begins: list[Any] = []
        holds: list[Any] = []
        for item in self.ids.tolist():
            name = self.name(item).lower()
            if name.startswith(wanted):
                begins.append(item)
                if len(begins) == limit:
                    break
            elif len(holds) < limit and wanted in name:
                holds.append(item)
        return [self._shown(item) for item in (begins + holds)[:limit]]

    def item(self, item: Any) -> dict[str, Any]:
        """An item's atoms, strongest first, and its neighbours.

        Raises
        ------
        KeyError
            If no item has this id.
        """
        code = self.index.get([item])
        order = np.argsort(-np.abs(code.values), kind="stable")
        norm = float(np.linalg.norm(code.values)) or 1.0
        atoms = []
        for at in order.tolist():
            latent, value = int(code.latents[at]), float(code.values[at])
            stands_for = [one["name"] for one in self.atom(latent, value > 0)["items"][:3]]
            atoms.append({"latent": latent, "value": value / norm, "stands_for": stands_for})
        return {**self._shown(item), "atoms": atoms, **self._neighbours(item, code)}

    def atom(self, latent: int, positive: bool = True) -> dict[str, Any]:
        """The items that use an atom most, in one direction.

        Raises
        ------
        KeyError
            If there is no such atom.
        """
        if not 0 <= latent < self.index.dim:
            raise KeyError(f"there is no atom {latent}; atoms are 0 to {self.index.dim - 1}")
        positions, values, counts = self._listed()
        side = 0 if positive else 1
        kept = positions[side, latent] >= 0
        return {
            "latent": latent,
            "positive": positive,
            "used_by": int(counts[latent]),
            "items": [
                {**self._shown(self.ids[at].item() if self._numbers else self.ids[at]), "value": v}
                for at, v in zip(
                    positions[side, latent][kept].tolist(),
                    values[side, latent][kept].tolist(),
                    strict=True,
                )
            ],
        }

    @property
    def _numbers(self) -> bool:
        return self.ids.dtype != object

    def _shown(self, item: Any) -> dict[str, Any]:
        return {"id": item, "name": self.name(item)}

    def _neighbours(self, item: Any, code: Any) -> dict[str, Any]:
        """The nearest by code, each with the atoms that it shares, and the nearest by original."""
        k = min(NEIGHBOURS, len(self.ids) - 1)
        if k < 1:
            return {"by_code": [], "by_original": None, "shared": None}
        dense = self.index.embedding_dim is not None and "dense" in self.index.modes
        asked: Any = code
        at = int(np.flatnonzero(self.ids == item)[0])
        if dense:
            asked = self.index.reconstruct([item])
            if self._originals is not None:
                asked = np.asarray(self._originals[at : at + 1], dtype=np.float32)
        found = self.index.search(asked, k, exclude=[[item]])
        ids = [one for one in found.ids[0].tolist() if one is not None and one != -1]
        others = self.index.get(ids) if ids else None
        mine = dict(zip(code.latents.tolist(), code.values.tolist(), strict=True))
        by_code = []
        for row, (one, score) in enumerate(zip(ids, found.scores[0].tolist(), strict=False)):
            assert others is not None  # there are ids
            common = self._common(mine, others[row : row + 1])
            by_code.append({**self._shown(one), "score": score, "common": common})
        exact = None
        if self._originals is not None:
            exact = self._exact(at, k)
        shared = None if exact is None else len({e["id"] for e in exact} & set(ids))
        return {"by_code": by_code, "by_original": exact, "shared": shared}

    @staticmethod
    def _common(mine: dict[int, float], other: Any) -> list[dict[str, Any]]:
        """The latents that two codes share, by what each adds to their product."""
        pairs = zip(other.latents.tolist(), other.values.tolist(), strict=True)
        adds = [(mine[latent] * value, latent) for latent, value in pairs if latent in mine]
        adds.sort(key=lambda pair: (-abs(pair[0]), pair[1]))
        return [{"latent": latent, "adds": add} for add, latent in adds[:3]]

    def _exact(self, at: int, k: int) -> list[dict[str, Any]]:
        assert self._originals is not None  # who asks has looked
        query = np.asarray(self._originals[at : at + 1], dtype=np.float32)
        scores, positions = exact_top_k(self._originals, query, k + 1)
        ids = self.ids.tolist()
        pairs = zip(positions[0].tolist(), scores[0].tolist(), strict=True)
        kept = [(position, score) for position, score in pairs if position != at][:k]
        return [{**self._shown(ids[position]), "score": score} for position, score in kept]

    def _listed(self) -> tuple[npt.NDArray[Any], ...]:
        """For each atom and direction the positions and values of the strongest items."""
        with self._atoms_lock:
            if self._atoms is None:
                self._atoms = self._read_codes()
            return self._atoms

    def _read_codes(self) -> tuple[npt.NDArray[Any], ...]:
        shape = (2, self.index.dim, STRONGEST)
        positions = np.full(shape, -1, dtype=np.int64)
        values = np.zeros(shape, dtype=np.float32)
        counts = np.zeros(self.index.dim, dtype=np.int64)
        for first in range(0, len(self.ids), _BATCH):
            some = self.ids[first : first + _BATCH]
            code = self.index.get(some if self._numbers else some.tolist())
            at = first + np.repeat(np.arange(len(some)), np.diff(code.indptr).astype(np.int64))
            counts += np.bincount(code.latents, minlength=self.index.dim)
            for side, sign in enumerate((1, -1)):
                here = code.values * sign > 0
                _keep_strongest(
                    positions[side], values[side], code.latents[here], at[here], code.values[here]
                )
        return positions, values, counts

    def curve(self) -> dict[str, Any] | None:
        """Recall against bytes: prefixes of the rows, beside principal axes in 8 bits.

        Returns
        -------
        dict or None
            ``depth``, ``queries``, ``held_out``, and for ``ours`` and ``pca`` a list of setting,
            bytes an item and recall; None without originals.
        """
        if self._originals is None or "dense" not in self.index.modes or len(self.ids) < 2:
            return None
        with self._curve_lock:
            if self._curve is None:
                self._curve = self._measured()
            return self._curve

    def _measured(self) -> dict[str, Any]:
        assert self._originals is not None  # who asks has looked
        n, rng = len(self.ids), np.random.default_rng(0)
        held_out = self._queries is not None
        depth = min(NEIGHBOURS, n - 1)
        if self._queries is not None:
            queries = np.asarray(self._queries[:_QUERIES], dtype=np.float32)
            own = None
        else:
            own = np.sort(rng.choice(n, size=min(_QUERIES, n), replace=False))
            queries = np.asarray(self._originals[own], dtype=np.float32)
        true = _without(exact_top_k(self._originals, queries, depth + 1)[1], own, depth)
        wide = int(self.index._native.width or 0)
        points = []
        for width in sorted({w for w in (2, 4, 8, 12, 16, 24, 32, 48, 64) if w < wide} | {wide}):
            k_row = width if 0 < width < wide else None
            found = self._positions(self.index.search(queries, depth + 1, k_row=k_row).ids)
            share = width / wide if wide else 1.0
            points.append(
                {
                    "setting": f"{width} nonzeros" if wide else "whole rows",
                    "bytes": _scale_bytes(self.index)
                    + (self.index.bytes_per_item - _scale_bytes(self.index)) * share,
                    "recall": recall_at(_without(found, own, depth), true, depth),
                }
            )
        return {
            "depth": depth,
            "queries": len(queries),
            "held_out": held_out,
            "ours": points,
            "pca": self._rival(queries, true, own, depth) if n <= _ROWS else [],
        }

    def _rival(self, queries: Any, true: Any, own: Any, depth: int) -> list[dict[str, Any]]:
        x = np.asarray(self._originals, dtype=np.float32)
        axes = principal_axes(x)
        points = []
        for n_components in (8, 16, 32, 48, 64, 96, 128):
            if n_components > x.shape[1]:
                break
            rival = pca_int8(x, queries, n_components, axes=axes)
            found = exact_top_k(rival.items, rival.queries, depth + 1)[1]
            points.append(
                {
                    "setting": f"{n_components} axes",
                    "bytes": rival.bytes_per_item,
                    "recall": recall_at(_without(found, own, depth), true, depth),
                }
            )
        return points

    def _positions(self, ids: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        if self._numbers:
            order = np.argsort(self.ids, kind="stable")
            found = order[
                np.searchsorted(self.ids, ids.ravel(), sorter=order).clip(max=len(order) - 1)
            ]
            return np.where(ids.ravel() == -1, -1, found).reshape(ids.shape)
        where = {one: at for at, one in enumerate(self.ids.tolist())}
        flat = [where.get(one, -1) for one in ids.ravel().tolist()]
        return np.asarray(flat, dtype=np.int64).reshape(ids.shape)


def _keep_strongest(
    positions: npt.NDArray[np.int64],
    values: npt.NDArray[np.float32],
    latents: npt.NDArray[Any],
    at: npt.NDArray[np.int64],
    new: npt.NDArray[np.float32],
) -> None:
    """Let the strongest of a batch into each atom's list, lower positions first among equals."""
    kept = positions >= 0
    every = np.nonzero(kept)[0]
    latents = np.concatenate([every, latents.astype(np.int64)])
    at = np.concatenate([positions[kept], at])
    new = np.concatenate([values[kept], new])
    order = np.lexsort((at, -np.abs(new), latents))
    latents, at, new = latents[order], at[order], new[order]
    begins = np.searchsorted(latents, np.arange(len(positions)))
    place = np.arange(len(latents)) - begins[latents]
    first = place < positions.shape[1]
    positions[latents[first], place[first]] = at[first]
    values[latents[first], place[first]] = new[first]


def _without(
    found: npt.NDArray[np.int64], own: npt.NDArray[np.int64] | None, depth: int
) -> npt.NDArray[np.int64]:
    """The first ``depth`` that are not the query itself."""
    if own is None:
        return found[:, :depth]
    kept = np.empty((len(found), depth), dtype=np.int64)
    for row, one in enumerate(own.tolist()):
        kept[row] = found[row][found[row] != one][:depth]
    return kept


def _scale_bytes(index: SparseIndex) -> float:
    """Bytes an item that do not shrink with its row."""
    sections = index.stats()["sections"]
    return sum(s["bytes_per_item"] or 0.0 for s in sections if s["name"].startswith("scales"))


def load_matrix(path: str | None) -> npt.NDArray[Any] | None:
    """Map embeddings of an ``.npy`` file.

    Raises
    ------
    OSError, ValueError
        If it cannot be read, or is none.
    """
    if path is None:
        return None
    if Path(path).suffix != ".npy":
        raise ValueError(f"{path}: expected an .npy file of embeddings")
    try:
        loaded: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: is not a readable .npy file of numbers ({error})") from None
    if loaded.ndim != 2 or loaded.dtype.kind != "f":
        raise ValueError(f"{path}: holds {loaded.dtype} of shape {loaded.shape}, expected floats")
    return loaded
