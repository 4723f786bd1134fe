"""The dictionary: atoms that turn embeddings into codes, and codes back into embeddings.

numpy alone; safetensors is asked for where a file is read or written. How codes are found and
atoms learnt is in `learning`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sparse_retrieval import learning
from sparse_retrieval._arrays import as_rows
from sparse_retrieval._extras import require
from sparse_retrieval._files import replacing
from sparse_retrieval._pretrained import Pretrained
from sparse_retrieval.codes import SparseCodes, as_codes

if TYPE_CHECKING:
    from sparse_retrieval.interpret import AtomDescription

#: How far from 1 an atom's norm may be: float16 storage of unit rows stays well within it.
_NORM_TOLERANCE = 1e-3

#: Nonzeros decoded at once: 64 MB of gathered atoms at d = 384.
_NONZEROS_A_CHUNK = 1 << 15


class Dictionary(Pretrained):
    """Atoms ``W`` of unit norm, one a latent: ``x_hat = W^T a`` decodes a code ``a``.

    Parameters
    ----------
    atoms : array_like of float, shape (s, d)
        One row a latent, each of unit norm (within 0.001); stored as float32.
    mean : array_like of float, shape (d,), optional
        What unit rows are less before they are encoded: a code decodes to
        ``x_hat = mean + W^T a``. None, the default, is no mean.

    Attributes
    ----------
    atoms : ndarray of float32, shape (s, d)
        Read-only.
    mean : ndarray of float32, shape (d,), or None
        Read-only.
    history : tuple of FitRound
        How each round of `fit` or `refine` went; empty for atoms that came from elsewhere.

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

    __slots__ = ("_atoms", "_encoders", "_mean", "history")

    history: tuple[learning.FitRound, ...]

    def __init__(self, atoms: Any, *, mean: Any = None) -> None:
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
        self._mean = None
        if mean is not None:
            row = as_rows(mean, "mean", np.float32)
            if row.shape != (1, rows.shape[1]):
                raise ValueError(f"mean has shape {row.shape}; expected ({rows.shape[1]},)")
            self._mean = row[0].copy()
            self._mean.flags.writeable = False
        self._encoders = learning.Encoders(rows)
        self.history = ()

    @classmethod
    def _of(cls, learnt: learning.Learnt) -> Dictionary:
        dictionary = cls(learnt.atoms, mean=learnt.mean)
        dictionary.history = learnt.rounds
        return dictionary

    @classmethod
    def from_model(cls, model: Any) -> Dictionary:
        """The atoms of a trained model, copied.

        Parameters
        ----------
        model : CompresSAE
            Or anything with a method ``dictionary()`` that returns its `Dictionary`.

        Returns
        -------
        Dictionary
            ``model.dictionary()``: (s, d) atoms, no mean.

        Raises
        ------
        TypeError
            If the model has no such method.
        ValueError
            If a row of its decoder is not of unit norm.
        """
        make = getattr(model, "dictionary", None)
        dictionary = make() if callable(make) and not isinstance(model, type) else None
        if not isinstance(dictionary, Dictionary):
            raise TypeError(
                f"model is {model!r:.80}; expected a CompresSAE, or what has its dictionary()"
            )
        return dictionary

    @classmethod
    def fit(
        cls,
        x: Any,
        n_atoms: int | None = None,
        k: int = 32,
        *,
        rounds: int = 8,
        seed: int = 0,
        held_out: int = 0,
        sample: int | None = 1_000_000,
        subtract_mean: bool = False,
        regularisation: float = learning.REGULARISATION,
        momentum: float = learning.MOMENTUM,
        gram: str = "int8",
        memory_limit_bytes: int | None = None,
        column: str | None = None,
        progress: learning.Progress | None = None,
        threads: int | None = None,
    ) -> Dictionary:
        """Learn atoms from items, in closed form; torch is not needed.

        Starts from rows of `x` drawn at random and alternates pursuit of all rows with the
        least-squares solution for the atoms. The same arguments give the same atoms on the
        same kind of CPU, for any number of threads.

        Parameters
        ----------
        x : array_like of float, shape (n, d), or path
            Items, scaled to unit norm inside; zero rows teach nothing. A memmap, or anything
            with a shape that slices to arrays, is read in batches; so are a file ``.npy`` and
            the lists of numbers in a file ``.parquet``, by its path.
        n_atoms : int, optional
            Atoms, s, at most 65,536. Default: the power of two that leaves 12 rows an atom,
            4,096 at most. More atoms reconstruct better what they were learnt from, and
            with fewer rows an atom what they were not learnt from less well.
        k : int, default 32
            Nonzeros of a code while learning; codes of another k may be made later.
        rounds : int, default 8
            Rounds of pursuit and update; the gain of each is in `history`.
        seed : int, default 0
            Draws the first atoms, and the rows that are held out or sampled.
        held_out : int, default 0
            Rows that are not learnt from but reported on each round.
        sample : int or None, default 1,000,000
            Rows to learn from at most, drawn at random; None for all.
        subtract_mean : bool, default False
            Encode unit rows less their mean. It changed recall by nothing on text embeddings.
        regularisation : float, default 0.01
            How strongly atoms stay where they were, in units of mean(diag(A^T A)); at least 0.
        momentum : float, default 0.8
            From 0 to 1: how far beyond its solution each round steps, in units of the step it
            took; 0 for the plain method of optimal directions, which took 8 rounds where 0.8
            took 5.
        gram : {"int8", "int16", "float32", "free"}, default "int8"
            How the atoms' Gram matrix is kept (1, 2, 4 or 0 bytes an entry) while atoms are
            chosen; values are always fitted exactly.
        memory_limit_bytes : int, optional
            The most that the Gram matrix, and the sums of a round (8 s (s + d) bytes), may
            each take. Default: half of the machine's memory.
        column : str, optional
            Of a Parquet file. Default: the only column of lists of numbers.
        progress : callable, optional
            Called as ``progress(rows_done, rows_in_all)``, counted over all rounds.
        threads : int, optional
            Default: all processors, beside other calls a share of them.

        Returns
        -------
        Dictionary
            With its `history`.

        Raises
        ------
        TypeError
            If x does not hold real numbers.
        ImportError, OSError
            If x is a path: pyarrow is needed and not installed, or the file cannot be read.
        ValueError
            If a row is not finite (the message names it), x has fewer rows than atoms, k
            exceeds the atoms, or memory would exceed the limit.

        References
        ----------
        Engan, Aase & Husoy, "Method of optimal directions for frame design" (1999); Mallat &
        Zhang, "Matching pursuits with time-frequency dictionaries" (1993).

        Examples
        --------
        >>> import numpy as np, sparse_retrieval as sr
        >>> x = np.random.default_rng(0).standard_normal((200, 8))
        >>> dictionary = sr.Dictionary.fit(x, n_atoms=16, k=3, rounds=4)
        >>> dictionary
        Dictionary(16 atoms of width 8)
        >>> dictionary.history[-1].cosine > dictionary.history[0].cosine
        True
        """
        return cls._of(
            learning.learn(
                x,
                n_atoms=n_atoms,
                k=k,
                rounds=rounds,
                seed=seed,
                held_out=held_out,
                sample=sample,
                subtract_mean=subtract_mean,
                regularisation=regularisation,
                momentum=momentum,
                gram=gram,
                memory_limit_bytes=memory_limit_bytes,
                column=column,
                progress=progress,
                threads=threads,
            )
        )

    def refine(self, x: Any, rounds: int = 4, k: int = 32, **options: Any) -> Dictionary:
        """A dictionary learnt from `x` that starts from these atoms.

        Parameters
        ----------
        x : array_like of float, shape (n, d)
            As in `fit`.
        rounds, k : int
            As in `fit`.
        **options
            Further arguments of `fit` but `n_atoms` and `subtract_mean`: the atoms and the
            mean are these ones'.

        Returns
        -------
        Dictionary
            A new one; this one stays as it is.

        Raises
        ------
        TypeError, ValueError
            As `fit`; also if x has another width than the atoms.
        """
        for fixed in ("n_atoms", "subtract_mean"):
            if fixed in options:
                raise TypeError(f"refine keeps the dictionary's {fixed}; use Dictionary.fit")
        return type(self)._of(
            learning.learn(x, rounds=rounds, k=k, initial=self._atoms, mean=self._mean, **options)
        )

    def encode(self, x: Any, k: int = 32, method: str = "pursuit", **options: Any) -> SparseCodes:
        """Codes of items: few atoms each, chosen greedily, their values fitted.

        Parameters
        ----------
        x : array_like of float, shape (n, d), iterator of such batches, or path
            Items of any real dtype; scaled to unit norm inside. Arrays on disk (a memmap, a
            file ``.npy`` or ``.parquet`` by its path) are read in batches of float32.
        k : int, default 32
            Nonzeros a row at most; a row has fewer when nothing is left of it. A zero row has
            none.
        method : {"pursuit", "omp", "topk", "topk_refit"}, default "pursuit"
            ``"pursuit"``: matching pursuit, all values refitted by least squares after every
            `refit_every` atoms. ``"omp"``: a refit after every atom. ``"topk"``: the k largest
            of |W x| as they are, and ``"topk_refit"`` with fitted values: for comparison.
        **options
            refit_every : int, default 8
                Atoms between two refits.
            normalise : bool, default True
                Codes of unit rows. False multiplies values by the row's norm, so that inner
                products with decoded codes are those of x itself.
            gram, memory_limit_bytes, column, progress, threads
                As in `fit`. The Gram matrix is built on the first call and kept. Of an
                iterator, `progress` gets None as the rows in all.

        Returns
        -------
        SparseCodes
            n rows over s latents.

        Raises
        ------
        TypeError
            If x does not hold real numbers.
        ImportError, OSError
            If x is a path: pyarrow is needed and not installed, or the file cannot be read.
        ValueError
            If a row is not finite (the message names it), x has another width than the
            atoms, or k exceeds the atoms.

        Examples
        --------
        >>> import numpy as np, sparse_retrieval as sr
        >>> dictionary = sr.Dictionary(np.eye(4))
        >>> dictionary.encode([[0.0, 3.0, 0.0, -4.0]], k=2).to_dense().round(3).tolist()
        [[0.0, 0.6000000238418579, 0.0, -0.800000011920929]]
        """
        return SparseCodes.concatenate(
            list(self.iter_encode(x, k, method, **options)) or [self._no_codes()]
        )

    def iter_encode(
        self,
        x: Any,
        k: int = 32,
        method: str = "pursuit",
        *,
        refit_every: int = 8,
        normalise: bool = True,
        gram: str = "int8",
        memory_limit_bytes: int | None = None,
        column: str | None = None,
        progress: learning.Progress | None = None,
        threads: int | None = None,
    ) -> Iterator[SparseCodes]:
        """Codes of items, batch after batch: any number of rows in constant memory.

        Parameters
        ----------
        x, k, method, refit_every, normalise, gram, memory_limit_bytes, column, progress, threads
            As in `encode`.

        Yields
        ------
        SparseCodes
            One a batch: of an iterator's batches as they come, of an array `BATCH_ROWS` rows.

        Raises
        ------
        TypeError, ValueError
            As `encode`, when the batch's turn comes.
        """
        encoder = self._encoders.get(gram, memory_limit_bytes=memory_limit_bytes, threads=threads)
        return learning.encode(
            encoder,
            x,
            dim=self.n_atoms,
            k=k,
            method=method,
            refit_every=refit_every,
            normalise=normalise,
            mean=self._mean,
            column=column,
            progress=progress,
            threads=threads,
        )

    def _no_codes(self) -> SparseCodes:
        return SparseCodes.from_csr([0], [], [], self.n_atoms)

    @property
    def atoms(self) -> npt.NDArray[np.float32]:
        """The atoms, shape (s, d), read-only."""
        return self._atoms

    @property
    def mean(self) -> npt.NDArray[np.float32] | None:
        """The mean that is subtracted before encoding, shape (d,), read-only; or None."""
        return self._mean

    @property
    def n_atoms(self) -> int:
        """Number of atoms, s."""
        return len(self._atoms)

    @property
    def embedding_dim(self) -> int:
        """Width of embeddings, d."""
        return int(self._atoms.shape[1])

    def decode(self, codes: Any) -> npt.NDArray[np.float32]:
        """Embeddings ``x_hat = W^T a`` (plus the mean, where there is one) of codes.

        Parameters
        ----------
        codes : SparseCodes, scipy sparse matrix, torch sparse tensor, or (indices, values)
            n rows over s latents.

        Returns
        -------
        ndarray of float32, shape (n, d)
            Not normalised; a row without nonzeros decodes to zeros, or the mean.

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
        if self._mean is not None:
            out += self._mean
        return out

    def describe(
        self, atom: int, codes: Any, *, names: Any = None, top: int = 10
    ) -> AtomDescription:
        """What an atom stands for: the items that use it most.

        Parameters
        ----------
        atom : int
            The latent, 0 to s - 1.
        codes : SparseIndex, SparseCodes, scipy sparse matrix, or (indices, values)
            Items over these atoms. An index of many items is better unpacked once, by
            ``index.get(index.ids)``, when many atoms are described.
        names : sequence of str, optional
            A name for each item, in their order.
        top : int, default 10
            Items to list of each sign.

        Returns
        -------
        AtomDescription
            The strongest items of each sign, how many use the atom, and atoms like it. Printed,
            it is a small table.

        Raises
        ------
        TypeError, ValueError
            If there is no such atom, codes are over other latents, or there are more or fewer
            names than items.

        Examples
        --------
        >>> import numpy as np, sparse_retrieval as sr
        >>> dictionary = sr.Dictionary(np.eye(3))
        >>> codes = sr.SparseCodes([[0, 2], [1, 2]], [[0.6, 0.8], [1.0, -0.2]], dim=3)
        >>> print(dictionary.describe(2, codes, names=["apple", "boat"]))
        atom 2: used by 2 of 2 items (100.00%)
          +0.800  apple
          -0.200  boat
          similar atoms: 0 (+0.00), 1 (+0.00)
        """
        from sparse_retrieval.interpret import describe

        return describe(self, atom, codes, names=names, top=top)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write atoms and mean to a safetensors file, which appears whole or not at all.

        Raises
        ------
        ImportError
            If safetensors is not installed.
        OSError
            If the file cannot be written.
        """
        safetensors = require("safetensors.numpy", "Dictionary.save")
        with replacing(path) as temporary:
            tensors = {"atoms": self._atoms}
            if self._mean is not None:
                tensors["mean"] = self._mean
            safetensors.save_file(tensors, temporary)

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
        return cls(tensors["atoms"], mean=tensors.get("mean"))

    def _write_to(self, directory: str | os.PathLike[str]) -> None:
        from sparse_retrieval.integrations import hub

        hub.save_dictionary(self, directory)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str], **hub_options: Any
    ) -> Dictionary:
        """Read a folder that :meth:`save_pretrained` wrote, or a repository of the hub.

        Parameters
        ----------
        name_or_path : str or path-like
            A folder, or ``owner/name`` on the Hugging Face hub (extra ``hub``). A CompresSAE's
            gives its atoms, without torch.
        **hub_options
            revision, cache_dir, token, force_download, local_files_only: as in
            ``huggingface_hub.snapshot_download``.

        Raises
        ------
        ImportError
            If safetensors or, for a repository, huggingface_hub is not installed.
        FileNotFoundError
            If a file is missing.
        ValueError
            If the files are not sound, or do not belong together.
        """
        from sparse_retrieval.integrations import hub

        return hub.load_dictionary(hub.folder_of(name_or_path, **hub_options))

    def __reduce__(self) -> tuple[Any, ...]:
        # the Gram matrix is not carried along: whoever encodes makes it anew
        return _restored, (self._atoms, self._mean, self.history)

    def __repr__(self) -> str:
        return f"Dictionary({self.n_atoms} atoms of width {self.embedding_dim})"


def _restored(atoms: Any, mean: Any, history: tuple[learning.FitRound, ...]) -> Dictionary:
    dictionary = Dictionary(atoms, mean=mean)
    dictionary.history = history
    return dictionary
