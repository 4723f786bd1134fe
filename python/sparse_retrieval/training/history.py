"""What happened in training, step by step, as numpy arrays. Knows no torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .train_config import TrainConfig


class StepMetrics(NamedTuple):
    """One optimizer step; the losses and cosines are of its batch, before the step."""

    step: int
    """Counted from 1."""
    loss: float
    cosine_k: float
    """Mean cosine of rows and their reconstruction from k latents."""
    cosine_4k: float
    """The same from ``wide_factor`` (4) times as many."""
    dead_latents: float
    """Share of latents that none of the last ``dead_after_items`` items used; in [0, 1]."""
    seconds: float
    """Wall-clock seconds of the step, fetching its batch included."""
    items_per_second: float
    lr: float = float("nan")
    """Learning rate of the step."""
    grad_norm: float = float("nan")
    """Length of the gradient before it was clipped; NaN where clipping is off."""


class Evaluation(NamedTuple):
    """How the model does on held-out rows after a step."""

    step: int
    recall: float
    """Share of a held-out query's nearest items, by exact cosine, that are among as many found by
    the same dense query among reconstructed items."""
    cosine: float
    """Mean cosine of held-out rows and their reconstructions from k latents."""


_SERIES = ("loss", "cosine_k", "cosine_4k", "dead_latents", "seconds", "items_per_second")


@dataclasses.dataclass(frozen=True, eq=False)
class History:
    """Metrics of every step that was taken.

    Parameters
    ----------
    loss, cosine_k, cosine_4k, dead_latents, seconds, items_per_second : ndarray
        (steps taken,) float64; see `StepMetrics`.
    config : TrainConfig
        What was asked for.
    interrupted : bool
        Whether Ctrl-C ended training early. The model is usable all the same.
    evaluations : tuple of Evaluation
        On held-out rows, where there are any; in the order of steps.
    stopped_early : bool
        Whether held-out recall stopped rising for ``patience`` evaluations; the model is then the
        best one, not the last.
    """

    loss: npt.NDArray[np.float64]
    cosine_k: npt.NDArray[np.float64]
    cosine_4k: npt.NDArray[np.float64]
    dead_latents: npt.NDArray[np.float64]
    seconds: npt.NDArray[np.float64]
    items_per_second: npt.NDArray[np.float64]
    config: TrainConfig
    interrupted: bool = False
    evaluations: tuple[Evaluation, ...] = ()
    stopped_early: bool = False

    def __post_init__(self) -> None:
        lengths = {name: len(getattr(self, name)) for name in _SERIES}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"the series of a History must have one length, got {lengths}")

    @classmethod
    def from_steps(
        cls,
        steps: list[StepMetrics],
        config: TrainConfig,
        *,
        interrupted: bool,
        evaluations: Sequence[Evaluation] = (),
        stopped_early: bool = False,
    ) -> History:
        """Collect the metrics of single steps."""
        series = {
            name: np.array([getattr(step, name) for step in steps], dtype=np.float64)
            for name in _SERIES
        }
        return cls(
            **series,
            config=config,
            interrupted=interrupted,
            evaluations=tuple(evaluations),
            stopped_early=stopped_early,
        )

    def __len__(self) -> int:
        return len(self.loss)

    def __repr__(self) -> str:
        state = ", interrupted" if self.interrupted else ""
        state += ", stopped early" if self.stopped_early else ""
        if not len(self):
            return f"History(0 of {self.config.steps} steps{state})"
        return (
            f"History({len(self)} of {self.config.steps} steps{state}, loss {self.loss[0]:.4f} -> "
            f"{self.loss[-1]:.4f}, cosine_k {self.cosine_k[-1]:.4f}, "
            f"dead {self.dead_latents[-1]:.1%}, {self.seconds.sum():.1f} s"
            + (f", held-out recall {self.evaluations[-1].recall:.4f})" if self.evaluations else ")")
        )

    def to_json(self) -> str:
        """Everything as JSON text; `from_json` gives the same numbers back, to the bit."""
        fields: dict[str, Any] = {name: getattr(self, name).tolist() for name in _SERIES}
        fields["config"] = self.config.to_dict()
        fields["interrupted"] = self.interrupted
        fields["evaluations"] = [list(evaluation) for evaluation in self.evaluations]
        fields["stopped_early"] = self.stopped_early
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> History:
        """Read what `to_json` wrote, this release or one that knew no evaluations.

        Raises
        ------
        ValueError
            If a key is missing or unknown, by name; or the series differ in length.
        """
        fields: dict[str, Any] = json.loads(text)
        expected, optional = {*_SERIES, "config", "interrupted"}, {"evaluations", "stopped_early"}
        missing, unknown = expected - set(fields), set(fields) - expected - optional
        if missing or unknown:
            raise ValueError(f"not a History: missing {sorted(missing)}, unknown {sorted(unknown)}")
        series = {name: np.array(fields[name], dtype=np.float64) for name in _SERIES}
        config = TrainConfig.from_dict(fields["config"])
        return cls(
            **series,
            config=config,
            interrupted=bool(fields["interrupted"]),
            evaluations=tuple(Evaluation(*row) for row in fields.get("evaluations", ())),
            stopped_early=bool(fields.get("stopped_early", False)),
        )
