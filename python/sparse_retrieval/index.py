"""The index: codes with all it takes to search them, in memory or in one mapped file.

numpy alone. Scores and order are defined in :meth:`SparseIndex.search`; the work is done by
the native module, detached from the interpreter.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from sparse_retrieval import _native as native
from sparse_retrieval import rescoring
from sparse_retrieval._arrays import as_count, as_real, as_rows, as_threads, of_column
from sparse_retrieval._changes import Changes
from sparse_retrieval._ids import as_array, as_ids, as_unique_ids
from sparse_retrieval._rows import open_rows
from sparse_retrieval.approximate import Approximate, tune
from sparse_retrieval.codes import SparseCodes, as_codes, holds_codes
from sparse_retrieval.dictionary import Dictionary
from sparse_retrieval.selection import Bitmap, as_exclusions, as_filter, of_queries

if TYPE_CHECKING:
    from sparse_retrieval.interpret import MatchExplanation

Metric = Literal["inner_product", "cosine"]
Mode = Literal["sparse", "reconstructed", "dense"]
Progress = Callable[[int], object]


#: Items of a block of postings, where nothing else is asked for, and the most that a file holds.
DEFAULT_BLOCK_ITEMS = 65_472
MOST_BLOCK_ITEMS = 65_535


class SearchResult(NamedTuple):
    """What a search found, best first.

    Attributes
    ----------
    scores : ndarray of float32, shape (nq, k) or (k,)
        Padded with -inf where fewer than k items exist.
    ids : ndarray of int64 or of object (str), shape (nq, k) or (k,)
        Padded with -1, or None where ids are strings.
    """

    scores: npt.NDArray[np.float32]
    ids: npt.NDArray[Any]


class SparseIndex(Changes):
    """Codes, scales, ids and a dictionary, searched exactly.

    Made by :meth:`from_codes` or :meth:`open`. It may be searched from many threads at once, and
    after a fork, and changed meanwhile (:meth:`add`, :meth:`remove`, :meth:`update`): a search
    answers for the moment at which it began, exactly, as an index built of the items of that
    moment would. A pickle refers to the file that the index was opened from.

    Examples
    --------
    >>> import sparse_retrieval as sr
    >>> codes = sr.SparseCodes([[0, 2], [1, 2]], [[0.5, -1.0], [2.0, 1.0]], dim=4)
    >>> index = sr.SparseIndex.from_codes(codes, ids=[10, 20])
    >>> result = index.search(codes[:1], k=3)
    >>> result.ids.tolist(), result.scores.tolist()
    ([[10, 20, -1]], [[1.25, -1.0, -inf]])
    """

    __slots__ = ("_encoder", "_native", "_path")

    _native: native.Index
    _path: Path | None
    _encoder: Dictionary | None

    def __init__(self) -> None:
        raise TypeError("use SparseIndex.from_codes or SparseIndex.open")

    @classmethod
    def _of(cls, built: native.Index, path: Path | None) -> SparseIndex:
        index = cls.__new__(cls)
        index._native = built
        index._path = path
        index._encoder = None
        return index

    @classmethod
    def from_codes(
        cls,
        codes: Any,
        *,
        dim: int | None = None,
        dictionary: Dictionary | None = None,
        ids: Any = None,
        metric: Metric = "inner_product",
        value_bits: float = 32,
        complete: bool = False,
        modes: Sequence[Mode] | None = None,
        unit_items: bool = False,
        reconstruction_cosine: float | None = None,
        metadata: Any = None,
        approximate: bool = False,
        postings: bool | int = False,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> SparseIndex:
        """Build an index in memory.

        Parameters
        ----------
        codes : SparseCodes, scipy sparse matrix, torch sparse tensor, or (indices, values)
            n items over s latents.
        dim : int, optional
            Number of latents, where codes are (indices, values) and no dictionary is given.
        dictionary : Dictionary, optional
            With s atoms; needed for the modes "reconstructed" and "dense". One with a mean goes
            with "inner_product" or ``unit_items``: the mean then adds the same to all scores of
            a query.
        ids : array_like of int or of str, shape (n,), optional
            What search returns for each item: unique; a number is not -1. Default: the positions
            0 to n - 1.
        metric : {"inner_product", "cosine"}, default "inner_product"
            The inner product needs no scale a row, so it is the lossless default; "cosine"
            normalises both sides, in code space for mode "sparse", in embedding space for the
            others.
        value_bits : {32, 16, 8} or 1 to 7, default 32
            32 stores the values themselves. 16 and 8 store levels of a uniform grid, one step
            a row: an error of at most 1/65534 or 1/254 of the row's largest magnitude. From 1
            to 7 values are coded by rank: a sign and value_bits - 1 bits that choose a level
            from a codebook of the nonzero's rank by magnitude, learnt from these codes; with a
            dictionary the levels of a row are chosen together, for the least error of what it
            decodes to. 4 loses next to nothing against 32. A fraction, as 3.5, is a mean: ranks
            get the bits where they help most. Scales then take 2 bytes instead of 4, and
            latents as few bits as hold dim, which may be 65,536 at most.
        complete : bool, default False
            Every item has every latent, so that rows need not say which: values stand in the
            order of the latents, with a codebook for each, and value_bits are 1 to 12, a mean.
            For codes over atoms at right angles, see :meth:`from_embeddings`. A value that a row
            lacks counts as 0 and is stored as the level nearest to it.
        modes : sequence of {"sparse", "reconstructed", "dense"}, optional
            What the index shall serve. Default: ("sparse",) without a dictionary,
            ("dense", "reconstructed") with one (they share their scales).
        unit_items : bool, default False
            Under "cosine", in the modes "dense" and "reconstructed": the codes encode embeddings
            of unit norm, so the item's norm is 1 and not that of what the code decodes to.
            Scores then estimate the cosine with the original item; recall rises a little,
            because items that decode badly (to a shorter vector) are trusted less.
        reconstruction_cosine : float, optional
            Mean cosine of the items and what their codes decode to, where the caller knows it;
            kept for :meth:`stats`.
        metadata : JSON-serialisable, optional
            Kept with the index and in its file.
        approximate : bool, default False
            Make clusters too, as :meth:`with_clusters` does; needs a dictionary.
        postings : bool or int, default False
            Keep for every latent the items that have it, see :meth:`with_postings`. Off by
            default: only the mode "sparse" uses them, and they take some 2.4 bytes a nonzero,
            which may be more than the rows themselves.
        threads : int, optional
            Default: all processors, beside other calls a share of them.
        progress : callable, optional
            Called every 50 ms or so with the number of rows done: n for packing, and n more for
            each set of scales that cosine needs.

        Returns
        -------
        SparseIndex

        Raises
        ------
        TypeError
            If an argument is of the wrong kind.
        ValueError
            If codes are not sound (see :class:`SparseCodes`), the dictionary does not fit them,
            ids are not unique, or a mode lacks its dictionary.
        MemoryError
            If the packed rows find no room.
        """
        if dictionary is not None and not isinstance(dictionary, Dictionary):
            raise TypeError(f"dictionary is {type(dictionary).__name__}; expected Dictionary")
        if dim is None and dictionary is not None:
            dim = dictionary.n_atoms
        items = as_codes(codes, dim=dim)
        if dim is not None and items.dim != dim:
            source = "the dictionary has" if dictionary is not None else "dim says"
            raise ValueError(f"codes are over {items.dim} latents; {source} {dim}")
        built = native.Index.build(
            items.indptr,
            items.latents,
            items.values,
            items.dim,
            dictionary=None if dictionary is None else dictionary.atoms,
            mean=None if dictionary is None else dictionary.mean,
            ids=None if ids is None else as_ids(ids),
            metric=_as_name(metric, "metric"),
            value_bits=as_real(value_bits, "value_bits"),
            complete=bool(complete),
            modes=[] if modes is None else _as_modes(modes),
            unit_items=bool(unit_items),
            reconstruction_cosine=reconstruction_cosine,
            metadata=None if metadata is None else _as_json(metadata),
            postings=_as_block_items(postings),
            threads=as_threads(threads),
            progress=progress,
        )
        index = cls._of(built, None)
        return index.with_clusters(threads=threads, progress=progress) if approximate else index

    def with_postings(
        self,
        block_items: int | None = None,
        *,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> SparseIndex:
        """Return the same index with postings, for faster search in mode "sparse".

        Postings list for every latent the items that have it, so that a query with few nonzeros
        looks at those items only. Results are the same to the last bit. All else is shared with
        this index, which stays as it is; :meth:`save` writes the postings too, as sections that
        older releases skip. On an index with changes these are folded in first: the result is
        one in memory, of a copy of all rows.

        Parameters
        ----------
        block_items : int, optional
            Items of a block, 1 to 65,535. Default 65,472: sums of a block then fill 64 KB, which
            the second-level cache of any CPU holds, and there are few lists to begin.
        threads : int, optional
            Default: all processors, beside other calls a share of them.
        progress : callable, optional
            Called every 50 ms or so with the number of items done.

        Returns
        -------
        SparseIndex

        Raises
        ------
        ValueError
            If the index was not built for the mode "sparse".
        MemoryError
            If the postings find no room.

        Examples
        --------
        >>> import sparse_retrieval as sr
        >>> codes = sr.SparseCodes([[0, 2], [1, 2]], [[0.5, -1.0], [2.0, 1.0]], dim=4)
        >>> index = sr.SparseIndex.from_codes(codes)
        >>> index.stats()["postings"], index.with_postings().stats()["postings"]["block_items"]
        (None, 65472)
        """
        chosen = _as_block_items(True if block_items is None else block_items)
        assert chosen is not None  # only False asks for none
        changes = self._native.changes()
        is_changed = changes["added"] or changes["removed"]
        built = self._native.with_postings(chosen, threads=as_threads(threads), progress=progress)
        return type(self)._of(built, None if is_changed else self._path)

    @classmethod
    def from_embeddings(
        cls,
        x: Any,
        *,
        k: int | None = None,
        bytes_per_item: float | None = None,
        n_atoms: int | None = None,
        dictionary: Dictionary | None = None,
        value_bits: float | None = None,
        complete: bool | None = None,
        metric: Metric = "cosine",
        modes: Sequence[Mode] | None = None,
        ids: Any = None,
        metadata: Any = None,
        approximate: bool = False,
        rounds: int = 12,
        seed: int = 0,
        column: str | None = None,
        threads: int | None = None,
        progress: bool | None = None,
    ) -> SparseIndex:
        """Learn a dictionary, encode the embeddings and build an index, in one call.

        The same as :meth:`Dictionary.fit`, :meth:`Dictionary.encode` and :meth:`from_codes`,
        with these choices made: atoms are rounded to half precision before anything is encoded
        with them, so that the index holds them in 2 bytes a number; under "cosine" items count
        as unit vectors (``unit_items=True``).

        Parameters
        ----------
        x : array_like of float, shape (n, d), or path
            Any real dtype; at least 100 rows unless a dictionary is given. A memmap, or anything
            with a shape that slices to arrays, is read in batches; so are a file ``.npy`` and
            the lists of numbers in a file ``.parquet``, by its path. Memory then holds a batch,
            8 k bytes of code an item, and the index.
        k : int, optional
            Nonzeros an item. Default 32, at most half of the atoms; 1,024 at most.
        bytes_per_item : float, optional
            Bytes of row and scale instead of k: as many nonzeros as fit. The dictionary comes
            on top once (see :meth:`stats`): it matters below a million items.
        n_atoms : int, optional
            Default: a power of two that leaves about 7 rows an atom, 64 to 8,192; where d is
            below 384 fewer, down to 3, in proportion.
        dictionary : Dictionary, optional
            Used as it is; nothing is learnt then.
        value_bits : {32, 16, 8} or 1 to 7, optional
            As in :meth:`from_codes`. Default: 4; with ``bytes_per_item`` what decodes a sample of
            the rows best within these bytes, of 3.25 to 7, with nonzeros
            for four fifths of d at most.
        complete : bool, optional
            Store a value for each of the leading principal axes instead of a few atoms of many:
            better where sparse codes would have nearly as many nonzeros as there are dimensions
            (few dimensions, many bytes, no structure), and slower to search, a look-up an axis.
            Needs ``bytes_per_item``, which then alone decides how many axes and bits. Default:
            where nothing but the bytes is given, if a sample is then recalled better.
        metric : {"cosine", "inner_product"}, default "cosine"
            Under "inner_product" codes keep the norms of the items.
        modes, ids, metadata, approximate, threads
            As in :meth:`from_codes`.
        rounds : int, default 12
            Rounds of learning; each helps less than the one before it.
        seed : int, default 0
            Of the learning.
        column : str, optional
            Of a Parquet file. Default: the only column of lists of numbers.
        progress : bool, optional
            Show bars on stderr. Default: if that is a terminal and tqdm is installed.

        Returns
        -------
        SparseIndex

        Raises
        ------
        TypeError
            If x does not hold real numbers, or an argument is of the wrong kind.
        ImportError, OSError
            If x is a path: pyarrow is needed and not installed, or the file cannot be read.
        ValueError
            If a row is not finite (the message names it), there are too few rows, or arguments
            do not fit each other.

        Examples
        --------
        >>> import numpy as np, sparse_retrieval as sr
        >>> x = np.random.default_rng(0).standard_normal((500, 16))
        >>> index = sr.SparseIndex.from_embeddings(x, bytes_per_item=20)
        >>> index.bytes_per_item <= 20
        True
        >>> index.search(x[7], k=3).ids[0]
        np.int64(7)
        """
        from sparse_retrieval import complete as complete_codes
        from sparse_retrieval import compress

        metric = _as_metric(metric)
        if dictionary is not None and not isinstance(dictionary, Dictionary):
            raise TypeError(f"dictionary is {type(dictionary).__name__}; expected Dictionary")
        bits = compress.DEFAULT_BITS if value_bits is None else as_real(value_bits, "value_bits")
        only_bytes = bytes_per_item is not None and all(
            given is None for given in (k, n_atoms, dictionary, value_bits)
        )
        if complete and not only_bytes:
            raise ValueError(
                "complete=True needs bytes_per_item, and none of k, n_atoms, dictionary and "
                "value_bits: they follow from the bytes"
            )
        x = open_rows(x, column)
        if not hasattr(x, "shape"):
            x = as_rows(x, "x", np.float32)
        n = len(x)
        if dictionary is None and n < compress.LEAST_ROWS:
            raise ValueError(
                f"x has {n} rows; learning a dictionary needs at least {compress.LEAST_ROWS}, or "
                "pass dictionary="
            )
        if dictionary is not None:
            atoms = dictionary.n_atoms
        else:
            width = x.shape[1] if len(x.shape) == 2 else compress.WIDE
            atoms = compress.default_atoms(n, width)
            atoms = atoms if n_atoms is None else as_count(n_atoms, "n_atoms")
        chosen = compress.plan(
            n, k=k, bytes_per_item=bytes_per_item, n_atoms=atoms, value_bits=bits
        )
        # what would be refused in the end is refused before anything is learnt
        threads = as_threads(threads)
        ids = None if ids is None else as_unique_ids(ids, n)
        made = {"modes": modes, "metadata": metadata, "approximate": approximate}
        cls._check_build(metric=metric, value_bits=bits, **made)
        options: dict[str, Any] = {"normalise": metric == "cosine", "threads": threads}
        if complete and bytes_per_item is not None:
            axes = complete_codes.plan(x, bytes_per_item=bytes_per_item, **options)
            if axes is None:
                raise ValueError(
                    f"bytes_per_item is {bytes_per_item}; no axis of x fits, or the codes of "
                    f"{n} rows would take more than {complete_codes.MOST_BYTES >> 30} GB"
                )
            dictionary, chosen = axes
        elif dictionary is None:
            dictionary = compress.learn(
                x, chosen, rounds=rounds, seed=seed, threads=threads, progress=progress
            )
        if bytes_per_item is not None and value_bits is None and not complete:
            chosen = compress.tried(
                dictionary, x, bytes_per_item=bytes_per_item, metric=metric, threads=threads
            )
            if only_bytes and complete is None:
                dictionary, chosen = complete_codes.better_of(
                    x, (dictionary, chosen), bytes_per_item=bytes_per_item, **options
                )
        codes = compress.encode(
            dictionary,
            x,
            chosen,
            normalise=metric == "cosine",
            threads=threads,
            progress=progress,
        )
        return cls.from_codes(
            codes,
            dictionary=dictionary,
            ids=ids,
            metric=metric,
            value_bits=chosen.value_bits,
            complete=chosen.is_complete,
            unit_items=metric == "cosine",
            reconstruction_cosine=compress.mean_cosine(dictionary, x, codes),
            threads=threads,
            **made,
        )

    @classmethod
    def _check_build(cls, *, approximate: bool, **options: Any) -> None:
        """Raise what :meth:`from_codes` would of these options, by an index of one item."""
        one = SparseCodes([[0]], [[1.0]], dim=1)
        made = cls.from_codes(one, dictionary=Dictionary([[1.0]]), **options)
        if approximate and "dense" not in made.modes:
            raise ValueError(
                f"approximate=True compares embeddings, and modes are {made.modes}; expected "
                '"dense" among them'
            )

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, mmap: bool = True) -> SparseIndex:
        """Open a file that :meth:`save` wrote.

        Reads the header only and checks that all sections lie in the file: milliseconds at any
        size. Changes that were committed to the file's journal are read too. :meth:`verify` reads
        the rest.

        Parameters
        ----------
        path : path-like
        mmap : bool, default True
            Map the file: no copy, and its pages are shared with other processes. The open index
            stays valid while the file is *replaced*; a file that is truncated in place ends the
            process with SIGBUS at the next read. False reads it whole into memory, for network
            mounts and for files that others may cut.

        Raises
        ------
        FileNotFoundError, PermissionError, OSError
            If the file cannot be read.
        IndexFormatError
            If it is not a sound index file; the message says what is wrong and where.
        """
        opened = native.Index.open(os.fspath(path), mmap=bool(mmap))
        # another working directory later must not lead to another file
        return cls._of(opened, Path(path).absolute())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the index to a file, beside the target and then in its place.

        A reader sees the old file or the new one, never a part; after a crash too. The same
        index gives the same bytes. Changes are folded in: what was removed is not written, and
        rows are copied as they are stored. Postings are then made again, and rows are put into
        the clusters that there were, with the setting that was tuned; where there are less than
        half or more than twice as many items as when clusters were made, these are learnt anew.
        A journal of the target is removed; whatever another writer had committed to the target
        is replaced too.

        Raises
        ------
        OSError
            If the file cannot be written; the target is then as it was.
        BlockingIOError
            If another writer is at work on the path.
        """
        self._native.save(os.fspath(path))

    def verify(self) -> None:
        """Read everything and check it: checksums, rows, offsets, scales, ids, dictionary.

        Raises
        ------
        IndexFormatError
            With the first thing that is wrong, and where.
        """
        self._native.verify()

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        mode: Mode | None = None,
        k_row: int | None = None,
        filter: Any = None,
        exclude: Any = None,
        approximate: Approximate | bool | None = None,
        rescore: Any = None,
        rescore_ids: Any = None,
        oversample: float = 3,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> SearchResult:
        """The k best items of each query, exactly.

        Scores are ``scale_i * sum_j u[latent_ij] * value_ij`` in double precision over every
        stored row; the results are those of a full sort, whatever the threads, the batch and
        the CPU, to the last bit. Items that share no latent with the query score 0 and compete
        like any other: items of negative score rank below them.

        Parameters
        ----------
        queries : array_like or codes
            Dense embeddings of shape (nq, d) where the index holds a dictionary; otherwise
            codes: SparseCodes, a scipy sparse matrix, a torch sparse tensor, a pair (indices,
            values), or dense rows of shape (nq, s). One query of one axis gives results of one
            axis.
        k : int, default 10
            At least 1; may exceed the number of items.
        mode : {"dense", "reconstructed", "sparse"}, optional
            How to compare. "dense": the dense query, never encoded, with decoded items.
            "reconstructed": decoded queries with decoded items. "sparse": codes with codes.
            Dense queries of the last two are encoded first, by pursuit with as many nonzeros as
            the rows have (32 where rows differ), under "inner_product" with their norm (without,
            where the dictionary has a mean, which is one of unit rows); queries for codes of a
            CompresSAE are better encoded by its own encoder, ``model.sparse_codes``.
            Default: "dense" for dense queries; for codes "reconstructed" where the index was
            built for it, else "sparse".
        k_row : int, optional
            Read only the first ``k_row`` nonzeros of each row. They stand by descending
            magnitude (of complete codes: axes by descending variance), so a prefix is a coarser
            code of the same item, at the cost of fewer look-ups. Scales stay those of the whole
            rows.
        filter : Bitmap, array_like of bool, shape (n,), or array_like of int or str, optional
            The only items that may be returned, to all queries: a bitmap, a mask in the order of
            :attr:`ids`, or ids. What is found is what would be left of a search of everything,
            to the last bit; blocks of rows without an allowed one are not read. A
            :class:`Bitmap`, which :meth:`bitmap` makes of ids, is the quickest for more than
            one search.
        exclude : list of array_like of int, or array_like of int, shape (nq, m), optional
            Ids that each query may not return, as items already seen: one list a query, or
            rows padded with -1; or strings, padded with None. For a single query one list of
            one axis.
        approximate : Approximate or bool, optional
            Look only at the clusters nearest to the query, in mode "dense" or "reconstructed":
            some results may be missed, never without being asked. True takes the setting that
            :meth:`tune` has found, else ``Approximate()``. Needs an index with clusters (see
            :meth:`with_clusters`). The scores returned are those of exact search.
        rescore : array_like, numpy.memmap, or path of a .npy or .parquet file, optional
            The vectors that were encoded, shape (n, d), any real dtype: row i is the vector of
            the i-th item in the order of :attr:`ids`, whatever its id, unless ``rescore_ids``
            says otherwise. The best ``oversample * k`` by their codes are scored against their
            vectors, by the index's metric, in double precision, and the best k of those
            returned; candidates are found in the given ``mode``. The file stays on disk: only
            the rows of candidates are read from a memmap or .npy, only the row groups that hold
            them from a .parquet (of whose column of lists of d numbers there must be one).
            Queries must be embeddings.
        rescore_ids : array_like of int or str, shape (m,), optional
            Of which item each row of ``rescore`` is, which then has m rows, in any order; ids
            that no item has are passed over. For an index that changes beside a matrix that does
            not: one that only grows, row i for the item called i, goes with
            ``range(len(matrix))``. They are read whole at each call, some 30 ms a million.
        oversample : float, default 3
            Candidates for each of the k results, where ``rescore`` is given; at least 1. At 66
            bytes an item 3 is where the true best 100 are among the candidates but for 2 in
            1,000 (docs/benchmarks.md).
        threads : int, optional
            Default: all processors (``RAYON_NUM_THREADS`` where set) for a call that is alone;
            beside other calls of the process a share of them. Where all processors are taken,
            calls of any number of threads wait for their turn, except behind one that has run
            for 50 ms. Results do not depend on it.
        progress : callable, optional
            Called every 50 ms or so with the number of finished queries.

        Returns
        -------
        SearchResult
            ``(scores, ids)``: float32 and int64 (object where ids are strings), (nq, k) or (k,),
            best first, equal scores by lower position. Where fewer than k items may be returned:
            -inf and -1 (None for strings). A score beyond
            float32 is returned as infinity. Under "cosine" a zero query scores 0, a zero item 0 or,
            where the dictionary has a mean, as the mean does; and an item whose norm is below
            3e-39 scores less than its cosine, in absolute value: the inverse of such a norm is
            beyond float32, in which scales are stored.

        Raises
        ------
        TypeError
            If queries, filter or exclude are of the wrong kind or dtype.
        ValueError
            If a query holds NaN or inf, widths do not fit, the mode was not built for, k is
            less than 1, filter or exclude have another length, or hold an id that no item has;
            if ``rescore`` has another shape, a vector that was read is not finite (the message
            names its row), ``rescore_ids`` lacks a candidate or holds it twice, or queries are
            codes.
        ImportError
            If ``rescore`` is a .parquet file, and pyarrow is not installed.

        References
        ----------
        The modes "sparse" and "reconstructed" are the fast and the accurate retrieval of
        CompresSAE (arXiv 2505.11388); its kernel trick is ``u = W W^T c``.
        """
        k = as_count(k, "k")
        threads = as_threads(threads)
        options: dict[str, Any] = {
            "k_row": None if k_row is None else as_count(k_row, "k_row"),
            "filter": as_filter(filter, self._native),
            "approximate": self._setting(approximate),
            "threads": threads,
            "progress": progress,
        }
        asked = self._asked(queries, mode, threads)
        options["mode"] = self._mode_for(asked, mode)
        excluded = as_exclusions(exclude, len(asked))
        if not rescoring.is_asked(rescore, rescore_ids):
            scores, ids = self._found(asked, k, positions=False, exclude=excluded, **options)
        else:
            # positions must mean the same when candidates are found and when they are scored
            frozen = type(self)._of(self._native.frozen(), None)

            def candidates(batch: slice, wanted: int) -> npt.NDArray[np.int64]:
                some = {"exclude": of_queries(excluded, batch), "positions": True, **options}
                positions: npt.NDArray[np.int64] = frozen._found(asked[batch], wanted, **some)[1]
                return positions

            scores, ids = rescoring.rescored(
                frozen._native,
                queries,
                k,
                rescore,
                rescore_ids,
                oversample=oversample,
                threads=threads,
                candidates=candidates,
            )
        return _padded(scores, ids, k, _has_one_axis(queries))

    def explain(
        self,
        queries: Any,
        k: int = 10,
        *,
        mode: Mode | None = None,
        k_row: int | None = None,
        filter: Any = None,
        approximate: Approximate | bool | None = None,
    ) -> dict[str, Any]:
        """Which way a search would go, and why, without searching.

        Every exact way returns the same bytes; they differ in time.

        Parameters
        ----------
        queries, k, mode, k_row, filter, approximate
            As :meth:`search` takes them.

        Returns
        -------
        dict
            ``way``: "scan" (every row in double precision), "integer_pass" (all rows as 8-bit
            integers for 64 queries at once, then scores of what is left), "product" (all complete
            rows times the queries in single precision, likewise), "rough_scan" (the same
            in 16-bit integers for one query after the other), "postings" (the lists
            of the query's latents) or "clusters" (approximate, where asked for); ``reason``: one
            sentence; ``mode``; ``queries`` and ``k``.

        Raises
        ------
        TypeError, ValueError
            As :meth:`search`.

        References
        ----------
        The ways and what they cost are described in ``docs/search.md``.
        """
        k = as_count(k, "k")
        asked = self._asked(queries, mode, None)
        name = self._mode_for(asked, mode)
        way, reason = self._native.explain(
            len(asked),
            k,
            mode=name,
            k_row=None if k_row is None else as_count(k_row, "k_row"),
            filter=as_filter(filter, self._native),
            approximate=self._setting(approximate),
        )
        return {"way": way, "reason": reason, "mode": name, "queries": len(asked), "k": k}

    def explain_match(
        self, query: Any, id: int | str, *, mode: Mode | None = None
    ) -> MatchExplanation:
        """Why an item has the score that it has: what each of its latents adds.

        Parameters
        ----------
        query : array_like of float, shape (d,), or one row of codes
            As :meth:`search` takes it. ``index.get([other])`` compares two items.
        id : int or str
            The item.
        mode : {"dense", "reconstructed", "sparse"}, optional
            As in :meth:`search`.

        Returns
        -------
        MatchExplanation
            The score as :meth:`search` returns it, and its parts by latent; ``shared`` are those
            that the query's code has too. Printed, it is a small table.

        Raises
        ------
        KeyError
            If no item has this id.
        TypeError, ValueError
            As :meth:`search`; also if there is more than one query.

        Examples
        --------
        >>> import sparse_retrieval as sr
        >>> codes = sr.SparseCodes([[0, 2], [1, 2]], [[0.6, 0.8], [1.0, -0.2]], dim=3)
        >>> index = sr.SparseIndex.from_codes(codes)
        >>> print(index.explain_match(codes[0], 1))
        item 1: sparse score -0.1600
          -0.1600  latent 2 (in both)
        """
        from sparse_retrieval.interpret import explain_match

        return explain_match(self, query, id, mode=mode)

    def _mode_for(self, asked: Any, mode: Any) -> str:
        if mode is not None:
            return _as_name(mode, "mode")
        if not isinstance(asked, SparseCodes):
            return "dense"
        return "reconstructed" if "reconstructed" in self.modes else "sparse"

    def _asked(
        self, queries: Any, mode: Mode | None, threads: int | None
    ) -> SparseCodes | npt.NDArray[np.float64]:
        """Queries as the native module takes them: codes, or dense rows."""
        if holds_codes(queries) or self.embedding_dim is None:
            return self._query_codes(queries)
        if mode in ("sparse", "reconstructed") and mode in self._native.modes:
            return self._encoded(queries, threads)
        rows = as_rows(queries, "queries", np.float64)
        self._check_width(rows)
        return rows

    def _check_width(self, rows: npt.NDArray[Any]) -> None:
        if rows.shape[1] != self.embedding_dim:
            raise ValueError(
                f"queries have {rows.shape[1]} columns, this index holds a dictionary for "
                f"{self.embedding_dim}; embed them with the model that made the items"
            )

    def _found(
        self, asked: SparseCodes | npt.NDArray[np.float64], k: int, **options: Any
    ) -> tuple[npt.NDArray[np.float64], Any]:
        if not isinstance(asked, SparseCodes):
            return self._native.search_dense(asked, k, **options)
        return self._native.search_codes(
            asked.indptr, asked.latents, asked.values, asked.dim, k, **options
        )

    def with_clusters(
        self,
        clusters: int | None = None,
        *,
        seed: int = 0,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> SparseIndex:
        """The same index with clusters, so that ``search(.., approximate=True)`` works.

        Rows, ids and exact results stay as they are; what is added is kept in optional sections
        of the file: a list of the rows of each cluster and a sketch of each row, 4 and at most
        48 bytes an item, and the centroids. :meth:`bytes_per_item` does not count them,
        :meth:`stats` lists them. A tuned setting is dropped. On an index with changes these are
        folded in first, into a copy of all rows in memory.

        Parameters
        ----------
        clusters : int, optional
            Default: 4 times the square root of the number of items, at most a sixteenth of it.
        seed : int, default 0
            Of the clustering; the same index and seed give the same clusters on every CPU.
        threads : int, optional
            Default: all processors, beside other calls a share of them.
        progress : callable, optional
            Called every 50 ms or so with the number of rows done: those that learn, once a
            round, then each item twice.

        Returns
        -------
        SparseIndex

        Raises
        ------
        ValueError
            If the index compares no embeddings, or there are more clusters than items.

        References
        ----------
        Spherical k-means (Dhillon and Modha, 2001); sketches are product quantisation of what
        rows have beyond their centroids (Jegou, Douze and Schmid, 2011) with 4 bits, looked up
        by shuffles (Andre, Kermarrec and Le Scouarnec, VLDB 2015).
        """
        built = self._native.with_clusters(
            clusters=None if clusters is None else as_count(clusters, "clusters"),
            seed=as_count(seed, "seed", least=0, most=2**63 - 1),
            threads=as_threads(threads),
            progress=progress,
        )
        return SparseIndex._of(built, None)

    def tune(
        self,
        target: float = 0.99,
        queries: Any = None,
        k: int = 100,
        *,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> Approximate:
        """Find the cheapest setting that keeps a share of exact search's results.

        The setting is what ``approximate=True`` takes from then on, also after :meth:`save` and
        :meth:`open`.

        Parameters
        ----------
        target : float, default 0.99
            The mean share of the exact top k that shall be found.
        queries : array_like of float, shape (nq, d), optional
            Dense queries, some hundreds, like those to come, and not items of the index. Default:
            256 mixtures of pairs of the index's own items, which can only stand in for them: where
            items have many near neighbours they are easier, and queries to come keep less than
            the target (measured in docs/benchmarks.md).
        k : int, default 100
            Results a query.
        threads : int, optional
            Default: all processors, beside other calls a share of them.
        progress : callable, optional
            Called after each setting that was tried, some dozens, with the number of queries
            answered so far.

        Returns
        -------
        Approximate

        Raises
        ------
        TypeError
            If target is no number, or queries are of the wrong kind.
        ValueError
            If the index has no clusters or no mode "dense", target is not in (0, 1], or queries
            do not fit.
        """
        k = as_count(k, "k")
        setting, reached = tune(self, target, queries, k, threads, progress)
        self._native = self._native.with_tuned(
            clusters=setting.clusters,
            rerank=setting.rerank,
            target=float(target),
            reached=reached,
            k=k,
        )
        return setting

    def _setting(self, approximate: Any) -> tuple[int, int] | None:
        if approximate is None or approximate is False:
            return None
        if approximate is True:
            tuned = self._native.tuned
            approximate = (
                Approximate(tuned["clusters"], tuned["rerank"]) if tuned else Approximate()
            )
        if not isinstance(approximate, Approximate):
            raise TypeError(f"approximate is {approximate!r}; expected Approximate, True or None")
        return approximate.clusters, approximate.rerank

    def bitmap(self, ids: Any) -> Bitmap:
        """The items of these ids, as a filter for many searches.

        Parameters
        ----------
        ids : array_like of int or str, shape (m,)
            In any order, and as often as they come.

        Raises
        ------
        TypeError
            If they are neither integers nor strings.
        ValueError
            If no item has one of them; the message names it.
        """
        return Bitmap._of(self._native.bitmap(as_ids(ids), what="ids"))

    def _forget(self) -> None:
        self._encoder = None  # the new file may hold another dictionary

    def _encoded(self, queries: Any, threads: int | None) -> SparseCodes:
        rows = as_rows(queries, "queries", np.float32)
        encoder = self._encoder
        if encoder is None:
            encoder = self.dictionary
            self._encoder = encoder  # kept: it holds the Gram matrix once it was needed
        assert encoder is not None  # embedding_dim has said that there is one
        self._check_width(rows)
        width = self._native.width
        # inner products grow with the query; the mean is one of unit rows, and is taken from such
        normalise = self.metric == "cosine" or encoder.mean is not None
        return encoder.encode(
            rows, k=min(width or 32, self.dim), normalise=normalise, threads=threads
        )

    def _query_codes(self, queries: Any) -> SparseCodes:
        if holds_codes(queries):
            return as_codes(queries, dim=self.dim)
        rows = as_rows(queries, "queries", np.float32)
        if rows.shape[1] != self.dim:
            raise ValueError(
                f"queries have {rows.shape[1]} columns; this index holds no dictionary, so it "
                f"expects codes over {self.dim} latents (build it with dictionary= to search "
                "with embeddings)"
            )
        return SparseCodes.from_dense(rows)

    def __len__(self) -> int:
        return len(self._native)

    @property
    def dim(self) -> int:
        """Number of latents, s."""
        return self._native.dim

    @property
    def embedding_dim(self) -> int | None:
        """Width of dense queries, d; None where the index holds no dictionary."""
        return self._native.embedding_dim

    @property
    def metric(self) -> str:
        """``"inner_product"`` or ``"cosine"``."""
        return self._native.metric

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that the index was built for."""
        return tuple(self._native.modes)

    @property
    def value_bits(self) -> float:
        """Bits of a stored value, sign included; the mean where they differ by rank."""
        bits = self._native.value_bits
        return int(bits) if bits == int(bits) else bits

    @property
    def unit_items(self) -> bool:
        """Whether cosine takes the norm of every item in embedding space for 1."""
        return self._native.unit_items

    @property
    def ids(self) -> npt.NDArray[Any]:
        """What search returns for each position, shape (n,); a copy. int64, or object (str)."""
        ids = self._native.ids
        if ids is None:
            return np.arange(len(self), dtype=np.int64)
        return as_array(ids, (len(ids),))

    @property
    def dictionary(self) -> Dictionary | None:
        """The dictionary, or None; a copy."""
        atoms = self._native.dictionary
        return None if atoms is None else Dictionary(atoms, mean=self._native.mean)

    @property
    def metadata(self) -> Any:
        """What was given as metadata, or None."""
        text = self._native.metadata
        return None if text is None else json.loads(text)

    @property
    def n_clusters(self) -> int:
        """Number of clusters of approximate search; 0 where there are none."""
        return self._native.n_clusters

    @property
    def tuned(self) -> dict[str, Any] | None:
        """What :meth:`tune` found, or None.

        ``clusters`` and ``rerank``, the ``target`` and the share that was ``reached``, and ``k``.
        """
        return self._native.tuned

    @property
    def path(self) -> Path | None:
        """The file that the index was opened from, or None."""
        return self._path

    @property
    def bytes_per_item(self) -> float:
        """Bytes of rows and scales divided by the number of items; ids are not counted."""
        return self._native.bytes_per_item

    def stats(self) -> dict[str, Any]:
        """What the index is and what it takes, as plain JSON-serialisable values.

        Returns
        -------
        dict
            ``items``, ``dim``, ``embedding_dim``, ``metric``, ``modes``, ``unit_items``,
            ``value_bits``, ``magnitude_bits`` (of each rank, or None), ``complete`` (whether every
            item has every latent), ``nonzeros_per_item`` (None where rows differ),
            ``reconstruction_cosine`` (mean cosine of items and their codes
            before quantisation, where it is known), ``quantisation_cosine`` (mean cosine of
            codes before and after it, both decoded where there is a dictionary; None for 8 bits
            and more), ``bytes_per_item``, ``postings`` (None, or a dict of ``block_items``,
            ``bytes`` and ``bytes_per_item``, which come on top), ``mapped``, ``writer``,
            ``changes`` (items ``added`` and ``removed`` since the file was written, whether some
            are ``uncommitted``, and ``journal_bytes``), and ``sections``: a list of name, dtype,
            shape, ``bytes`` and ``bytes_per_item`` (None for sections that do not grow with the
            items). But for ``items`` and ``changes`` it tells of what was opened or built.
        """
        n = len(self)
        changes = self._native.changes()
        stored = n - changes["added"] + changes["removed"]
        sections = self._native.sections()
        reconstruction, quantisation = self._native.cosines
        return {
            "items": n,
            "dim": self.dim,
            "embedding_dim": self.embedding_dim,
            "metric": self.metric,
            "modes": list(self.modes),
            "unit_items": self.unit_items,
            "value_bits": self.value_bits,
            "magnitude_bits": self._native.magnitude_bits,
            "complete": self._native.is_complete,
            "reconstruction_cosine": reconstruction,
            "quantisation_cosine": quantisation,
            "nonzeros_per_item": self._native.width,
            "bytes_per_item": self.bytes_per_item,
            "postings": self._postings_stats(sections),
            "mapped": self._native.is_mapped,
            "writer": self._native.writer,
            "changes": changes,
            "sections": [
                {
                    "name": section["name"],
                    "dtype": section["dtype"],
                    "shape": section["shape"],
                    "bytes": section["bytes"],
                    "bytes_per_item": section["bytes"] / stored
                    if section["grows"] and stored
                    else None,
                }
                for section in sections
            ],
        }

    def _postings_stats(self, sections: list[dict[str, Any]]) -> dict[str, Any] | None:
        block_items = self._native.postings_block_items
        if block_items is None:
            return None
        size = sum(s["bytes"] for s in sections if s["name"].startswith("postings"))
        n = len(self)
        per_item = size / n if n else 0.0
        return {"block_items": block_items, "bytes": size, "bytes_per_item": per_item}

    def __repr__(self) -> str:
        source = f", from {str(self._path)!r}" if self._path is not None else ""
        latents = f"all of {self.dim}" if self._native.is_complete else f"{self.dim}"
        return (
            f"SparseIndex({len(self)} items over {latents} latents, {self.metric}, "
            f"{self.value_bits:g}-bit values, {self.bytes_per_item:.1f} bytes an item{source})"
        )


def _padded(scores: npt.NDArray[np.float64], found: Any, k: int, one: bool) -> SearchResult:
    n_queries, n_found = scores.shape
    ids = as_array(found, scores.shape)
    with np.errstate(over="ignore"):
        narrow = scores.astype(np.float32) + np.float32(0.0)  # what rounds to -0 becomes 0
    if n_found < k:
        padded_scores = np.full((n_queries, k), -np.inf, dtype=np.float32)
        missing = None if ids.dtype == object else -1
        padded_ids = np.full((n_queries, k), missing, dtype=ids.dtype)
        padded_scores[:, :n_found] = narrow
        padded_ids[:, :n_found] = ids
        narrow, ids = padded_scores, padded_ids
    return SearchResult(narrow[0], ids[0]) if one else SearchResult(narrow, ids)


def _has_one_axis(queries: Any) -> bool:
    if isinstance(queries, SparseCodes):
        return False
    if isinstance(queries, tuple) and len(queries) == 2:
        queries = queries[0]
    queries = of_column(queries)
    ndim = getattr(queries, "ndim", None)
    if ndim is not None:
        return bool(ndim == 1)
    try:
        return np.ndim(queries) == 1
    except ValueError:  # ragged: what reads it as an array says so better
        return False


def _as_block_items(postings: bool | int) -> int | None:
    if isinstance(postings, (bool, np.bool_)):
        return DEFAULT_BLOCK_ITEMS if postings else None
    return as_count(postings, "postings", most=MOST_BLOCK_ITEMS)


def _as_name(name: Any, what: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{what} is {name!r}; expected a string")
    return name


def _as_metric(metric: Any) -> Metric:
    if metric not in ("inner_product", "cosine"):
        raise ValueError(f'metric is {metric!r}; expected "inner_product" or "cosine"')
    return "cosine" if metric == "cosine" else "inner_product"


def _as_modes(modes: Any) -> list[str]:
    if isinstance(modes, str):
        raise TypeError(f"modes is {modes!r}; expected a sequence of names, as ({modes!r},)")
    names = [_as_name(mode, "a mode") for mode in modes]
    if not names:
        raise ValueError("modes is empty; expected at least one")
    return names


def _as_json(metadata: Any) -> str:
    try:
        return json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"metadata is not JSON-serialisable: {error}") from None
