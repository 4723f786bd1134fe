"""Imports of optional libraries, with an error that says which extra to install.

Everything but numpy is optional: a module that needs torch, safetensors or rich asks for it
here, where it is used, so that ``import sparse_retrieval`` stays small.
"""

from __future__ import annotations

import importlib
from types import ModuleType

_EXTRA_OF = {
    "torch": "train",
    "safetensors": "train",
    "tqdm": "train",
    "typer": "cli",
    "rich": "cli",
    "matplotlib": "cli",
    "pyarrow": "parquet",
    "polars": "polars",
    "scipy": "scipy",
    "sklearn": "sklearn",
    "huggingface_hub": "hub",
    "sentence_transformers": "sentence-transformers",
    "langchain_core": "langchain",
    "llama_index": "llama-index",
    "haystack": "haystack",
    "qdrant_client": "qdrant",
    "fastapi": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "ray": "ray",
}


def require(module: str, purpose: str) -> ModuleType:
    """Import ``module`` or say how to get it.

    Parameters
    ----------
    module : str
        Dotted name, for instance ``"safetensors.numpy"``.
    purpose : str
        What needs it, as the subject of a sentence: ``"CompresSAE"``.

    Raises
    ------
    ImportError
        If it is not installed; the message names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != top:
            raise  # it is installed, but broken: its own error says more than ours would
        extra = _EXTRA_OF.get(top, "dev")
        raise ImportError(
            f"{purpose} needs {top}, which is not installed: "
            f"pip install 'sparse_retrieval[{extra}]'",
            name=error.name,
        ) from None
