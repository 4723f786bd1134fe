"""Polishing a trained model: pursuit and closed-form updates for the decoder, then its encoder.

The decoder's part is `Dictionary.refine`, the encoder's is `train` with the decoder held still;
here they are joined so that a model is whole at every moment. Knows nothing of either's arithmetic.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from sparse_retrieval._progress import bar

from .config import as_integer
from .data import RowSource, as_row_source
from .history import History
from .model import CompresSAE
from .train_config import TrainConfig
from .trainer import train

if TYPE_CHECKING:
    from sparse_retrieval.dictionary import Dictionary
    from sparse_retrieval.learning import FitRound

#: Steps that fit the encoder, from `lr` of `TrainConfig` down to nothing. They start from the
#: encoder as it is: a copy of the decoder, or ridge regression of pursuit's codes on x, start
#: lower and end lower (`python benches/refine_model.py`, its table in docs/training.md). So did,
#: at the start, the encoder moved along with the atoms. A constant rate ended lower too.
ENCODER_STEPS = 300


@dataclasses.dataclass(frozen=True, eq=False)
class Refinement:
    """What `refine` did.

    Attributes
    ----------
    rounds : tuple of FitRound
        One a round of pursuit and update, as `Dictionary.history` has them.
    encoder : History
        The encoder's training; ``interrupted`` if Ctrl-C ended it.
    """

    rounds: tuple[FitRound, ...]
    encoder: History

    def __repr__(self) -> str:
        if not self.rounds:
            return f"Refinement(0 rounds, encoder {self.encoder!r})"
        first, last = self.rounds[0].cosine, self.rounds[-1].cosine
        return (
            f"Refinement({len(self.rounds)} rounds, cosine by pursuit {first:.4f} -> {last:.4f}, "
            f"encoder {self.encoder!r})"
        )


def refine(
    model: CompresSAE,
    x: Any,
    rounds: int = 4,
    *,
    encoder_steps: int = ENCODER_STEPS,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    progress: bool | None = None,
    threads: int | None = None,
) -> Refinement:
    """Polish a trained model's decoder in closed form, then fit its encoder to it; in place.

    Parameters
    ----------
    model : CompresSAE
        Trained.
    x : array, memmap, Tensor or RowSource
        (n, d) embeddings, as `train` takes them; zero rows teach nothing.
    rounds : int, default 4
        Rounds of pursuit, with the model's k, and update of the atoms; see `Dictionary.refine`.
        0 leaves the decoder as it is.
    encoder_steps : int, default 300
        Steps of Adam on the encoder's weight and bias, by the paper's loss, the decoder held
        still. They start from the encoder as it is, at a rate that falls linearly.
    batch_size, lr : optional
        Of these steps; by default those of `TrainConfig`.
    seed : int, default 0
        Of the order in which the encoder sees rows, and of the rows that are drawn where there
        are more than a million.
    progress : bool, optional
        Show bars on stderr. By default only if that is a terminal.
    threads : int, optional
        Of the pursuit; all processors by default. torch keeps its own number.

    Returns
    -------
    Refinement
        Reports of the rounds and of the encoder's steps.

    Raises
    ------
    TypeError, ValueError
        If x or an option is malformed, x has another width than the model, or a row holds NaN or
        inf: the row is named.
    FloatingPointError
        If the encoder's loss stops being finite.
    ImportError
        If a bar is wanted and tqdm is not installed.
    KeyboardInterrupt
        On Ctrl-C while the decoder is polished: the model is as it was.

    Warns
    -----
    TrainingInterrupted
        On Ctrl-C while the encoder is fitted: the decoder is polished, the encoder as far as the
        last step brought it, and the report marked.

    Notes
    -----
    Codes by pursuit (`Dictionary.encode`) gain by the polish, those of the model's own encoder
    need not: atoms that serve a search for the best few are not those that a linear map picks
    best. docs/training.md has figures.

    Examples
    --------
    >>> import torch
    >>> from sparse_retrieval.training import CompresSAE, refine, train
    >>> x = torch.randn(256, 8, generator=torch.Generator().manual_seed(0))
    >>> model = CompresSAE(input_dim=8, hidden_dim=32, k=4)
    >>> history = train(model, x, steps=20, batch_size=64)
    >>> report = refine(model, x, rounds=3, encoder_steps=20, batch_size=64)
    >>> report.rounds[-1].cosine > report.rounds[0].cosine
    True
    """
    if not isinstance(model, CompresSAE):
        raise TypeError(f"model must be a CompresSAE, got {type(model).__name__}")
    rounds = as_integer("rounds", rounds, minimum=0)
    seed = as_integer("seed", seed, minimum=0)
    config = TrainConfig(
        steps=encoder_steps,
        batch_size=TrainConfig.batch_size if batch_size is None else batch_size,
        lr=TrainConfig.lr if lr is None else lr,
        seed=seed,
        schedule="linear",
    )
    source = as_row_source(x)
    if source.dim != model.config.input_dim:
        raise ValueError(
            f"x has {source.dim} columns, this model takes {model.config.input_dim}; "
            "use embeddings of the model it was trained on"
        )
    polished = _polished(model, source, rounds, seed=seed, progress=progress, threads=threads)
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        if rounds:
            with torch.no_grad():
                model.decoder_weight.copy_(torch.from_numpy(polished.atoms.copy()))
                model.normalize_decoder()  # to the last place of the model's own dtype
        model.decoder_weight.requires_grad_(False)
        model.encoder_weight.requires_grad_(True)
        model.encoder_bias.requires_grad_(True)
        history = train(model, source, config=config, progress=progress)
    finally:
        for parameter, wanted in trainable.items():
            parameter.requires_grad_(wanted)
    return Refinement(polished.history, history)


def _polished(
    model: CompresSAE,
    source: RowSource,
    rounds: int,
    *,
    seed: int,
    progress: bool | None,
    threads: int | None,
) -> Dictionary:
    with bar("refining", progress) as advance:
        return model.dictionary().refine(
            _Sliced(source),
            rounds=rounds,
            k=model.config.k,
            seed=seed,
            progress=advance,
            threads=threads,
        )


class _Sliced:
    """A source of rows as a dictionary reads them: a shape that slices to arrays."""

    def __init__(self, source: RowSource) -> None:
        self._source = source
        self.shape = (len(source), source.dim)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        batch: npt.NDArray[np.float32] = self._source.take(rows).cpu().numpy()
        return batch
