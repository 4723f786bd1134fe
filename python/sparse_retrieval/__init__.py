"""Short signed sparse codes of dense embeddings, searched exactly from one compact file.

Needs numpy alone. ``CompresSAE``, ``Trainer`` and ``train`` need torch, and are imported when
they are first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparse_retrieval._changes import merge
from sparse_retrieval._native import IndexFormatError, __version__
from sparse_retrieval.approximate import Approximate
from sparse_retrieval.codes import SparseCodes
from sparse_retrieval.dictionary import Dictionary
from sparse_retrieval.index import SearchResult, SparseIndex
from sparse_retrieval.selection import Bitmap
from sparse_retrieval.writer import IndexWriter

if TYPE_CHECKING:
    from sparse_retrieval.training import CompresSAE, History, TrainConfig, Trainer, train

__all__ = [
    "Approximate",
    "Bitmap",
    "CompresSAE",
    "Dictionary",
    "History",
    "IndexFormatError",
    "IndexWriter",
    "SearchResult",
    "SparseCodes",
    "SparseIndex",
    "TrainConfig",
    "Trainer",
    "__version__",
    "merge",
    "train",
]

_NEED_TORCH = {"CompresSAE", "History", "TrainConfig", "Trainer", "train"}


def __getattr__(name: str) -> Any:
    if name in _NEED_TORCH:
        from sparse_retrieval import training

        return getattr(training, name)
    raise AttributeError(f"module 'sparse_retrieval' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
