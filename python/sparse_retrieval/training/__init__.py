"""Learning sparse codes with torch: the CompresSAE model, its loss, its trainer.

Importing this subpackage imports torch; importing ``sparse_retrieval`` does not. It knows codes
and dictionaries (what a model hands out); mining.py alone searches an index, where batches of hard
negatives are asked for. Gradients are torch alone.
"""

from sparse_retrieval._extras import require

require("torch", "sparse_retrieval.training")

from .callbacks import Callback, ScalarWriter, TensorBoard  # noqa: E402 - torch comes first
from .config import CompresSAEConfig  # noqa: E402
from .data import ArraySource, RowSource, as_row_source  # noqa: E402
from .history import Evaluation, History, StepMetrics  # noqa: E402
from .loss import LossTerms, compressae_loss, ranking_loss  # noqa: E402
from .model import CompresSAE  # noqa: E402
from .refinement import Refinement, refine  # noqa: E402
from .sparse_ops import LatentCode, encode_top_k, sparse_decode  # noqa: E402
from .train_config import TrainConfig  # noqa: E402
from .trainer import Trainer, TrainingInterrupted, train  # noqa: E402

__all__ = [
    "ArraySource",
    "Callback",
    "CompresSAE",
    "CompresSAEConfig",
    "Evaluation",
    "History",
    "LatentCode",
    "LossTerms",
    "Refinement",
    "RowSource",
    "ScalarWriter",
    "StepMetrics",
    "TensorBoard",
    "TrainConfig",
    "Trainer",
    "TrainingInterrupted",
    "as_row_source",
    "compressae_loss",
    "encode_top_k",
    "ranking_loss",
    "refine",
    "sparse_decode",
    "train",
]
