"""The dictionary: atoms that turn codes back into embeddings.

numpy alone; safetensors is asked for where a file is read or written.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from sparse_retrieval._arrays import as_rows
from sparse_retrieval._extras import require
from sparse_retrieval._files import replacing
from sparse_retrieval.codes import as_codes

#: How far from 1 an atom's norm may be: float16 storage of unit rows stays well within it.
_NORM_TOLERANCE = 1e-3

#: Nonzeros decoded at once: 64 MB of gathered atoms at d = 384.
_NONZEROS_A_CHUNK = 1 << 15


class Dictionary:
    """Atoms ``W`` of unit norm, one a latent: ``x_hat = W^T a`` decodes a code ``a``.

    Parameters
    ----------
    atoms : array_like of float, shape (s, d)
        One row a latent, each of unit norm (within 0.001); stored as float32.

    Attributes
    ----------
    atoms : ndarray of float32, shape (s, d)
        Read-only.

    Raises
    ------
    TypeError
        If atoms are not real numbers.
    ValueError
        If the shape is not (s, d), a number is not finite, or an atom is not of unit norm.

    References
    ----------
    CompresSAE (arXiv 2505.11388), section 2: a linear decoder without bias whose rows have
    unit norm.

    Examples
    --------
    >>> import numpy as np, sparse_retrieval as sr
    >>> dictionary = sr.Dictionary(np.eye(3))
    >>> dictionary.decode(sr.SparseCodes([[0, 2]], [[0.5, -1.0]], dim=3)).tolist()
    [[0.5, 0.0, -1.0]]
    """

    __slots__ = ("_atoms",)

    def __init__(self, atoms: Any) -> None:
        rows = as_rows(atoms, "atoms", np.float32)
        if len(rows) == 0:
            raise ValueError(f"atoms have shape {rows.shape}; expected at least one atom")
        norms = np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))
        wrong = np.flatnonzero(np.abs(norms - 1) > _NORM_TOLERANCE)
        if len(wrong):
            raise ValueError(
                f"atom {wrong[0]} has norm {norms[wrong[0]]:.6g} ({len(wrong)} of {len(rows)} "
                "atoms are not of norm 1); divide each atom by its norm and its values' scale "
                "is kept"
            )
        rows = rows.copy()  # later writes to the caller's array must not reach the atoms
        rows.flags.writeable = False
        self._atoms = rows

    @property
    def atoms(self) -> npt.NDArray[np.float32]:
        """The atoms, shape (s, d), read-only."""
        return self._atoms

    @property
    def n_atoms(self) -> int:
        """Number of atoms, s."""
        return len(self._atoms)

    @property
    def embedding_dim(self) -> int:
        """Width of embeddings, d."""
        return int(self._atoms.shape[1])

    def decode(self, codes: Any) -> npt.NDArray[np.float32]:
        """Embeddings ``x_hat = W^T a`` of codes.

        Parameters
        ----------
        codes : SparseCodes, scipy sparse matrix, torch sparse tensor, or (indices, values)
            n rows over s latents.

        Returns
        -------
        ndarray of float32, shape (n, d)
            Not normalised; a row without nonzeros decodes to zeros.

        Raises
        ------
        ValueError
            If the codes are not over s latents.
        """
        codes = as_codes(codes, dim=self.n_atoms)
        if codes.dim != self.n_atoms:
            raise ValueError(f"codes have {codes.dim} latents; expected {self.n_atoms}, the atoms")
        out = np.zeros((len(codes), self.embedding_dim), dtype=np.float32)
        indptr = codes.indptr.astype(np.int64)
        first = 0
        while first < len(codes):
            # as many rows as fit a chunk, but at least one
            end = int(np.searchsorted(indptr, indptr[first] + _NONZEROS_A_CHUNK, side="right"))
            last = min(max(first + 1, end - 1), len(codes))
            span = slice(indptr[first], indptr[last])
            terms = self._atoms[codes.latents[span]] * codes.values[span, None]
            filled = first + np.flatnonzero(np.diff(indptr[first : last + 1]))
            if len(filled):
                out[filled] = np.add.reduceat(terms, indptr[filled] - indptr[first], axis=0)
            first = last
        return out

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the atoms to a safetensors file, which appears whole or not at all.

        Raises
        ------
        ImportError
            If safetensors is not installed.
        OSError
            If the file cannot be written.
        """
        safetensors = require("safetensors.numpy", "Dictionary.save")
        with replacing(path) as temporary:
            safetensors.save_file({"atoms": self._atoms}, temporary)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Dictionary:
        """Read a file that :meth:`save` wrote.

        Raises
        ------
        ImportError
            If safetensors is not installed.
        OSError
            If the file cannot be read.
        ValueError
            If it is not a safetensors file, or holds no tensor ``atoms``.
        """
        safetensors = require("safetensors.numpy", "Dictionary.load")
        error_type = require("safetensors", "Dictionary.load").SafetensorError
        try:
            tensors = safetensors.load_file(os.fspath(path))
        except error_type as error:
            raise ValueError(f"{os.fspath(path)} is not a safetensors file: {error}") from None
        if "atoms" not in tensors:
            raise ValueError(
                f"{os.fspath(path)} holds {sorted(tensors)}; expected the tensor 'atoms' of a "
                "Dictionary (a model's folder is read by CompresSAE.from_pretrained)"
            )
        return cls(tensors["atoms"])

    def __repr__(self) -> str:
        return f"Dictionary({self.n_atoms} atoms of width {self.embedding_dim})"
