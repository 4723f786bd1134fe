"""Learning sparse codes with torch: the CompresSAE model, its loss, its trainer.

Importing this subpackage imports torch; importing ``sparse_retrieval`` does not. It knows codes
and dictionaries (what a model hands out), nothing of indexes or files to search, and it never
calls the native module for arithmetic: training is torch alone.
"""

from sparse_retrieval._extras import require

require("torch", "sparse_retrieval.training")

from .config import CompresSAEConfig, TrainConfig  # noqa: E402 - torch is checked for first
from .data import ArraySource, RowSource  # noqa: E402
from .history import History, StepMetrics  # noqa: E402
from .loss import LossTerms, compressae_loss  # noqa: E402
from .model import CompresSAE  # noqa: E402
from .refinement import Refinement, refine  # noqa: E402
from .sparse_ops import LatentCode, encode_top_k, sparse_decode  # noqa: E402
from .trainer import TrainingInterrupted, train  # noqa: E402

__all__ = [
    "ArraySource",
    "CompresSAE",
    "CompresSAEConfig",
    "History",
    "LatentCode",
    "LossTerms",
    "Refinement",
    "RowSource",
    "StepMetrics",
    "TrainConfig",
    "TrainingInterrupted",
    "compressae_loss",
    "encode_top_k",
    "refine",
    "sparse_decode",
    "train",
]
