"""Queries and results as ``.npy`` bytes: a fifth of the bytes of JSON, and nothing to parse."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_retrieval.index import SearchResult

#: One record a result; missing ones have the id -1 and the score -inf.
RECORD = np.dtype([("id", "<i8"), ("score", "<f4")])


def read(body: bytes) -> npt.NDArray[np.floating[Any]]:
    """Read an array of floats of two axes.

    Raises
    ------
    ValueError
        If the bytes are not one, whole and nothing more. The header is checked against the
        length before anything is allocated.
    """
    file = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(file)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(file)
        else:
            raise ValueError(f"version {version} of .npy")
    except (ValueError, EOFError, TypeError, RecursionError, MemoryError) as error:
        first = (str(error).splitlines() or ["unreadable"])[0]
        raise ValueError(f"the body is no .npy file ({first})") from None
    if len(shape) != 2 or dtype.kind != "f" or dtype.itemsize > 8 or fortran:
        raise ValueError(
            f"the body holds {dtype} of shape {shape}{' in Fortran order' if fortran else ''}; "
            "expected float16, float32 or float64 of two axes (queries, columns) in C order"
        )
    expected = math.prod(shape) * dtype.itemsize
    if min(shape) < 0 or expected != len(body) - file.tell():
        raise ValueError(
            f"the body has {len(body) - file.tell()} bytes after its header; {dtype} of shape "
            f"{shape} takes {expected}"
        )
    return np.frombuffer(body, dtype=dtype, offset=file.tell()).reshape(shape)


def write(found: SearchResult) -> bytes:
    """Write records of id and score, shape (nq, k).

    Raises
    ------
    ValueError
        If ids are strings.
    """
    if found.ids.dtype == object:
        raise ValueError("ids of this index are strings; ask with JSON at /search")
    records = np.empty(found.ids.shape, dtype=RECORD)
    records["id"], records["score"] = found.ids, found.scores
    file = io.BytesIO()
    np.save(file, records, allow_pickle=False)
    return file.getvalue()
