"""scikit-learn estimators: a transformer to sparse codes, and nearest neighbours by them.

Needs the extra ``sklearn``. Follows scikit-learn's conventions (parameters are kept as given,
what is learnt ends in an underscore, fitted estimators pickle), which its own
``parametrize_with_checks`` tests. The work is done by `Dictionary` and `SparseIndex`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sparse_retrieval import compress
from sparse_retrieval._arrays import as_count
from sparse_retrieval._extras import require
from sparse_retrieval.codes import SparseCodes, as_codes
from sparse_retrieval.dictionary import Dictionary
from sparse_retrieval.index import SparseIndex
from sparse_retrieval.rescoring import as_oversample

require("sklearn", "sparse_retrieval.integrations.sklearn")

from scipy import sparse  # noqa: E402
from sklearn.base import (  # noqa: E402
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils import check_random_state  # noqa: E402
from sklearn.utils.validation import check_is_fitted, validate_data  # noqa: E402

__all__ = ["SparseCoding", "SparseNeighbors", "SparseNeighborsTransformer"]


class _Coded(BaseEstimator):
    """What both kinds of estimators share: rows are checked, a dictionary is had, rows encoded."""

    n_atoms: int | None
    k: int
    rounds: int
    dictionary: Any
    random_state: Any
    n_jobs: int | None
    dictionary_: Dictionary

    def _checked(self, X: Any, *, reset: bool) -> npt.NDArray[Any]:
        rows: npt.NDArray[Any] = validate_data(
            self,
            X,
            reset=reset,
            dtype=[np.float32, np.float64],
            order="C",
            ensure_min_samples=2 if reset and self.dictionary is None else 1,
        )
        return rows

    def _threads(self) -> int | None:
        if self.n_jobs is None or self.n_jobs == -1:
            return None
        return as_count(self.n_jobs, "n_jobs", most=1024)

    def _learnt(self, rows: npt.NDArray[Any]) -> Dictionary:
        """The dictionary that was given, or one learnt from the rows."""
        if self.dictionary is not None:
            given = self.dictionary
            dictionary = given if isinstance(given, Dictionary) else Dictionary(given)
            if dictionary.embedding_dim != rows.shape[1]:
                raise ValueError(
                    f"X has {rows.shape[1]} features, dictionary has atoms of width "
                    f"{dictionary.embedding_dim}; expected the same"
                )
            return dictionary
        n_atoms = self.n_atoms
        if n_atoms is None:
            n_atoms = min(compress.default_atoms(max(len(rows), 7), rows.shape[1]), len(rows))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        return Dictionary.fit(
            rows,
            n_atoms,
            min(as_count(self.k, "k"), n_atoms),
            rounds=self.rounds,
            seed=seed,
            threads=self._threads(),
        )

    def _encoded(self, rows: npt.NDArray[Any], *, normalise: bool = True) -> SparseCodes:
        k = min(as_count(self.k, "k"), self.dictionary_.n_atoms)
        return self.dictionary_.encode(
            rows, k, normalise=normalise, threads=self._threads(), gram="int8"
        )


class SparseCoding(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _Coded):
    """Transform embeddings into sparse codes over learnt atoms.

    As `sklearn.decomposition.DictionaryLearning` and, with a given dictionary,
    `sklearn.decomposition.SparseCoder`, for many rows: codes come as a CSR matrix.

    Parameters
    ----------
    n_atoms : int, optional
        Atoms to learn, s. Default: that of `SparseIndex.from_embeddings`, 64 to 8,192, and
        no more than there are rows.
    k : int, default 32
        Nonzeros of a code at most; no more than there are atoms.
    rounds : int, default 8
        Rounds of learning.
    dictionary : Dictionary or array_like of float, shape (s, d), optional
        Used as it is, its atoms of unit norm; nothing is learnt then.
    normalise : bool, default True
        Codes of unit rows. False keeps the norms: ``inverse_transform`` then approximates the
        rows themselves.
    sparse_output : bool, default True
        A ``scipy.sparse.csr_array``, or with False a dense array (n, s).
    random_state : int, RandomState or None, default 0
        Of the learning. 0 rather than scikit-learn's usual None: the same rows then give the
        same atoms.
    n_jobs : int, optional
        Threads. None and -1, the default, are all processors.

    Attributes
    ----------
    dictionary_ : Dictionary
        The atoms in use.
    components_ : ndarray of float32, shape (s, d)
        The same as an array, under scikit-learn's name.
    n_features_in_ : int
        d.
    n_iter_ : int
        Rounds that were run; 0 where the dictionary was given.

    References
    ----------
    Mallat & Zhang, "Matching pursuits with time-frequency dictionaries" (1993).

    Examples
    --------
    >>> import numpy as np
    >>> from sparse_retrieval.integrations.sklearn import SparseCoding
    >>> x = np.random.default_rng(0).standard_normal((500, 16))
    >>> coding = SparseCoding(n_atoms=64, k=4).fit(x)
    >>> codes = coding.transform(x)
    >>> codes.shape, codes.nnz, coding.inverse_transform(codes).shape
    ((500, 64), 2000, (500, 16))
    """

    def __init__(
        self,
        n_atoms: int | None = None,
        k: int = 32,
        *,
        rounds: int = 8,
        dictionary: Any = None,
        normalise: bool = True,
        sparse_output: bool = True,
        random_state: Any = 0,
        n_jobs: int | None = None,
    ) -> None:
        self.n_atoms = n_atoms
        self.k = k
        self.rounds = rounds
        self.dictionary = dictionary
        self.normalise = normalise
        self.sparse_output = sparse_output
        self.random_state = random_state
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any = None) -> SparseCoding:
        """Learn the atoms, or take the dictionary that was given.

        Parameters
        ----------
        X : array_like of float, shape (n, d)
            At least 2 rows, unless a dictionary is given.
        y : ignored
            There for pipelines.

        Returns
        -------
        SparseCoding
            This estimator.

        Raises
        ------
        TypeError, ValueError
            For rows or parameters that are not sound.
        """
        self.dictionary_ = self._learnt(self._checked(X, reset=True))
        self.components_ = self.dictionary_.atoms
        self.n_iter_ = len(self.dictionary_.history) if self.dictionary is None else 0
        return self

    def transform(self, X: Any) -> Any:
        """Encode rows.

        Parameters
        ----------
        X : array_like of float, shape (n, d)

        Returns
        -------
        csr_array or ndarray of float32, shape (n, s)
            At most k nonzeros a row.

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        ValueError
            If X has another width than what was fitted, or is not finite.
        """
        check_is_fitted(self)
        codes = self._encoded(self._checked(X, reset=False), normalise=self.normalise)
        return codes.to_scipy() if self.sparse_output else codes.to_dense()

    def inverse_transform(self, X: Any) -> npt.NDArray[np.float32]:
        """Decode codes.

        Parameters
        ----------
        X : scipy sparse matrix, SparseCodes, or array_like of float, shape (n, s)

        Returns
        -------
        ndarray of float32, shape (n, d)
        """
        check_is_fitted(self)
        if isinstance(X, SparseCodes) or sparse.issparse(X):
            return self.dictionary_.decode(as_codes(X))
        return self.dictionary_.decode(SparseCodes.from_dense(X))

    @property
    def _n_features_out(self) -> int:
        return self.dictionary_.n_atoms

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]  # codes are float32 in any case
        return tags


class SparseNeighbors(_Coded):
    """Nearest neighbours by cosine, from short codes instead of the rows.

    As `sklearn.neighbors.NearestNeighbors` with ``metric="cosine"``, in a fraction of the
    memory. Distances are 1 minus the cosine of the query with the decoded item, so they are
    approximate, and a fitted row is near itself, not at 0; ``oversample`` makes them exact.

    Parameters
    ----------
    n_neighbors : int, default 5
        Neighbours that are returned.
    k : int, default 32
        Nonzeros of a code.
    n_atoms, rounds, dictionary, random_state, n_jobs
        As in `SparseCoding`; rounds are 12 by default.
    value_bits : {32, 16, 8} or 1 to 7, default 4
        As in `SparseIndex.from_codes`.
    oversample : float, optional
        Keep the rows too (in float16), and order the best ``oversample * n_neighbors`` by code
        by their cosines with the rows. 3 finds nearly all of the true neighbours. Default:
        None, codes alone.

    Attributes
    ----------
    index_ : SparseIndex
        What is searched.
    dictionary_ : Dictionary
        Its atoms.
    n_features_in_, n_samples_fit_ : int
        d and n.
    effective_metric_ : str
        ``"cosine"``.

    Examples
    --------
    >>> import numpy as np
    >>> from sparse_retrieval.integrations.sklearn import SparseNeighbors
    >>> x = np.random.default_rng(0).standard_normal((500, 16)).astype(np.float32)
    >>> neighbors = SparseNeighbors(n_neighbors=3, n_atoms=128, k=12, oversample=4).fit(x)
    >>> distances, indices = neighbors.kneighbors(x[:2])
    >>> indices[:, 0].tolist(), distances.shape
    ([0, 1], (2, 3))
    """

    def __init__(
        self,
        n_neighbors: int = 5,
        *,
        k: int = 32,
        n_atoms: int | None = None,
        rounds: int = 12,
        dictionary: Any = None,
        value_bits: float = 4,
        oversample: float | None = None,
        random_state: Any = 0,
        n_jobs: int | None = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.k = k
        self.n_atoms = n_atoms
        self.rounds = rounds
        self.dictionary = dictionary
        self.value_bits = value_bits
        self.oversample = oversample
        self.random_state = random_state
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any = None) -> Any:
        """Learn a dictionary, encode the rows, and index them.

        Parameters
        ----------
        X : array_like of float, shape (n, d)
            Neighbours to come.
        y : ignored
            There for pipelines.

        Returns
        -------
        SparseNeighbors
            This estimator.

        Raises
        ------
        TypeError, ValueError
            For rows or parameters that are not sound.
        """
        rows = self._checked(X, reset=True)
        if self.oversample is not None:
            as_oversample(self.oversample)
        self.dictionary_ = self._learnt(rows)
        self.index_ = SparseIndex.from_codes(
            self._encoded(rows),
            dictionary=self.dictionary_,
            metric="cosine",
            value_bits=self.value_bits,
            unit_items=True,
            threads=self._threads(),
        )
        self._rows = None if self.oversample is None else _narrow(rows)
        self.n_samples_fit_ = len(rows)
        self.effective_metric_ = "cosine"
        return self

    def kneighbors(
        self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True
    ) -> Any:
        """Nearest fitted rows of each query, nearest first.

        Parameters
        ----------
        X : array_like of float, shape (n_queries, d), optional
            Default: the fitted rows, each of which is then not its own neighbour. As the rows
            are not kept, their decoded codes stand in for them (with ``oversample`` the rows).
        n_neighbors : int, optional
            Default: the parameter.
        return_distance : bool, default True

        Returns
        -------
        distances : ndarray of float32, shape (n_queries, n_neighbors)
            Cosine distances; only with ``return_distance``.
        indices : ndarray of int64, shape (n_queries, n_neighbors)

        Raises
        ------
        NotFittedError
            Before :meth:`fit`.
        ValueError
            If there are fewer rows than neighbours, or X does not fit.
        """
        check_is_fitted(self)
        wanted = as_count(self.n_neighbors if n_neighbors is None else n_neighbors, "n_neighbors")
        available = self.n_samples_fit_ - (X is None)
        if wanted > available:
            raise ValueError(
                f"n_neighbors is {wanted}; expected at most {available}, the number of fitted "
                f"rows{' less the row itself' if X is None else ''}"
            )
        exclude = None
        if X is None:
            positions = np.arange(self.n_samples_fit_)
            rows = self.index_.reconstruct(positions) if self._rows is None else self._rows
            exclude = positions[:, None]
        else:
            rows = self._checked(X, reset=False)
        scores, indices = self.index_.search(
            rows,
            wanted,
            exclude=exclude,
            rescore=self._rows,
            oversample=3 if self.oversample is None else self.oversample,
            threads=self._threads(),
        )
        if not return_distance:
            return indices
        # an estimate of a cosine may exceed 1, and a distance may not be negative
        return np.maximum(np.float32(1.0) - scores, np.float32(0.0)), indices

    def kneighbors_graph(
        self,
        X: Any = None,
        n_neighbors: int | None = None,
        mode: Literal["connectivity", "distance"] = "connectivity",
    ) -> Any:
        """Neighbours as a sparse matrix, as scikit-learn's ``metric="precomputed"`` takes it.

        Parameters
        ----------
        X, n_neighbors
            As in :meth:`kneighbors`.
        mode : {"connectivity", "distance"}, default "connectivity"
            Entries of 1, or distances.

        Returns
        -------
        csr_matrix, shape (n_queries, n)
            ``n_neighbors`` stored entries a row, nearest first.

        Raises
        ------
        ValueError
            For another mode, and as :meth:`kneighbors`.
        """
        if mode not in ("connectivity", "distance"):
            raise ValueError(f'mode is {mode!r}; expected "connectivity" or "distance"')
        distances, indices = self.kneighbors(X, n_neighbors)
        values = distances if mode == "distance" else np.ones_like(distances)
        indptr = np.arange(0, indices.size + 1, indices.shape[1])
        return sparse.csr_matrix(
            (values.ravel(), indices.ravel(), indptr),
            shape=(len(indices), self.n_samples_fit_),
        )

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        if "index_" in state:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "index.sridx"
                self.index_.save(path)
                state = {**state, "index_": path.read_bytes()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "index_" in state:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "index.sridx"
                path.write_bytes(state["index_"])
                opened = SparseIndex.open(path, mmap=False)
            state = {**state, "index_": SparseIndex._of(opened._native, None)}
        super().__setstate__(state)


class SparseNeighborsTransformer(
    ClassNamePrefixFeaturesOutMixin, TransformerMixin, SparseNeighbors
):
    """Transform rows into the graph of their nearest fitted rows, for a pipeline.

    As `sklearn.neighbors.KNeighborsTransformer`: what follows takes ``metric="precomputed"``.

    Parameters
    ----------
    n_neighbors : int, default 5
        Neighbours of a row. There is one more in the graph, as a fitted row is its own.
    k, n_atoms, rounds, dictionary, value_bits, oversample, random_state, n_jobs
        As in `SparseNeighbors`.

    Attributes
    ----------
    index_, dictionary_, n_features_in_, n_samples_fit_, effective_metric_
        As in `SparseNeighbors`.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.cluster import DBSCAN
    >>> from sklearn.pipeline import make_pipeline
    >>> from sparse_retrieval.integrations.sklearn import SparseNeighborsTransformer
    >>> x = np.random.default_rng(0).standard_normal((300, 16))
    >>> clusters = make_pipeline(
    ...     SparseNeighborsTransformer(10, n_atoms=64, k=8), DBSCAN(eps=0.3, metric="precomputed")
    ... )
    >>> clusters.fit_predict(x).shape
    (300,)
    """

    def transform(self, X: Any) -> Any:
        """Distances to the ``n_neighbors + 1`` nearest fitted rows.

        Parameters
        ----------
        X : array_like of float, shape (n_queries, d)

        Returns
        -------
        csr_matrix of float32, shape (n_queries, n)
            At most all fitted rows.
        """
        check_is_fitted(self)
        wanted = as_count(self.n_neighbors, "n_neighbors") + 1
        return self.kneighbors_graph(X, min(wanted, self.n_samples_fit_), mode="distance")

    @property
    def _n_features_out(self) -> int:
        return self.n_samples_fit_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]  # scores are float32 in any case
        return tags


def _narrow(rows: npt.NDArray[Any]) -> npt.NDArray[np.float16]:
    """Unit rows in half precision: half of the memory, cosines to three digits and more."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    narrow: npt.NDArray[np.float16] = unit.astype(np.float16)
    return narrow
