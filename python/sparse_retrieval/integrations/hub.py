"""Models and dictionaries on the Hugging Face hub, with a card that holds what was measured.

Needs the extra ``hub`` where something is downloaded or pushed; folders and cards need nothing of
it. `CompresSAE` and `Dictionary` have the three calls of ``PyTorchModelHubMixin``
(``save_pretrained``, ``from_pretrained``, ``push_to_hub``) without being subclasses of it: torch
users need no hub for a folder, and the mixin would write a configuration of its own beside the one
that is checked here.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sparse_retrieval._arrays import as_rows
from sparse_retrieval._extras import require
from sparse_retrieval._files import read_head, replacing, write_head
from sparse_retrieval._native import __version__
from sparse_retrieval.codes import SparseCodes
from sparse_retrieval.dictionary import Dictionary
from sparse_retrieval.index import SparseIndex

__all__ = ["Measurement", "folder_of", "measure", "model_card", "push", "write_card"]

#: Names of the hub: an owner and a repository. Anything else is a path.
_REPO_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")

_DICTIONARY_FORMAT, _VERSION = "sparse_retrieval.Dictionary", 1
_MODEL_FORMAT = "sparse_retrieval.CompresSAE"
_ATOMS, _CONFIG, _WEIGHTS = "dictionary.safetensors", "config.json", "model.safetensors"


@dataclass(frozen=True)
class Measurement:
    """One row of a card's table.

    Attributes
    ----------
    codes : str
        How items were encoded.
    mode : str
        How they were searched.
    nonzeros : int
        Of a code.
    value_bits : float
        Of a stored value.
    bytes_per_item : float
        Rows and scales.
    recall : float
        Share of the exact cosine top n that was found among the returned n.
    n, items, queries : int
        n of the recall, and what it was measured on.
    """

    codes: str
    mode: str
    nonzeros: int
    value_bits: float
    bytes_per_item: float
    recall: float
    n: int
    items: int
    queries: int


def measure(
    model: Any,
    x: Any,
    queries: Any,
    *,
    n: int = 100,
    k: int | None = None,
    value_bits: Sequence[float] = (32, 4),
) -> list[Measurement]:
    """Measure recall and bytes an item, for a card.

    Parameters
    ----------
    model : CompresSAE or Dictionary
    x : array_like of float, shape (items, d)
        Items; they should be other ones than those that were learnt from.
    queries : array_like of float, shape (queries, d)
        Queries that are no items.
    n : int, default 100
        Recall@n.
    k : int, optional
        Nonzeros of a code. Default: the model's own, 32 of a dictionary.
    value_bits : sequence of float, default (32, 4)
        A row of the table each.

    Returns
    -------
    list of Measurement
        For a dictionary its pursuit codes under dense queries; for a model its own codes in
        each mode too.

    Raises
    ------
    TypeError
        If the model is neither.
    ValueError
        If arrays are not sound, or there are fewer items than n.
    """
    from sparse_retrieval.evaluate import exact_top_k, recall_at

    items = as_rows(x, "x", np.float32)
    asked = as_rows(queries, "queries", np.float32)
    if len(items) < n:
        raise ValueError(f"x has {len(items)} rows; recall@{n} needs at least as many")
    dictionary = _dictionary_of(model)
    true = exact_top_k(items, asked, n).ids
    nonzeros = k or (32 if isinstance(model, Dictionary) else model.config.k)
    nonzeros = min(nonzeros, dictionary.n_atoms)
    ways: list[tuple[str, SparseCodes, str, Any]] = []
    if not isinstance(model, Dictionary):
        codes, of_queries = model.sparse_codes(items, nonzeros), model.sparse_codes(asked, nonzeros)
        for mode in ("sparse", "reconstructed", "dense"):
            ways.append(("encoder", codes, mode, asked if mode == "dense" else of_queries))
    ways.append(("pursuit", dictionary.encode(items, nonzeros), "dense", asked))
    rows = []
    for name, codes, mode, given in ways:
        for bits in value_bits:
            index = SparseIndex.from_codes(
                codes,
                dictionary=dictionary,
                metric="cosine",
                value_bits=bits,
                modes=[mode],  # type: ignore[list-item]  # one of the three above
                unit_items=dictionary.mean is not None,
            )
            found = index.search(given, n, mode=mode).ids  # type: ignore[arg-type]
            rows.append(
                Measurement(
                    codes=name,
                    mode=mode,
                    nonzeros=nonzeros,
                    value_bits=bits,
                    bytes_per_item=index.bytes_per_item,
                    recall=recall_at(found, true, n),
                    n=n,
                    items=len(items),
                    queries=len(asked),
                )
            )
    return rows


def model_card(
    model: Any, measured: Sequence[Measurement] = (), *, repo_id: str | None = None
) -> str:
    """The text of a model card: what it is, how it is used, and what was measured.

    Parameters
    ----------
    model : CompresSAE or Dictionary
    measured : sequence of Measurement, optional
        As `measure` returns them. Without, the card says that nothing was measured.
    repo_id : str, optional
        Named in the example.

    Returns
    -------
    str
        Markdown with metadata at its head, as the hub reads it.

    Raises
    ------
    TypeError
        If the model is neither.
    """
    dictionary = _dictionary_of(model)
    kind = "Dictionary" if isinstance(model, Dictionary) else "CompresSAE"
    s, d = dictionary.n_atoms, dictionary.embedding_dim
    name = repo_id or "owner/name"
    encode = "dictionary.encode(x)" if kind == "Dictionary" else "model.sparse_codes(x)"
    variable = encode.partition(".")[0]
    atoms = "dictionary" if kind == "Dictionary" else "model.dictionary()"
    parts = [
        "---",
        "library_name: sparse_retrieval",
        "pipeline_tag: feature-extraction",
        "tags:",
        "- sparse_retrieval",
        "- embeddings",
        "- compression",
        f"- {kind.lower()}",
        "---",
        "",
        f"# {name.rpartition('/')[2]}",
        "",
        f"A `{kind}` of sparse_retrieval {__version__}: it turns embeddings of {d} dimensions into "
        f"codes with few nonzeros over {s:,} latents, which one file holds and searches.",
        "",
        "```python",
        "import sparse_retrieval as sr",
        "",
        f'{variable} = sr.{kind}.from_pretrained("{name}")',
        f"codes = {encode}  # x: the embeddings, (n, {d})",
        f'index = sr.SparseIndex.from_codes(codes, dictionary={atoms}, metric="cosine")',
        "scores, ids = index.search(queries, k=10)",
        "```",
        "",
        "## Measured",
        "",
        *_table(measured),
        "",
        "## Made of",
        "",
        "| | |",
        "|---|---|",
        f"| latents, s | {s:,} |",
        f"| embedding width, d | {d} |",
        f"| atoms in half precision | {2 * s * d / 1e6:.1f} MB |",
    ]
    if kind == "CompresSAE":
        parts.append(f"| nonzeros of a code, k | {model.config.k} |")
    if dictionary.mean is not None:
        parts.append("| a mean is subtracted | yes |")
    parts += [
        "",
        "The model is the one of P. Kasalicky et al., *The Future is Sparse: Embedding Compression "
        "for Scalable Retrieval in Recommender Systems*, RecSys 2025 (arXiv:2505.11388); pursuit "
        "and dense queries are this library's.",
        "",
    ]
    return "\n".join(parts)


def _table(measured: Sequence[Measurement]) -> list[str]:
    if not measured:
        return ["Nothing was measured when this card was written."]
    first = measured[0]
    lines = [
        f"Recall@{first.n} of the exact cosine top {first.n}: {first.items:,} items, "
        f"{first.queries:,} queries. The atoms come on top of the bytes, once.",
        "",
        "| codes | searched as | nonzeros | bits a value | bytes an item | recall |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.codes} | {row.mode} | {row.nonzeros} | {row.value_bits:g} | "
        f"{row.bytes_per_item:.0f} | {row.recall:.3f} |"
        for row in measured
    ]
    return lines


def write_card(folder: str | os.PathLike[str], card: str) -> None:
    """Write a card's text as the folder's README.md, whole or not at all."""
    with replacing(Path(folder) / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")


def folder_of(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """The folder of a model: a local one, or a snapshot of a repository of the hub.

    Parameters
    ----------
    name_or_path : str or path-like
        A folder that exists is taken as it is. Else a string ``owner/name`` is a repository.
    revision, cache_dir, token, force_download, local_files_only
        As in `huggingface_hub.snapshot_download`.

    Returns
    -------
    pathlib.Path
        It may not exist, where no repository is meant.

    Raises
    ------
    ImportError
        If a repository is meant and huggingface_hub is not installed.
    huggingface_hub.errors.HfHubHTTPError, huggingface_hub.errors.LocalEntryNotFoundError
        If the repository cannot be read.
    """
    path = Path(name_or_path)
    if path.is_dir() or not (isinstance(name_or_path, str) and _REPO_ID.fullmatch(name_or_path)):
        return path
    hub = require("huggingface_hub", f"{name_or_path} is no folder here; reading it from the hub")
    return Path(
        hub.snapshot_download(
            name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            force_download=force_download,
            local_files_only=local_files_only,
            allow_patterns=[_ATOMS, _CONFIG, _WEIGHTS, "README.md"],
        )
    )


def push(
    model: Any,
    repo_id: str,
    *,
    measured: Sequence[Measurement] = (),
    private: bool | None = None,
    token: str | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
    commit_message: str = "Push model using sparse_retrieval",
) -> str:
    """Push a model and its card to a repository of the hub, made if absent, in one commit.

    Parameters
    ----------
    model : CompresSAE or Dictionary
    repo_id : str
        ``owner/name``.
    measured : sequence of Measurement, optional
        For the card.
    private, token, branch, create_pr, commit_message
        As in ``PyTorchModelHubMixin.push_to_hub``.

    Returns
    -------
    str
        The address of the commit.

    Raises
    ------
    ImportError
        If huggingface_hub is not installed.
    huggingface_hub.errors.HfHubHTTPError
        If the hub refuses.
    """
    hub = require("huggingface_hub", "push_to_hub")
    api = hub.HfApi(token=token, library_name="sparse_retrieval", library_version=__version__)
    repo_id = api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        write_card(folder, model_card(model, measured, repo_id=repo_id))
        commit = api.upload_folder(
            repo_id=repo_id,
            repo_type="model",
            folder_path=folder,
            commit_message=commit_message,
            revision=branch,
            create_pr=create_pr,
        )
    return str(commit)


def save_dictionary(dictionary: Dictionary, directory: str | os.PathLike[str]) -> None:
    """Write a dictionary's folder; see `Dictionary.save_pretrained`."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    dictionary.save(folder / _ATOMS)
    head = {
        "format": _DICTIONARY_FORMAT,
        "version": _VERSION,
        "config": {
            "n_atoms": dictionary.n_atoms,
            "embedding_dim": dictionary.embedding_dim,
            "mean": dictionary.mean is not None,
        },
    }
    write_head(folder / _CONFIG, head)


