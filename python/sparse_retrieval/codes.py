"""Sparse codes in memory: a validated, immutable compressed-sparse-row container.

Knows nothing of dictionaries or indexes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_retrieval import _native
from sparse_retrieval._arrays import as_count, as_numbers, as_rows
from sparse_retrieval._extras import require
from sparse_retrieval._files import replacing


class SparseCodes:
    """Short signed rows over ``dim`` latents.

    In canonical form: the latents of a row ascend, no value is zero, NaN or infinite. The
    arrays are read-only.

    Parameters
    ----------
    indices : array_like of int, shape (n, k)
        Latents of each row, in any order. The (k,) latents of one row are taken as (1, k).
    values : array_like of float, shape (n, k)
        The value of each latent; stored as float32. Zeros are dropped (so rows may be padded
        with them, whatever their latent).
    dim : int
        Number of latents, at most 2^31 - 1.

    Attributes
    ----------
    indptr : ndarray of uint64, shape (n + 1,)
        Row ``i`` is ``latents[indptr[i]:indptr[i + 1]]`` and the same of ``values``.
    latents : ndarray of uint32, shape (nnz,)
    values : ndarray of float32, shape (nnz,)
    dim : int
        Number of latents.

    Raises
    ------
    TypeError
        If indices are not integers or values not real numbers.
    ValueError
        If shapes differ, a latent is not in ``0..dim``, a nonzero latent appears twice in a
        row, or a value is not finite in float32; the message names the row.

    Examples
    --------
    >>> import sparse_retrieval as sr
    >>> codes = sr.SparseCodes([[7, 2], [5, 0]], [[0.5, -1.0], [2.0, 0.0]], dim=8)
    >>> codes
    SparseCodes(2 rows over 8 latents, 3 nonzeros)
    >>> codes.to_dense()[0, [2, 7]].tolist()
    [-1.0, 0.5]
    """

    __slots__ = ("dim", "indptr", "latents", "values")

    indptr: npt.NDArray[np.uint64]
    latents: npt.NDArray[np.uint32]
    values: npt.NDArray[np.float32]
    dim: int

    def __init__(self, indices: Any, values: Any, *, dim: int) -> None:
        index_array = as_numbers(indices, "indices")
        value_array = as_numbers(values, "values")
        if index_array.ndim not in (1, 2) or index_array.shape != value_array.shape:
            raise ValueError(
                f"indices have shape {index_array.shape} and values {value_array.shape}; "
                "expected the same shape (n, k) for both"
            )
        index_array, value_array = np.atleast_2d(index_array), np.atleast_2d(value_array)
        pads = value_array == 0
        if pads.any():  # which are dropped, so that their latents need not be any
            index_array = np.where(pads, 0, index_array)
        n, k = index_array.shape
        indptr = np.arange(n + 1, dtype=np.int64) * k
        self._fill(indptr, index_array.reshape(-1), value_array.reshape(-1), dim)

    def _fill(self, indptr: Any, indices: Any, values: Any, dim: int) -> None:
        dim = as_count(dim, "dim")
        indptr = as_numbers(indptr, "indptr")
        indices = as_numbers(indices, "indices")
        values = as_numbers(values, "values")
        for name, array in (("indptr", indptr), ("indices", indices)):
            # an empty list has no dtype of its own: numpy calls it float64
            if array.dtype.kind not in "iu" and array.size:
                raise TypeError(f"{name} has dtype {array.dtype}; expected integers")
        for name, array in (("indptr", indptr), ("indices", indices), ("values", values)):
            if array.ndim != 1:
                raise ValueError(f"{name} has shape {array.shape}; expected one axis")
        if indices.dtype not in (np.int32, np.int64, np.uint32):
            indices = _as_int64(indices, "indices")
        with np.errstate(over="ignore", invalid="ignore"):
            narrow = np.ascontiguousarray(values, dtype=np.float32)
        arrays = _native.canonical_codes(
            np.ascontiguousarray(_as_int64(indptr, "indptr")),
            np.ascontiguousarray(indices),
            narrow,
            dim,
        )
        self._take(*arrays, dim)

    def _take(
        self,
        indptr: npt.NDArray[np.uint64],
        latents: npt.NDArray[np.uint32],
        values: npt.NDArray[np.float32],
        dim: int,
    ) -> None:
        for name, array in (("indptr", indptr), ("latents", latents), ("values", values)):
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        object.__setattr__(self, "dim", dim)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"SparseCodes is immutable; {name} cannot be set")

    def __reduce__(self) -> tuple[Any, ...]:
        return (SparseCodes.from_csr, (self.indptr, self.latents, self.values, self.dim))

    @classmethod
    def from_csr(cls, indptr: Any, indices: Any, values: Any, dim: int) -> SparseCodes:
        """Codes from the three arrays of a compressed sparse row matrix.

        Parameters
        ----------
        indptr : array_like of int, shape (n + 1,)
            Ascending from 0 to nnz.
        indices : array_like of int, shape (nnz,)
            Latents, in any order within a row.
        values : array_like of float, shape (nnz,)
        dim : int
            Number of latents.

        Raises
        ------
        TypeError, ValueError
            As the constructor; also where ``indptr`` does not ascend from 0 to nnz, as a
            32-bit count that overflowed does not.
        """
        codes = cls.__new__(cls)
        codes._fill(indptr, indices, values, dim)
        return codes

    @classmethod
    def from_scipy(cls, matrix: Any) -> SparseCodes:
        """Codes from any scipy sparse matrix or array of shape (n, dim), or (dim,).

        Raises
        ------
        TypeError
            If it is not sparse, or not of real numbers.
        ValueError
            As the constructor. Duplicate entries are refused, not added up: call
            ``sum_duplicates`` if they should be.
        """
        if not _is_scipy_sparse(matrix):
            raise TypeError(f"expected a scipy sparse matrix, got {type(matrix).__name__}")
        if matrix.ndim == 1:
            matrix = matrix.reshape(1, -1)
        csr = matrix.tocsr() if matrix.format != "coo" else _csr_of_coo(matrix)
        return cls.from_csr(csr.indptr, csr.indices, csr.data, csr.shape[1])

    @classmethod
    def from_arrow(
        cls, data: Any, *, dim: int | None = None, column: str | None = None
    ) -> SparseCodes:
        """Codes from an Arrow column of lists of structs ``latent`` and ``value``.

        Parameters
        ----------
        data : pyarrow array, chunked array, record batch or table, or polars Series or DataFrame
            Or whatever else exports Arrow data through the C interface.
        dim : int, optional
            Number of latents. Default: what the column's metadata says.
        column : str, optional
            Of a table. Default: the only column of codes.

        Returns
        -------
        SparseCodes
            Over the column's own memory where that is one chunk in canonical form, with
            ``uint32`` latents and ``float32`` values, as :meth:`to_arrow` makes it. Its memory
            must not be written to, which Arrow asks of everyone.

        Raises
        ------
        ImportError
            If pyarrow is not installed.
        TypeError
            If there is no such column.
        ValueError
            If something is null, nothing tells the number of latents, or as the constructor.
        """
        from sparse_retrieval.integrations import arrow

        return arrow.from_arrow(data, dim=dim, column=column)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SparseCodes:
        """Read a safetensors file that :meth:`save` wrote.

        Raises
        ------
        ImportError
            If safetensors is not installed.
        OSError
            If the file cannot be read.
        ValueError
            If it is not such a file, or what it holds is not sound.
        """
        safetensors = require("safetensors", "SparseCodes.load")
        try:
            with safetensors.safe_open(os.fspath(path), framework="numpy") as file:
                metadata = file.metadata() or {}
                parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise ValueError(f"{os.fspath(path)} is not a safetensors file: {error}") from None
        if set(parts) != {"indptr", "latents", "values"} or not metadata.get("dim", "").isdigit():
            raise ValueError(
                f"{os.fspath(path)} holds {sorted(parts)} and metadata {sorted(metadata)}; "
                "expected indptr, latents and values, and dim, as SparseCodes.save writes them"
            )
        return cls.from_csr(
            parts["indptr"], parts["latents"], parts["values"], int(metadata["dim"])
        )

    @classmethod
    def from_dense(cls, x: Any) -> SparseCodes:
        """Codes from the nonzeros of a dense array of shape (n, dim), or (dim,).

        Raises
        ------
        TypeError, ValueError
            As the constructor.
        """
        rows = as_rows(x, "codes", np.float32)
        row, latents = np.nonzero(rows)
        indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(rows)))])
        return cls.from_csr(indptr, latents, rows[row, latents], rows.shape[1])

    @classmethod
    def from_torch(cls, tensor: Any) -> SparseCodes:
        """Codes from a torch tensor of shape (n, dim): sparse COO, sparse CSR or dense.

        Raises
        ------
        TypeError
            If it is not a tensor, or of another layout.
        ValueError
            As the constructor.
        """
        torch = require("torch", "SparseCodes.from_torch")
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"expected a torch tensor, got {type(tensor).__name__}")
        tensor = tensor.detach().cpu()
        if tensor.layout == torch.strided:
            return cls.from_dense(tensor)
        if tensor.ndim != 2:
            raise ValueError(f"the tensor has shape {tuple(tensor.shape)}; expected (n, dim)")
        if tensor.layout == torch.sparse_coo:
            # coalescing adds up duplicates, which are refused here as everywhere
            row, latent = tensor._indices().numpy()
            order = np.argsort(row, kind="stable")
            counts = np.bincount(row, minlength=tensor.shape[0])
            return cls.from_csr(
                np.concatenate([[0], np.cumsum(counts)]),
                latent[order],
                as_numbers(tensor._values(), "values")[order],
                tensor.shape[1],
            )
        if tensor.layout == torch.sparse_csr:
            return cls.from_csr(
                tensor.crow_indices().numpy(),
                tensor.col_indices().numpy(),
                as_numbers(tensor.values(), "values"),
                tensor.shape[1],
            )
        raise TypeError(f"the tensor's layout is {tensor.layout}; expected sparse_coo, sparse_csr")

    @classmethod
    def concatenate(cls, parts: Sequence[SparseCodes]) -> SparseCodes:
        """The rows of several codes over the same latents, one after the other.

        Raises
        ------
        ValueError
            If there is no part, or their ``dim`` differ.
        """
        dims = {part.dim for part in parts}
        if len(dims) != 1:
            raise ValueError(f"codes have dims {sorted(dims)}; expected one dim for all parts")
        lengths = np.concatenate([np.diff(part.indptr) for part in parts])
        indptr = np.zeros(len(lengths) + 1, dtype=np.uint64)
        np.cumsum(lengths, out=indptr[1:])
        codes = cls.__new__(cls)
        codes._take(
            indptr,
            np.concatenate([part.latents for part in parts]),
            np.concatenate([part.values for part in parts]),
            dims.pop(),
        )
        return codes

    def to_scipy(self, *, copy: bool = True) -> Any:
        """The codes as a ``scipy.sparse.csr_array`` of shape (n, dim) and float32.

        Parameters
        ----------
        copy : bool, default True
            False shares the values and, below 2^31 nonzeros, the latents; the matrix can then
            not be changed in place, and the few routines that insist on writable arrays refuse
            it.
        """
        sparse = require("scipy.sparse", "SparseCodes.to_scipy")
        index = np.int32 if max(self.nnz, self.dim) < 2**31 else np.int64
        if copy:
            parts = (self.values.copy(), self.latents.astype(index), self.indptr.astype(index))
            return sparse.csr_array(parts, shape=self.shape)
        # latents are below 2^31: the same bits as int32
        latents = self.latents.view(np.int32).astype(index, copy=False)
        matrix = sparse.csr_array(
            (self.values, latents, self.indptr.astype(index)), shape=self.shape, copy=False
        )
        matrix.has_canonical_format = True  # known, so that scipy does not try to sort in place
        return matrix

    def to_arrow(self) -> Any:
        """The codes as a ``pyarrow.LargeListArray`` of structs ``latent``, ``value``; no copy.

        Raises
        ------
        ImportError
            If pyarrow is not installed.
        """
        from sparse_retrieval.integrations import arrow

        return arrow.to_arrow(self)

    def __arrow_c_array__(self, requested_schema: object = None) -> tuple[object, object]:
        """Export by Arrow's C interface: ``pyarrow.array(codes)``, ``polars.Series(codes)``."""
        exported: tuple[object, object] = self.to_arrow().__arrow_c_array__(requested_schema)
        return (self.__arrow_c_schema__(), exported[1]) if requested_schema is None else exported

    def __arrow_c_schema__(self) -> object:
        """The schema of that export; its metadata hold ``dim``."""
        from sparse_retrieval.integrations import arrow

        return arrow.field_of(self.dim).__arrow_c_schema__()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file, which appears whole or not at all.

        Tensors ``indptr`` (int64), ``latents`` (uint32) and ``values`` (float32), and ``dim``
        among the metadata.

        Raises
        ------
        ImportError
            If safetensors is not installed.
        OSError
            If the file cannot be written.
        """
        safetensors = require("safetensors.numpy", "SparseCodes.save")
        tensors = {
            "indptr": self.indptr.view(np.int64),
            "latents": self.latents,
            "values": self.values,
        }
        with replacing(path) as temporary:
            safetensors.save_file(tensors, temporary, metadata={"dim": str(self.dim)})

    def to_dense(self) -> npt.NDArray[np.float32]:
        """The codes as a dense float32 array of shape (n, dim)."""
        dense = np.zeros(self.shape, dtype=np.float32)
        dense[self._row_of_nonzeros(), self.latents] = self.values
        return dense

    def to_torch(self, *, layout: str = "coo") -> Any:
        """The codes as a sparse torch tensor of shape (n, dim) and float32; a copy.

        Parameters
        ----------
        layout : {"coo", "csr"}, default "coo"
            Coalesced coordinates, or compressed rows with int64 indices. Both are copies: torch
            knows no tensor that cannot be written to.

        Raises
        ------
        ImportError
            If torch is not installed.
        ValueError
            For another layout.
        """
        torch = require("torch", "SparseCodes.to_torch")
        if layout not in ("coo", "csr"):
            raise ValueError(f'layout is {layout!r}; expected "coo" or "csr"')
        if layout == "csr":
            return torch.sparse_csr_tensor(
                torch.from_numpy(self.indptr.astype(np.int64)),
                torch.from_numpy(self.latents.astype(np.int64)),
                torch.from_numpy(self.values.copy()),
                size=self.shape,
                check_invariants=False,
            )
        indices = np.stack([self._row_of_nonzeros(), self.latents.astype(np.int64)])
        return torch.sparse_coo_tensor(
            torch.from_numpy(indices),
            torch.from_numpy(self.values.copy()),
            size=self.shape,
            is_coalesced=True,  # canonical form is sorted and without duplicates
            check_invariants=False,
        )

    def top(self, k: int) -> SparseCodes:
        """The ``k`` nonzeros of largest magnitude of each row; of equal ones, lower latents.

        Raises
        ------
        TypeError, ValueError
            If ``k`` is not an integer of at least 1.
        """
        k = as_count(k, "k")
        row = self._row_of_nonzeros()
        order = np.lexsort((self.latents, -np.abs(self.values), row))
        rank = np.arange(self.nnz) - self.indptr[:-1].astype(np.int64)[row]
        kept = np.sort(order[rank < k])  # back in the order of rows and latents
        return self._select(np.minimum(np.diff(self.indptr).astype(np.int64), k), kept)

    def _row_of_nonzeros(self) -> npt.NDArray[np.int64]:
        return np.repeat(np.arange(len(self)), np.diff(self.indptr).astype(np.int64))

    def _select(self, lengths: npt.NDArray[np.int64], kept: npt.NDArray[Any]) -> SparseCodes:
        """Rows of these lengths, made of these nonzeros, which are in canonical order."""
        indptr = np.zeros(len(lengths) + 1, dtype=np.uint64)
        np.cumsum(lengths, out=indptr[1:])
        codes = SparseCodes.__new__(SparseCodes)
        codes._take(indptr, self.latents[kept], self.values[kept], self.dim)
        return codes

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def shape(self) -> tuple[int, int]:
        """``(n, dim)``."""
        return len(self), self.dim

    @property
    def nnz(self) -> int:
        """Number of nonzeros in all rows."""
        return len(self.values)

    def __getitem__(self, rows: Any) -> SparseCodes:
        """Rows by a slice, an array of positions, a boolean mask, or one position.

        The result is always ``SparseCodes``; one position gives one row.

        Raises
        ------
        IndexError
            If a position is out of range or the selection has more than one axis.
        """
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step == 1:
                stop = max(start, stop)
                first, last = int(self.indptr[start]), int(self.indptr[stop])
                codes = SparseCodes.__new__(SparseCodes)
                codes._take(
                    self.indptr[start : stop + 1] - self.indptr[start],
                    self.latents[first:last],
                    self.values[first:last],
                    self.dim,
                )
                return codes
        selected = np.atleast_1d(np.arange(len(self))[rows])
        if selected.ndim != 1:
            raise IndexError(f"rows were selected with {selected.ndim} axes; expected one")
        starts = self.indptr[:-1].astype(np.int64)[selected]
        lengths = np.diff(self.indptr).astype(np.int64)[selected]
        shifts = np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
        return self._select(lengths, shifts + np.arange(int(lengths.sum())))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SparseCodes):
            return NotImplemented
        return (
            self.dim == other.dim
            and np.array_equal(self.indptr, other.indptr)
            and np.array_equal(self.latents, other.latents)
            and np.array_equal(self.values, other.values)
        )

    __hash__ = None  # type: ignore[assignment]  # equality compares arrays, as numpy's does

    def __repr__(self) -> str:
        return f"SparseCodes({len(self)} rows over {self.dim} latents, {self.nnz} nonzeros)"


def as_codes(x: Any, *, dim: int | None = None) -> SparseCodes:
    """Codes from whatever holds codes.

    Parameters
    ----------
    x : SparseCodes, scipy sparse matrix, torch sparse tensor, or (indices, values)
        The last needs ``dim``.
    dim : int, optional
        Number of latents, for (indices, values).

    Raises
    ------
    TypeError
        If it is none of these.
    ValueError
        As :class:`SparseCodes`.
    """
    if isinstance(x, SparseCodes):
        return x
    if _is_scipy_sparse(x):
        return SparseCodes.from_scipy(x)
    if _is_torch_sparse(x):
        return SparseCodes.from_torch(x)
    if isinstance(x, tuple) and len(x) == 2:
        if dim is None:
            raise ValueError("codes given as (indices, values) need dim, the number of latents")
        return SparseCodes(x[0], x[1], dim=dim)
    raise TypeError(
        f"got {type(x).__name__}; expected SparseCodes, a scipy sparse matrix, a torch sparse "
        "tensor, or a pair (indices, values)"
    )


def holds_codes(x: Any) -> bool:
    """Whether :func:`as_codes` would take it, judged by type alone."""
    return (
        isinstance(x, SparseCodes)
        or _is_scipy_sparse(x)
        or _is_torch_sparse(x)
        or (isinstance(x, tuple) and len(x) == 2)
    )


def _is_scipy_sparse(x: Any) -> bool:
    return type(x).__module__.startswith("scipy.sparse") and hasattr(x, "tocsr")


def _is_torch_sparse(x: Any) -> bool:
    return type(x).__module__.partition(".")[0] == "torch" and "sparse" in str(
        getattr(x, "layout", "")
    )


def _csr_of_coo(coo: Any) -> Any:
    """A CSR matrix of the same entries; scipy's own conversion would add up duplicates."""
    sparse = require("scipy.sparse", "SparseCodes.from_scipy")
    order = np.argsort(coo.row, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(coo.row, minlength=coo.shape[0]))])
    return sparse.csr_array((coo.data[order], coo.col[order], indptr), shape=coo.shape)


def _as_int64(array: npt.NDArray[Any], name: str) -> npt.NDArray[np.int64]:
    if array.dtype.kind == "u" and array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} holds {array.max()}; expected less than 2^63")
    return array.astype(np.int64, copy=False)
