"""sentence-transformers modules: a text model followed by one of these is a `SparseEncoder`.

Needs the extra ``sentence-transformers``. A module takes ``sentence_embedding`` of shape (n, d) and
puts codes of shape (n, s) in its place, as the library's own `SparseAutoEncoder` does. Saved, its
folder is a folder of this package too: ``CompresSAE.from_pretrained`` and
``Dictionary.from_pretrained`` read it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sparse_retrieval._arrays import as_count
from sparse_retrieval._extras import require
from sparse_retrieval.codes import SparseCodes
from sparse_retrieval.dictionary import Dictionary

require("sentence_transformers", "sparse_retrieval.integrations.sentence_transformers")

import torch  # noqa: E402
from sentence_transformers import SentenceTransformer, SparseEncoder  # noqa: E402
from sentence_transformers.base.modules.module import Module  # noqa: E402
from torch import Tensor  # noqa: E402

from sparse_retrieval.training.model import CompresSAE  # noqa: E402
from sparse_retrieval.training.vectors import unit_rows  # noqa: E402

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["CompresSAEModule", "PursuitModule", "codes_of", "sparse_encoder"]

#: How a query is turned into a vector over latents.
QueryMode = Literal["sparse", "dense"]

_SETTINGS = "module.json"


class _Coder(Module):
    """What both modules share: which vector a query becomes, and how a folder is found."""

    forward_kwargs = {"max_active_dims", "task"}  # noqa: RUF012  # a class variable of the library

    k: int
    queries: QueryMode
    _numbers: str  # what is saved, as messages say it

    def _set(self, k: int, queries: QueryMode, most: int) -> None:
        if queries not in ("sparse", "dense"):
            raise ValueError(f'queries is {queries!r}; expected "sparse" or "dense"')
        self.k = as_count(k, "k", most=most)
        self.queries = queries

    def forward(
        self,
        features: dict[str, Any],
        max_active_dims: int | None = None,
        task: str | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Replace ``sentence_embedding``, (n, d), by codes or query weights, (n, s).

        Parameters
        ----------
        features : dict
            Of the module before.
        max_active_dims : int, optional
            Nonzeros instead of the module's k.
        task : str, optional
            "query", as `SparseEncoder.encode_query` sets it, gives weights where ``queries`` is
            "dense".
        """
        x = features["sentence_embedding"]
        if self.queries == "dense" and (task or features.get("task")) == "query":
            features["sentence_embedding"] = unit_rows(x) @ self._atoms(x)
            return features
        k = self.k if max_active_dims is None else min(max_active_dims, self.dim)
        features.update(self._coded(x, k))
        return features

    @property
    def dim(self) -> int:
        """Number of latents, s."""
        raise NotImplementedError

    def _atoms(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _coded(self, x: Tensor, k: int) -> dict[str, Any]:
        """Codes as ``sentence_embedding``, and whatever losses need beside them."""
        raise NotImplementedError

    def _held(self) -> CompresSAE | Dictionary:
        """What :meth:`save` writes."""
        raise NotImplementedError

    @classmethod
    def _of(cls, folder: Path, settings: dict[str, Any]) -> Self:
        """The module of what :meth:`_held` wrote there."""
        raise NotImplementedError

    def get_embedding_dimension(self) -> int:
        """Number of latents, s: the width of what `SparseEncoder` returns."""
        return self.dim

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **_: Any) -> None:
        """Write the module's folder, which ``from_pretrained`` of what it holds reads too.

        Raises
        ------
        ValueError
            If weights or atoms shall be pickled instead of written as safetensors.
        """
        if not safe_serialization:
            raise ValueError(
                f"safe_serialization is False; {self._numbers} are saved as safetensors only"
            )
        self._held().save_pretrained(output_path)
        self.save_config(output_path, _SETTINGS)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **_: Any,
    ) -> Self:
        """Read what :meth:`save` wrote, from a folder or the hub; `SparseEncoder` calls it."""
        hub_options = {
            "subfolder": subfolder,
            "token": token,
            "cache_folder": cache_folder,
            "revision": revision,
            "local_files_only": local_files_only,
        }
        return cls._of(*cls._found(model_name_or_path, hub_options))

    @classmethod
    def _found(
        cls, model_name_or_path: str, hub_options: dict[str, Any]
    ) -> tuple[Path, dict[str, Any]]:
        folder = cls.load_dir_path(model_name_or_path, **hub_options)
        if folder is None:
            raise FileNotFoundError(
                f"{model_name_or_path} has no folder {hub_options['subfolder']!r}"
            )
        path = Path(folder)
        # load_dir_path gives the folder of the model in some versions, its subfolder in others
        if not (path / _SETTINGS).is_file():
            path = path / hub_options["subfolder"]
        settings = cls.load_config(model_name_or_path, config_filename=_SETTINGS, **hub_options)
        unknown = sorted(set(settings) - set(cls.config_keys))
        if unknown or not settings:
            raise ValueError(
                f"{path / _SETTINGS} has keys {unknown or 'of none'}; expected k, queries"
            )
        return path, settings


