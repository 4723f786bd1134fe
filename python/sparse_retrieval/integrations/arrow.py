"""Codes and embeddings as Arrow columns, which pyarrow, polars, DuckDB and Parquet files share.

Needs the extra ``arrow``. A column of codes is a ``large_list<struct<latent: uint32, value:
float32>>``, one list an item, latents ascending: any Arrow reader takes it without knowing this
package. The number of latents stands in the field's metadata, ``sparse_retrieval.dim``; readers
that drop metadata (polars) need it said again. Nothing is copied on the way out, and on the way
in nothing that is canonical already. The alternative, an extension type, was tried: polars then
shows a column whose lists cannot be worked with until its storage is taken out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_retrieval._arrays import as_count
from sparse_retrieval._extras import require
from sparse_retrieval._files import replacing
from sparse_retrieval._ids import as_ids
from sparse_retrieval.codes import SparseCodes

__all__ = ["as_matrix", "from_arrow", "iter_parquet", "read_parquet", "to_arrow", "write_parquet"]

#: The key of a field's metadata that holds the number of latents.
DIM_KEY = b"sparse_retrieval.dim"

#: Items of a row group where nothing else is asked for: 16 MB of codes at k = 32.
ROW_GROUP_ITEMS = 1 << 16


def _pyarrow(purpose: str) -> Any:
    return require("pyarrow", purpose)


def field_of(dim: int, name: str = "code") -> Any:
    """The ``pyarrow.Field`` of a column of codes over ``dim`` latents."""
    pa = _pyarrow("a column of codes")
    entry = pa.struct(
        [
            pa.field("latent", pa.uint32(), nullable=False),
            pa.field("value", pa.float32(), nullable=False),
        ]
    )
    kind = pa.large_list(pa.field("item", entry, nullable=False))
    return pa.field(name, kind, nullable=False, metadata={DIM_KEY: str(dim).encode()})


def to_arrow(codes: SparseCodes) -> Any:
    """The codes as a ``pyarrow.LargeListArray``, without a copy.

    Parameters
    ----------
    codes : SparseCodes
        n rows.

    Returns
    -------
    pyarrow.LargeListArray, length n
        Its buffers are those of ``codes.indptr``, ``codes.latents`` and ``codes.values``.

    Raises
    ------
    ImportError
        If pyarrow is not installed.

    Examples
    --------
    >>> import sparse_retrieval as sr
    >>> codes = sr.SparseCodes([[7, 2]], [[0.5, -1.0]], dim=8)
    >>> codes.to_arrow().to_pylist()
    [[{'latent': 2, 'value': -1.0}, {'latent': 7, 'value': 0.5}]]
    """
    pa = _pyarrow("SparseCodes.to_arrow")
    kind = field_of(codes.dim).type
    entry = kind.value_type
    children = [
        pa.Array.from_buffers(field.type, codes.nnz, [None, pa.py_buffer(array)])
        for field, array in zip(entry.fields, (codes.latents, codes.values), strict=True)
    ]
    entries = pa.Array.from_buffers(entry, codes.nnz, [None], children=children)
    # indptr ascends to nnz, below 2^63 as any array's length: the same bits as int64
    offsets = pa.py_buffer(codes.indptr.view(np.int64))
    return pa.Array.from_buffers(kind, len(codes), [None, offsets], children=[entries])


def from_arrow(data: Any, *, dim: int | None = None, column: str | None = None) -> SparseCodes:
    """Codes from an Arrow column; see `SparseCodes.from_arrow`."""
    array, found = _column_of(data, column)
    dim = found if dim is None else as_count(dim, "dim")
    if dim is None:
        raise ValueError(
            "the column does not say how many latents there are (its field has no metadata "
            f"{DIM_KEY.decode()!r}, which some readers drop): give dim="
        )
    parts = [_codes_of(chunk, dim) for chunk in array.chunks if len(chunk)]
    if not parts:
        return SparseCodes.from_csr([0], [], [], dim)
    return parts[0] if len(parts) == 1 else SparseCodes.concatenate(parts)


def _column_of(data: Any, column: str | None) -> tuple[Any, int | None]:
    """A ChunkedArray, and the number of latents where its field tells."""
    pa = _pyarrow("SparseCodes.from_arrow")
    if isinstance(data, (pa.Array, pa.ChunkedArray)):
        return _chunked(data, column), None
    if isinstance(data, pa.RecordBatch):
        data = pa.table(data)
    if not isinstance(data, pa.Table):
        if hasattr(data, "__arrow_c_stream__"):
            reader = pa.chunked_array(data)
            if not pa.types.is_struct(reader.type):
                return _chunked(reader, column), _dim_of(_exported_field(data))
            data = pa.table(data)
        elif hasattr(data, "__arrow_c_array__"):
            return _chunked(pa.array(data), column), _dim_of(_exported_field(data))
        else:
            raise TypeError(
                f"got {type(data).__name__}; expected a pyarrow array or table, or what exports "
                "one, as polars does"
            )
    names = [field.name for field in data.schema if _is_codes(field.type)]
    if column is None:
        if len(names) != 1:
            raise ValueError(f"the table has columns of codes {names}; give column=, one of them")
        column = names[0]
    if column not in data.schema.names:
        raise ValueError(f"the table has columns {data.schema.names}; it has no {column!r}")
    return _chunked(data[column], None), _dim_of(data.schema.field(column))


def _exported_field(data: Any) -> Any:
    pa = _pyarrow("SparseCodes.from_arrow")
    return pa.field(data) if hasattr(data, "__arrow_c_schema__") else None


def _chunked(array: Any, column: str | None) -> Any:
    pa = _pyarrow("SparseCodes.from_arrow")
    if column is not None:
        raise ValueError(f"column is {column!r}, but the data is one column and no table")
    if isinstance(array, pa.Array):
        array = pa.chunked_array([array])
    if not _is_codes(array.type):
        raise TypeError(
            f"the column has type {array.type}; expected lists of structs of an integer "
            "'latent' and a number 'value'"
        )
    return array


def _is_codes(kind: Any) -> bool:
    types = _pyarrow("SparseCodes.from_arrow").types
    if not (types.is_list(kind) or types.is_large_list(kind)):
        return False
    entry = kind.value_type
    if not types.is_struct(entry) or {"latent", "value"} - {field.name for field in entry}:
        return False
    return bool(
        types.is_integer(entry.field("latent").type)
        and types.is_floating(entry.field("value").type)
    )


def _dim_of(field: Any) -> int | None:
    text = (getattr(field, "metadata", None) or {}).get(DIM_KEY)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"the column's metadata {DIM_KEY.decode()} is {text!r}; expected a number"
        ) from None


def _codes_of(chunk: Any, dim: int) -> SparseCodes:
    if chunk.null_count:
        row = int(np.flatnonzero(chunk.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"row {row} of the column is null; expected a list, which may be empty")
    offsets = chunk.offsets.to_numpy()
    # .values has all entries of the buffer, also where the chunk is a slice of it
    entries = chunk.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    indptr = offsets - offsets[0] if offsets[0] else offsets
    latents, values = (
        _plain(entries.field(entries.type.get_field_index(name)), name)
        for name in ("latent", "value")
    )
    if entries.null_count:
        raise ValueError("an entry of the column is null; expected a latent and a value")
    if _is_canonical(indptr, latents, values, dim):
        codes = SparseCodes.__new__(SparseCodes)
        codes._take(indptr.astype(np.int64, copy=False).view(np.uint64), latents, values, dim)
        return codes
    return SparseCodes.from_csr(indptr.astype(np.int64, copy=False), latents, values, dim)


def _plain(array: Any, name: str) -> npt.NDArray[Any]:
    if array.null_count:
        raise ValueError(f"a {name} of the column is null; expected numbers")
    numbers: npt.NDArray[Any] = array.to_numpy()
    return numbers


def _is_canonical(
    indptr: npt.NDArray[Any], latents: npt.NDArray[Any], values: npt.NDArray[Any], dim: int
) -> bool:
    """Whether the arrays can be taken as they are: an Arrow buffer is never written to."""
    if latents.dtype != np.uint32 or values.dtype != np.float32:
        return False
    if len(values) == 0:
        return True
    ascends = latents[1:] > latents[:-1]
    firsts = indptr[(indptr > 0) & (indptr < len(latents))]
    ascends[firsts - 1] = True
    return bool(
        ascends.all()
        and int(latents.max()) < dim < 2**31
        and np.isfinite(values).all()
        and values.all()
    )


def as_matrix(column: Any) -> npt.NDArray[Any]:
    """Embeddings of a column of lists of equal length, shape (n, d).

    Parameters
    ----------
    column : pyarrow array or chunked array, or polars Series
        Fixed-size lists of numbers, or lists that all have one length.

    Returns
    -------
    ndarray, shape (n, d)
        Without a copy where the column is one chunk.

    Raises
    ------
    TypeError
        If the column does not hold lists of numbers.
    ValueError
        If a list or a number is null, or lengths differ.
    """
    pa = _pyarrow("reading an Arrow column of embeddings")
    if not isinstance(column, (pa.Array, pa.ChunkedArray)):
        column = pa.chunked_array(column)
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    kind = column.type
    lists = any(
        check(kind)
        for check in (pa.types.is_fixed_size_list, pa.types.is_list, pa.types.is_large_list)
    )
    if not lists or not (
        pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)
    ):
        raise TypeError(f"the column has type {kind}; expected lists of numbers")
    parts = [_matrix_of(chunk) for chunk in chunks if len(chunk)]
    widths = sorted({part.shape[1] for part in parts})
    if len(widths) != 1:
        raise ValueError(f"lists of the column have lengths {widths}; expected one length")
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _matrix_of(chunk: Any) -> npt.NDArray[Any]:
    pa = _pyarrow("reading an Arrow column of embeddings")
    if chunk.null_count:
        raise ValueError("a list of the column is null; expected numbers in every row")
    if pa.types.is_fixed_size_list(chunk.type):
        width = chunk.type.list_size
        numbers = chunk.values.slice(chunk.offset * width, len(chunk) * width)
    else:
        lengths = np.unique(np.diff(chunk.offsets.to_numpy()))
        if len(lengths) != 1:
            raise ValueError(
                f"lists of the column have lengths {lengths[:5].tolist()}; expected one length"
            )
        width = int(lengths[0])
        first = int(chunk.offsets[0].as_py())
        numbers = chunk.values.slice(first, len(chunk) * width)
    if numbers.null_count:
        raise ValueError("a number of the column is null; expected numbers in every row")
    if len(numbers) == 0:
        raise ValueError("lists of the column are empty; expected numbers in every row")
    matrix: npt.NDArray[Any] = numbers.to_numpy().reshape(len(chunk), width)
    return matrix


def write_parquet(
    path: str | os.PathLike[str],
    codes: SparseCodes | Iterable[tuple[Any, SparseCodes]],
    *,
    ids: Any = None,
    row_group_items: int = ROW_GROUP_ITEMS,
) -> int:
    """Write codes, and ids, to a Parquet file, which appears whole or not at all.

    Parameters
    ----------
    path : path-like
        The target.
    codes : SparseCodes, or iterable of (ids or None, SparseCodes)
        All at once, or batches in constant memory.
    ids : array_like of int or str, shape (n,), optional
        Of all codes; becomes the column ``id``.
    row_group_items : int, default 65,536
        Items of a row group at most.

    Returns
    -------
    int
        The number of items.

    Raises
    ------
    ImportError
        If pyarrow is not installed.
    TypeError, ValueError
        If ids or batches are not sound: another number of ids than of codes, other latents, or
        ids in some batches only.
    OSError
        If the file cannot be written; what was there is then as it was.
    """
    pq = require("pyarrow.parquet", "write_parquet")
    row_group_items = as_count(row_group_items, "row_group_items")
    if isinstance(codes, SparseCodes):
        batches: Iterable[tuple[Any, SparseCodes]] = [(ids, codes)]
    elif ids is not None:
        raise TypeError("ids are given beside batches; each batch is a pair (ids or None, codes)")
    else:
        batches = codes
    writer, items = None, 0
    with replacing(path) as temporary:
        try:
            for number, batch in enumerate(batches):
                table = _table_of(*batch)
                if writer is None:
                    writer = pq.ParquetWriter(temporary, table.schema)
                elif not table.schema.equals(writer.schema, check_metadata=True):
                    raise ValueError(
                        f"batch {number} has other columns or another dim than the first one: "
                        f"{table.schema.names}, dim {batch[1].dim}"
                    )
                writer.write_table(table, row_group_size=row_group_items)
                items += len(table)
            if writer is None:
                raise ValueError("there is no batch to write; expected at least one")
        finally:
            if writer is not None:
                writer.close()
    return items


def _table_of(ids: Any, codes: SparseCodes) -> Any:
    pa = _pyarrow("write_parquet")
    arrays, fields = [to_arrow(codes)], [field_of(codes.dim)]
    if ids is not None:
        names = as_ids(ids)
        if len(names) != len(codes):
            raise ValueError(f"there are {len(names)} ids and {len(codes)} codes; expected as many")
        # no ids at all are numbers
        kind = pa.string() if isinstance(names, list) else pa.int64()
        arrays.insert(0, pa.array(names, kind))
        fields.insert(0, pa.field("id", kind, nullable=False))
    return pa.table(arrays, schema=pa.schema(fields))


def iter_parquet(
    path: str | os.PathLike[str],
    *,
    column: str | None = None,
    dim: int | None = None,
    batch_items: int = ROW_GROUP_ITEMS,
) -> Iterator[tuple[Any, SparseCodes]]:
    """Batches of a Parquet file of codes, in constant memory: for an `IndexWriter`.

    Parameters
    ----------
    path : path-like
        As `write_parquet` wrote it, or with any column of codes.
    column : str, optional
        Default: the only column of codes.
    dim : int, optional
        The number of latents, where the file does not tell.
    batch_items : int, default 65,536
        Items of a batch at most.

    Yields
    ------
    ids : ndarray of int64, list of str, or None
        The column ``id``; None where there is none.
    codes : SparseCodes
        The same number of items.

    Raises
    ------
    ImportError
        If pyarrow is not installed.
    OSError
        If the file cannot be read.
    TypeError, ValueError
        If it holds no such column, or a row is not sound.
    """
    pq = require("pyarrow.parquet", "iter_parquet")
    batch_items = as_count(batch_items, "batch_items")
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_items):
            ids = None
            if "id" in batch.schema.names:
                ids = as_ids(batch.column("id").to_numpy(zero_copy_only=False))
            yield ids, from_arrow(batch, dim=dim, column=column)


def read_parquet(
    path: str | os.PathLike[str], *, column: str | None = None, dim: int | None = None
) -> tuple[Any, SparseCodes]:
    """All ids and codes of a Parquet file; see `iter_parquet`.

    Returns
    -------
    ids : ndarray of int64, list of str, or None
    codes : SparseCodes
    """
    pq = require("pyarrow.parquet", "read_parquet")
    table = pq.read_table(path).combine_chunks()
    ids = None
    if "id" in table.schema.names:
        ids = as_ids(table["id"].to_numpy())
    return ids, from_arrow(table, dim=dim, column=column)
