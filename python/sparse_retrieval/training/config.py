"""What a model is, as a frozen dataclass that checks itself once, and what all such share.

Knows no torch: a configuration can be read, checked and compared without it. Everything below
trusts what stands here. Unknown keys are refused by name, so that a misspelt option never becomes
a silent default.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
from typing import Any, Literal, TypeVar, get_args

Init = Literal["independent", "tied"]
_Config = TypeVar("_Config", bound="JsonConfig")


def as_integer(name: str, value: object, *, minimum: int) -> int:
    """``value`` as an int that is at least ``minimum``.

    Raises
    ------
    TypeError
        If it is no integer (a bool and a float such as ``2.0`` are none).
    ValueError
        If it is smaller than ``minimum``.
    """
    if isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if number < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {number}")
    return number


def as_number(name: str, value: object, *, above: float | None = None) -> float:
    """``value`` as a finite float that is not negative, and larger than ``above`` if given.

    Raises
    ------
    TypeError
        If it is no real number.
    ValueError
        If it is not finite or too small.
    """
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    if above is not None and number <= above:
        raise ValueError(f"{name} must be larger than {above:g}, got {number:g}")
    if number < 0:
        raise ValueError(f"{name} must not be negative, got {number:g}")
    return number


@dataclasses.dataclass(frozen=True)
class JsonConfig:
    """The JSON round trip that configurations share."""

    def to_dict(self) -> dict[str, Any]:
        """Every field by name, in order of declaration; tuples as lists, as JSON has them."""
        fields = dataclasses.asdict(self)
        return {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}

    def to_json(self) -> str:
        """Every field as indented JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls: type[_Config], fields: dict[str, Any]) -> _Config:
        """Build a configuration from ``to_dict``'s output.

        Raises
        ------
        TypeError
            If ``fields`` is no dict.
        ValueError
            If it holds a key that this configuration does not know, lacks one without a default,
            or a value is out of range.
        """
        if not isinstance(fields, dict):
            raise TypeError(f"{cls.__name__} needs a dict of fields, got {type(fields).__name__}")
        declared = {field.name: field for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - set(declared))
        if unknown:
            raise ValueError(
                f"{cls.__name__} does not know {', '.join(map(repr, unknown))}; "
                f"it knows {', '.join(declared)}"
            )
        missing = [
            name
            for name, field in declared.items()
            if field.default is dataclasses.MISSING and name not in fields
        ]
        if missing:
            raise ValueError(f"{cls.__name__} lacks {', '.join(map(repr, missing))}")
        return cls(**fields)

    @classmethod
    def from_json(cls: type[_Config], text: str) -> _Config:
        """Build a configuration from ``to_json``'s output; raises as `from_dict` does."""
        return cls.from_dict(json.loads(text))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


@dataclasses.dataclass(frozen=True)
class CompresSAEConfig(JsonConfig):
    """Shape and start of a `CompresSAE`.

    Parameters
    ----------
    input_dim : int
        d, the width of an embedding.
    hidden_dim : int, default 4096
        s, the number of latents. The paper's size; more latents give a better code for the same
        k, at 8 * d more bytes of parameters each.
    k : int, default 32
        Nonzeros of a code, 1 <= k <= hidden_dim. The paper's size; another k may be asked for
        when encoding.
    init : {"independent", "tied"}, default "independent"
        ``"independent"``: encoder and decoder are drawn separately, as the paper's public code
        does. ``"tied"``: the encoder starts as a copy of the decoder's unit rows, so that a latent
        starts by firing on what it decodes to. Only the start is tied: both are trained freely.
    seed : int, default 0
        Seed of the drawn weights. torch's global generator is neither read nor advanced.
    """

    input_dim: int
    hidden_dim: int = 4096
    k: int = 32
    init: Init = "independent"
    seed: int = 0

    def __post_init__(self) -> None:
        self._set("input_dim", as_integer("input_dim", self.input_dim, minimum=1))
        self._set("hidden_dim", as_integer("hidden_dim", self.hidden_dim, minimum=1))
        self._set("k", as_integer("k", self.k, minimum=1))
        self._set("seed", as_integer("seed", self.seed, minimum=0))
        if self.k > self.hidden_dim:
            raise ValueError(
                f"k must be at most hidden_dim: got k = {self.k}, hidden_dim = {self.hidden_dim}"
            )
        if self.init not in get_args(Init):
            raise ValueError(f"init must be 'independent' or 'tied', got {self.init!r}")