class CompresSAEModule(_Coder):
    """A `CompresSAE` behind a text model; differentiable, so `CSRLoss` may train through it.

    Its reconstruction is compared with the embedding at unit norm. After an optimizer step of the
    library's trainer call ``model.normalize_decoder()``: atoms are of unit norm here.

    Parameters
    ----------
    model : CompresSAE
        Its input width is that of the text model's embeddings.
    k : int, optional
        Nonzeros of a code. Default: the model's own.
    queries : {"sparse", "dense"}, default "sparse"
        "sparse": queries are codes as documents are, the library's convention. "dense": a query
        (``encode_query``) becomes its inner products with the atoms, all s of them; the
        similarity "dot" is then that of the query with the decoded document, which finds more.

    Examples
    --------
    >>> import torch, sparse_retrieval as sr
    >>> from sparse_retrieval.integrations.sentence_transformers import CompresSAEModule
    >>> module = CompresSAEModule(sr.CompresSAE(8, 32, k=4))
    >>> module({"sentence_embedding": torch.eye(8)})["sentence_embedding"].count_nonzero(1).tolist()
    [4, 4, 4, 4, 4, 4, 4, 4]
    """

    config_keys = ["k", "queries"]  # noqa: RUF012  # a class variable of the library
    _numbers = "weights"

    def __init__(
        self, model: CompresSAE, k: int | None = None, queries: QueryMode = "sparse"
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if not isinstance(model, CompresSAE):
            raise TypeError(f"model is {type(model).__name__}; expected CompresSAE")
        self.model = model
        self._set(model.config.k if k is None else k, queries, model.config.hidden_dim)

    @property
    def dim(self) -> int:
        """Number of latents, s."""
        return self.model.config.hidden_dim

    def _atoms(self, x: Tensor) -> Tensor:
        return self.model.decoder_weight.to(x.dtype).T

    def _coded(self, x: Tensor, k: int) -> dict[str, Any]:
        trains = self.training and torch.is_grad_enabled()
        # codes are nested: the first k of 4 k nonzeros are the code, and CSRLoss wants both
        most = min(4 * k, self.dim) if trains else k
        code = self.model.encode(x, most)
        codes = torch.zeros((len(x), self.dim), dtype=code.values.dtype, device=x.device)
        coded: dict[str, Any] = {
            "sentence_embedding": codes.scatter(1, code.indices[:, :k], code.values[:, :k])
        }
        if trains:
            cuts = (k, most) if most > k else (k,)
            decoded = self.model.decode_prefixes(code, cuts)
            coded["sentence_embedding_backbone"] = unit_rows(x)
            coded["decoded_embedding_k"] = coded["decoded_embedding_k_pre_bias"] = decoded[0]
            coded["decoded_embedding_4k"] = decoded[-1]
            coded["decoded_embedding_aux"] = None  # no latents are revived by a loss here
        return coded

    def _held(self) -> CompresSAE:
        return self.model

    @classmethod
    def _of(cls, folder: Path, settings: dict[str, Any]) -> Self:
        return cls(CompresSAE.from_pretrained(folder), **settings)


class PursuitModule(_Coder):
    """Matching pursuit with a `Dictionary` behind a text model; it has nothing to train.

    Codes are found on the CPU, and no gradient passes.

    Parameters
    ----------
    dictionary : Dictionary
        Of the width of the text model's embeddings, without a mean.
    k : int, default 32
        Nonzeros of a code.
    queries : {"sparse", "dense"}, default "sparse"
        As in `CompresSAEModule`. Pursuit's codes of like texts share fewer latents than an
        encoder's, so "dense" is what they are for.

    Examples
    --------
    >>> import numpy as np, torch, sparse_retrieval as sr
    >>> from sparse_retrieval.integrations.sentence_transformers import PursuitModule
    >>> module = PursuitModule(sr.Dictionary(np.eye(3)), k=1)
    >>> module({"sentence_embedding": torch.tensor([[0.0, 5.0, 1.0]])})["sentence_embedding"].shape
    torch.Size([1, 3])
    """

    config_keys = ["k", "queries"]  # noqa: RUF012  # a class variable of the library
    _numbers = "atoms"

    def __init__(self, dictionary: Dictionary, k: int = 32, queries: QueryMode = "sparse") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if not isinstance(dictionary, Dictionary):
            raise TypeError(f"dictionary is {type(dictionary).__name__}; expected Dictionary")
        if dictionary.mean is not None:
            raise ValueError("the dictionary has a mean, which inner products of codes leave out")
        self.dictionary = dictionary
        self._set(k, queries, dictionary.n_atoms)
        atoms = torch.from_numpy(dictionary.atoms.copy())
        self.register_buffer("atoms", atoms, persistent=False)

    @property
    def dim(self) -> int:
        """Number of latents, s."""
        return self.dictionary.n_atoms

    def _atoms(self, x: Tensor) -> Tensor:
        atoms: Tensor = self.get_buffer("atoms")
        return atoms.to(x.dtype).T

    def _coded(self, x: Tensor, k: int) -> dict[str, Any]:
        codes = self.dictionary.encode(x.detach(), k).to_dense()
        return {"sentence_embedding": torch.from_numpy(codes).to(x.device, x.dtype)}

    def _held(self) -> Dictionary:
        return self.dictionary

    @classmethod
    def _of(cls, folder: Path, settings: dict[str, Any]) -> Self:
        return cls(Dictionary.from_pretrained(folder), **settings)


def sparse_encoder(
    text_model: SentenceTransformer | str | os.PathLike[str],
    coder: CompresSAE | Dictionary,
    *,
    k: int | None = None,
    queries: QueryMode = "sparse",
) -> SparseEncoder:
    """A `SparseEncoder`: a text model and a CompresSAE or a dictionary behind it.

    Parameters
    ----------
    text_model : SentenceTransformer, or its name or folder
        Its modules are shared, not copied.
    coder : CompresSAE or Dictionary
        Of the width of its embeddings.
    k : int, optional
        Nonzeros of a code. Default: the model's own, 32 of a dictionary.
    queries : {"sparse", "dense"}, default "sparse"
        As in `CompresSAEModule`.

    Returns
    -------
    SparseEncoder
        ``save_pretrained``, ``push_to_hub`` and ``SparseEncoder(folder)`` work as with any other;
        a folder from elsewhere needs ``trust_remote_code=True``, as all modules that are not the
        library's own.

    Raises
    ------
    TypeError, ValueError
        If the coder is neither, or widths differ.
    """
    if not isinstance(text_model, SentenceTransformer):
        text_model = SentenceTransformer(os.fspath(text_model))
    if isinstance(coder, Dictionary):
        width = coder.embedding_dim
        module: _Coder = PursuitModule(coder, 32 if k is None else k, queries)
    else:
        module = CompresSAEModule(coder, k, queries)
        width = coder.config.input_dim
    given = text_model.get_embedding_dimension()
    if given is not None and given != width:
        raise ValueError(
            f"the text model's embeddings have {given} columns, the coder takes {width}; use one "
            "that was learnt from this model's embeddings"
        )
    return SparseEncoder(modules=[*text_model, module])


def codes_of(embeddings: Tensor) -> SparseCodes:
    """What `SparseEncoder.encode` returns, as codes for an index.

    Parameters
    ----------
    embeddings : Tensor, shape (n, s)
        Sparse or dense.

    Raises
    ------
    TypeError, ValueError
        As `SparseCodes.from_torch`.
    """
    return SparseCodes.from_torch(embeddings)
