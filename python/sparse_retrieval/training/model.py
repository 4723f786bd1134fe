"""CompresSAE: a linear encoder, the k largest latents, a linear dictionary of unit atoms.

The model computes; it does not train itself (trainer.py), read data sources (data.py) or write
files (storage.py). It hands out what the rest of the package works on: `SparseCodes` and a
`Dictionary`.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparse_retrieval._pretrained import Pretrained

from .config import CompresSAEConfig, Init, as_integer
from .data import as_row_source
from .sparse_ops import LatentCode, encode_top_k, sparse_decode
from .storage import load_model, save_model
from .vectors import unit_rows

if TYPE_CHECKING:
    from sparse_retrieval.codes import SparseCodes
    from sparse_retrieval.dictionary import Dictionary

    from .refinement import Refinement


class CompresSAE(Pretrained, nn.Module):
    r"""Sparse autoencoder that turns an embedding into k signed latents.

    .. math::
        e = \frac{x}{\lVert x \rVert} E^T + b, \qquad
        z = \text{the } k \text{ entries of } e \text{ with largest } |e_j|, \qquad
        \hat x = z W

    Parameters
    ----------
    input_dim : int
        d, the width of an embedding.
    hidden_dim : int, default 4096
        s, the number of latents.
    k : int, default 32
        Nonzeros of a code, 1 <= k <= hidden_dim.
    init : {"independent", "tied"}, default "independent"
        Whether the encoder is drawn on its own or starts as a copy of the decoder; only the start
        is tied. See `CompresSAEConfig`.
    seed : int, default 0
        Seed of the drawn weights; the same seed gives the same weights.

    Attributes
    ----------
    encoder_weight : Parameter
        E, (s, d).
    encoder_bias : Parameter
        b, (s,); starts at zero.
    decoder_weight : Parameter
        W, (s, d): the dictionary, one atom a row. Unit rows at the start and after every step of
        `train`; after an optimizer step of your own call `normalize_decoder`.
    config : CompresSAEConfig
        What the model was made from.

    Raises
    ------
    TypeError, ValueError
        For a parameter that is no integer or out of range.

    Notes
    -----
    A zero row of x has no direction: its code is empty (all values 0) and its reconstruction zero.

    References
    ----------
    P. Kasalicky et al., "The Future is Sparse: Embedding Compression for Scalable Retrieval in
    Recommender Systems", RecSys 2025, arXiv:2505.11388.

    Examples
    --------
    >>> import torch
    >>> model = CompresSAE(input_dim=8, hidden_dim=32, k=4)
    >>> code = model.encode(torch.eye(8))
    >>> code.indices.shape, model.decode(code).shape
    (torch.Size([8, 4]), torch.Size([8, 8]))
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int = 4096,
        k: int = 32,
        *,
        init: Init = "independent",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config = CompresSAEConfig(input_dim, hidden_dim, k, init, seed)
        d, s = self.config.input_dim, self.config.hidden_dim
        self.encoder_weight = nn.Parameter(torch.empty(s, d))
        self.encoder_bias = nn.Parameter(torch.empty(s))
        self.decoder_weight = nn.Parameter(torch.empty(s, d))
        self.reset_parameters()

    @classmethod
    def from_config(cls, config: CompresSAEConfig) -> CompresSAE:
        """Draw a fresh model with this configuration."""
        return cls(**config.to_dict())

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew from ``config.seed``: Kaiming-uniform, bias zero, unit atoms.

        The independent encoder has the bound sqrt(6 / s), as in the paper's public code, where
        the matrix is stored as (d, s) and torch takes s for its fan-in.
        """
        d, s = self.config.input_dim, self.config.hidden_dim
        # drawn on the CPU whatever the device, so that a seed means the same weights everywhere
        generator = torch.Generator().manual_seed(self.config.seed)
        encoder = (torch.rand((s, d), generator=generator) * 2 - 1) * (6 / s) ** 0.5
        decoder = (torch.rand((s, d), generator=generator) * 2 - 1) * (6 / d) ** 0.5
        self.decoder_weight.copy_(decoder)
        self.normalize_decoder()
        if self.config.init == "tied":
            self.encoder_weight.copy_(self.decoder_weight)
        else:
            self.encoder_weight.copy_(encoder)
        self.encoder_bias.zero_()

    @torch.no_grad()
    def normalize_decoder(self) -> None:
        """Project the decoder's rows back onto the unit sphere, in place.

        A row of zeros, which no step of training reaches, stays zero.
        """
        self.decoder_weight.copy_(unit_rows(self.decoder_weight))

    def encode(
        self, x: Tensor, k: int | None = None, *, compute_dtype: torch.dtype | None = None
    ) -> LatentCode:
        """Encode embeddings.

        Parameters
        ----------
        x : Tensor
            (n, d), floating point; converted to the weights' dtype, normalised inside.
        k : int, optional
            Nonzeros a code; the model's own k by default. Codes are nested: the first 8 nonzeros
            of a code with k = 32 are the code with k = 8.
        compute_dtype : torch.dtype, optional
            Precision of the encoder's product, for instance ``torch.bfloat16``; that of the
            weights by default.

        Returns
        -------
        LatentCode
            ``(indices, values)``, (n, k) each, best first. Differentiable in x and the weights.
            A row with NaN or inf gives NaN values.

        Raises
        ------
        TypeError
            If x is no floating-point tensor or k no integer.
        ValueError
            If x is not (n, d), or k is out of range.
        """
        k = self._checked_k(k)
        self._check_rows(x)
        x = x.to(self.encoder_weight.dtype)
        code = encode_top_k(
            unit_rows(x),
            self.encoder_weight,
            self.encoder_bias,
            k,
            compute_dtype=compute_dtype,
        )
        # the bias alone would give a zero row latents
        zero = (x == 0).all(dim=1, keepdim=True)
        return LatentCode(code.indices, code.values.masked_fill(zero, 0.0))

    def decode(self, z: LatentCode | Tensor | tuple[Tensor, Tensor]) -> Tensor:
        """Reconstruct embeddings from codes: ``z @ W``, (n, d).

        Parameters
        ----------
        z : LatentCode, pair of tensors, or Tensor
            Indices and values (n, k) as `encode` gives them; or a dense or sparse (COO, CSR)
            tensor (n, s). Only the first form is decoded without touching every latent.

        Raises
        ------
        TypeError
            If z is neither.
        ValueError
            If its width is not hidden_dim, or the pair's shapes differ.
        """
        if isinstance(z, Tensor):
            if z.ndim != 2 or z.shape[1] != self.config.hidden_dim:
                raise ValueError(
                    f"z must be (n, hidden_dim = {self.config.hidden_dim}), got {tuple(z.shape)}"
                )
            return z @ self.decoder_weight
        return self.decode_prefixes(z, None)

    def decode_prefixes(
        self, z: LatentCode | tuple[Tensor, Tensor], cuts: tuple[int, ...] | None
    ) -> Tensor:
        """Reconstruct from the first ``cuts[0]``, ``cuts[1]``, .. nonzeros of each code.

        Parameters
        ----------
        z : LatentCode or pair of tensors
            (n, k) each.
        cuts : tuple of int or None
            Increasing, the last one k; None for all nonzeros.

        Returns
        -------
        Tensor
            (len(cuts), n, d); (n, d) if ``cuts`` is None. Each atom is read once for all cuts.

        Raises
        ------
        TypeError, ValueError
            As `decode`; ValueError if ``cuts`` does not increase to k.
        """
        if not (isinstance(z, tuple) and len(z) == 2 and all(isinstance(t, Tensor) for t in z)):
            raise TypeError(
                "z must be a LatentCode, a pair of tensors (indices, values) or a tensor (n, s), "
                f"got {type(z).__name__}"
            )
        indices, values = z
        if indices.ndim != 2 or indices.shape != values.shape:
            raise ValueError(
                "indices and values must have one shape (n, k), "
                f"got {tuple(indices.shape)} and {tuple(values.shape)}"
            )
        return sparse_decode(indices, values, self.decoder_weight, cuts)

    def forward(self, x: Tensor, k: int | None = None) -> Tensor:
        """Reconstruct the normalised rows: ``decode(encode(x, k))``, (n, d)."""
        return self.decode(self.encode(x, k))

    def sparse_codes(self, x: Any, k: int | None = None, *, batch_size: int = 4096) -> SparseCodes:
        """Encode any number of rows into a `SparseCodes`, ready for an index.

        Parameters
        ----------
        x : array, memmap, Tensor, path, data set or RowSource
            (n, d), float16, bfloat16 (tensors), float32 or float64; all that `train` takes but
            streams. Read batch by batch: it need not fit in memory.
        k : int, optional
            Nonzeros a code; the model's own k by default.
        batch_size : int, default 4096
            Rows encoded at a time; memory depends on it, and the last bit of a value may.

        Returns
        -------
        SparseCodes
            n rows over hidden_dim latents. A zero row of x is an empty row.

        Raises
        ------
        TypeError, ValueError
            As `encode`, and ValueError if a row holds NaN or inf: the row is named.
        """
        import numpy as np

        from sparse_retrieval.codes import SparseCodes

        k = self._checked_k(k)
        batch_size = as_integer("batch_size", batch_size, minimum=1)
        source = as_row_source(x)
        self._check_width(source.dim)
        n = len(source)
        indices = np.empty((n, k), dtype=np.int64)
        values = np.empty((n, k), dtype=np.float32)
        with torch.no_grad():
            for start in range(0, n, batch_size):
                rows = np.arange(start, min(start + batch_size, n))
                batch = source.take(rows).to(self.encoder_weight.device)
                code = self.encode(batch, k)
                indices[rows] = code.indices.cpu().numpy()
                values[rows] = code.values.float().cpu().numpy()
        return SparseCodes(indices, values, dim=self.config.hidden_dim)

    def dictionary(self) -> Dictionary:
        """Copy the decoder's atoms into a `Dictionary`: (s, d) float32 unit rows."""
        from sparse_retrieval.dictionary import Dictionary

        atoms = self.decoder_weight.detach().to("cpu", torch.float32, copy=True)
        return Dictionary(atoms.numpy())

    def refine(self, x: Any, rounds: int = 4, **options: Any) -> Refinement:
        """Polish the decoder by pursuit and closed-form updates, then refit the encoder to it.

        The same as ``sparse_retrieval.training.refine(model, x, rounds, **options)``, which says
        what it takes, returns and raises.
        """
        from .refinement import refine

        return refine(self, x, rounds, **options)

    def _write_to(self, directory: str | PathLike[str]) -> None:
        save_model(self, directory)

    @classmethod
    def from_pretrained(cls, directory: str | PathLike[str], **hub_options: Any) -> CompresSAE:
        """Read a model that `save_pretrained` wrote; on the CPU, with the same bits.

        Parameters
        ----------
        directory : str or path-like
            A folder, or ``owner/name`` on the Hugging Face hub (extra ``hub``).
        **hub_options
            revision, cache_dir, token, force_download, local_files_only: as in
            ``huggingface_hub.snapshot_download``.

        Raises
        ------
        ImportError
            If a repository is meant and huggingface_hub is not installed.
        FileNotFoundError
            If one of the two files is missing.
        ValueError
            If they do not belong together, a tensor is missing, unexpected or of another shape or
            dtype, or the configuration has a key that this version does not know; all by name.
        """
        from sparse_retrieval.integrations import hub

        config, tensors = load_model(hub.folder_of(directory, **hub_options))
        model = cls.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.data = tensors[name]
        return model

    def extra_repr(self) -> str:
        """Show the configuration in ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self.config.to_dict().items())

    def _checked_k(self, k: int | None) -> int:
        if k is None:
            return self.config.k
        k = as_integer("k", k, minimum=1)
        if k > self.config.hidden_dim:
            raise ValueError(
                f"k must be at most hidden_dim: got k = {k}, hidden_dim = {self.config.hidden_dim}"
            )
        return k

    def _check_rows(self, x: Tensor) -> None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x must be a floating-point tensor, got {kind}")
        if x.ndim != 2:
            raise ValueError(f"x must be two-dimensional (n, d), got {tuple(x.shape)}")
        self._check_width(x.shape[1])

    def _check_width(self, width: int) -> None:
        if width != self.config.input_dim:
            raise ValueError(
                f"x has {width} columns, this model takes {self.config.input_dim}; "
                "use embeddings of the model it was trained on"
            )
