"""A model on disk: ``model.safetensors`` for the weights, ``config.json`` for the configuration.

Each file appears whole or not at all. Two files cannot be replaced in one step, so the weights
carry a copy of the configuration they belong to, and loading compares the two.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparse_retrieval._extras import require
from sparse_retrieval._files import read_head, replacing, write_head

from .config import CompresSAEConfig

if TYPE_CHECKING:
    from .model import CompresSAE

_FORMAT = "sparse_retrieval.CompresSAE"
_VERSION = 1
_DTYPES = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"


def save_model(model: CompresSAE, directory: str | os.PathLike[str]) -> None:
    """Write both files; see `CompresSAE.save_pretrained`."""
    safetensors = require("safetensors.torch", "CompresSAE.save_pretrained")
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()
    }
    fields = model.config.to_dict()
    weights = safetensors.save(tensors, metadata={"config": json.dumps(fields)})
    head = {"format": _FORMAT, "version": _VERSION, "config": fields}
    with replacing(folder / _WEIGHTS) as temporary:
        temporary.write_bytes(weights)
    write_head(folder / _CONFIG, head)


def load_model(directory: str | os.PathLike[str]) -> tuple[CompresSAEConfig, dict[str, Tensor]]:
    """Read and check both files; see `CompresSAE.from_pretrained`."""
    safetensors = require("safetensors", "CompresSAE.from_pretrained")
    folder = Path(directory)
    config = _read_config(folder / _CONFIG)
    path = folder / _WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; save_pretrained writes it")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no readable safetensors file: {error}") from error
    _check_tensors(path, config, tensors)
    if "config" in metadata and json.loads(metadata["config"]) != config.to_dict():
        raise ValueError(
            f"{path} and {_CONFIG} come from different saves: the weights were written with "
            f"{metadata['config']}; save the model again"
        )
    return config, tensors


def _read_config(path: Path) -> CompresSAEConfig:
    head = read_head(path, _FORMAT, version=_VERSION, writer="save_pretrained")
    unknown = sorted(set(head) - {"format", "version", "config"})
    if unknown:
        raise ValueError(f"{path} holds unknown keys: {', '.join(map(repr, unknown))}")
    try:
        return CompresSAEConfig.from_dict(head.get("config", {}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _check_tensors(path: Path, config: CompresSAEConfig, tensors: dict[str, Tensor]) -> None:
    s, d = config.hidden_dim, config.input_dim
    shapes = {"encoder_weight": (s, d), "encoder_bias": (s,), "decoder_weight": (s, d)}
    missing = sorted(set(shapes) - set(tensors))
    unexpected = sorted(set(tensors) - set(shapes))
    if missing or unexpected:
        parts = [("lacks", missing), ("holds unexpected", unexpected)]
        said = " and ".join(f"{verb} {', '.join(names)}" for verb, names in parts if names)
        raise ValueError(f"{path} {said}; a CompresSAE has {', '.join(shapes)}")
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) > 1 or not dtypes <= _DTYPES:
        raise ValueError(f"{path}: weights must share one floating-point dtype, got {dtypes}")
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(tensors[name].shape)}, {_CONFIG} says {shape}"
            )
        if not bool(torch.isfinite(tensors[name]).all()):
            raise ValueError(f"{path}: {name} holds NaN or inf")