def load_dictionary(folder: Path) -> Dictionary:
    """Read a dictionary's folder, or the atoms of a model's; see `Dictionary.from_pretrained`."""
    path = folder / _CONFIG
    head = read_head(
        path, _DICTIONARY_FORMAT, _MODEL_FORMAT, version=_VERSION, writer="save_pretrained"
    )
    if head["format"] == _MODEL_FORMAT:
        return _atoms_of_model(folder / _WEIGHTS)
    dictionary = Dictionary.load(folder / _ATOMS)
    held = {
        "n_atoms": dictionary.n_atoms,
        "embedding_dim": dictionary.embedding_dim,
        "mean": dictionary.mean is not None,
    }
    if head.get("config") != held:
        raise ValueError(
            f"{path} says {head.get('config')}, but {_ATOMS} holds {held}: they come from "
            "different saves; save the dictionary again"
        )
    return dictionary


def _atoms_of_model(path: Path) -> Dictionary:
    safetensors = require("safetensors", "Dictionary.from_pretrained")
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; save_pretrained writes it")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return Dictionary(file.get_tensor("decoder_weight"))
    except (safetensors.SafetensorError, TypeError) as error:
        raise ValueError(f"{path} holds no decoder_weight that numpy can read: {error}") from None


def _dictionary_of(model: Any) -> Dictionary:
    return model if isinstance(model, Dictionary) else Dictionary.from_model(model)
