"""Embeddings of Parquet files to codes, block by block, on all cores or machines; resumable.

A block is a run of row groups of one file. What the blocks are is a function of the files and of
the settings alone, and each has an output file of its own that appears whole or not at all. So
what is there is done: after a crash, or on a machine that is switched off half-way, the same call
does the rest, and the files are the same bytes as if nothing had happened.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sparse_retrieval._arrays import as_count
from sparse_retrieval._extras import require
from sparse_retrieval._files import replacing
from sparse_retrieval.codes import SparseCodes
from sparse_retrieval.dictionary import Dictionary
from sparse_retrieval.index import SparseIndex
from sparse_retrieval.writer import IndexWriter

MANIFEST = "encoding.json"
CODEBOOKS = "codebooks.sridx"
#: Items that codebooks of rank-coded values are learnt from: the first ones.
_SAMPLE = 65_536


@dataclass(frozen=True)
class Block:
    """A run of row groups.

    Attributes
    ----------
    number : int
    path : str
    first_group, n_groups : int
        Row groups of the file.
    first_row, rows : int
        The first row over all files, and how many there are.
    """

    number: int
    path: str
    first_group: int
    n_groups: int
    first_row: int
    rows: int


def encode(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    dictionary: Dictionary,
    out: str | os.PathLike[str],
    *,
    k: int = 32,
    column: str | None = None,
    id_column: str | None = None,
    output: Literal["sridx", "parquet"] = "sridx",
    block_rows: int = 100_000,
    address: str | None = None,
    concurrency: int | None = None,
    num_cpus: float = 1,
    **index_options: Any,
) -> list[Path]:
    """Encode Parquet files with Ray Data, to index shards or to Parquet files of codes.

    Call it again after an interruption, with the same arguments: finished blocks stay as they are.

    Parameters
    ----------
    paths : path-like or sequence of path-like
        Parquet files, or folders of them (sorted by name).
    dictionary : Dictionary
        Encodes, by pursuit.
    out : path-like
        A folder for the results, made if need be. All machines must see it under this path.
    k : int, default 32
        Nonzeros an item.
    column : str, optional
        The column with the embeddings. Default: the only one of lists of numbers.
    id_column : str, optional
        A column of integers or strings that are the items' ids. Default: their number over all
        files, from 0.
    output : {"sridx", "parquet"}, default "sridx"
        Index shards, which :class:`ShardedIndex` searches and :func:`sparse_retrieval.merge`
        joins; or Parquet files with the columns ``id``, ``latents`` and ``values``.
    block_rows : int, default 100,000
        Items of a block, at least, where a file has as many: row groups are not cut.
    address : str, optional
        As of :class:`ShardedIndex`.
    num_cpus : float, default 1
        Cores that Ray sets aside for each encoder.
    concurrency : int, optional
        Encoders at a time. Default: as many as there are cores for.
    **index_options
        Of :class:`IndexWriter` (``metric``, ``value_bits``, ``modes``, ``unit_items``,
        ``metadata``), with output "sridx". Codebooks of rank-coded values are learnt once, from
        the first 65,536 items.

    Returns
    -------
    list of pathlib.Path
        One file a block, in the order of the items.

    Raises
    ------
    ImportError
        If Ray or pyarrow is not installed.
    OSError
        If a file cannot be read or written.
    ValueError
        If there are no rows, ``out`` holds the blocks of another encoding, or a block's rows are
        not sound.
    """
    ray = require("ray", "encode")
    if output not in ("sridx", "parquet"):
        raise ValueError(f'output is {output!r}; expected "sridx" or "parquet"')
    if output == "parquet" and index_options:
        raise TypeError(f"{sorted(index_options)} are of index shards, not of output='parquet'")
    files = _files(paths)
    blocks = _blocks(files, as_count(block_rows, "block_rows"))
    settings = {"k": as_count(k, "k"), "column": column, "id_column": id_column, "output": output}
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, _manifest(files, blocks, dictionary, settings, index_options))
    encoder = _Encoder(dictionary, folder, settings, index_options)
    pending = [block for block in blocks if not encoder.path(block).exists()]
    if pending:
        if encoder.needs_codebooks and not (folder / CODEBOOKS).exists():
            encoder.learn_codebooks(blocks)
        own = not ray.is_initialized()
        if own:
            started = {"include_dashboard": False} if address is None else {}
            ray.init(address=address, log_to_driver=False, logging_level="error", **started)
        try:
            _run(ray, encoder, pending, concurrency, num_cpus)
        finally:
            if own:
                ray.shutdown()
    return [encoder.path(block) for block in blocks]


def _run(ray: Any, encoder: _Encoder, pending: list[Block], limit: int | None, cpus: float) -> None:
    data = require("ray.data", "encode")
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    data.DataContext.get_current().enable_progress_bars = False
    shared = ray.put(encoder)  # the dictionary is sent to each machine once, not with each block

    class _Worker:
        def __init__(self) -> None:
            self._encoder: _Encoder = ray.get(shared)

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            block = Block(**json.loads(row["block"]))
            try:
                self._encoder.write(block)
            except (OSError, ValueError, MemoryError) as error:
                # handed back, not raised: the other blocks go on, and Ray would wrap it
                return {"number": block.number, "error": pickle.dumps(error).hex()}
            return {"number": block.number, "error": ""}

    tasks = data.from_items(
        [{"block": json.dumps(asdict(block))} for block in pending],
        override_num_blocks=len(pending),
    )
    free = int(ray.cluster_resources().get("CPU", 1) / cpus) if cpus else len(pending)
    pool = max(1, min(len(pending), free if limit is None else limit))
    done = tasks.map(
        _Worker,
        compute=data.ActorPoolStrategy(size=pool),
        num_cpus=cpus,
    )
    outcomes = sorted((row["number"], row["error"]) for row in done.take_all())
    for number, failed in outcomes:
        if failed:
            error = pickle.loads(bytes.fromhex(failed))
            block = next(block for block in pending if block.number == number)
            if not isinstance(error, ValueError):
                raise error
            last = block.first_row + block.rows - 1
            raise ValueError(
                f"{block.path}: block {number} (items {block.first_row} to {last} over all "
                f"files): {error}"
            )


class _Encoder:
    """Writes the file of a block. Sent to the machines that do."""

    def __init__(
        self,
        dictionary: Dictionary,
        folder: Path,
        settings: dict[str, Any],
        index_options: dict[str, Any],
    ) -> None:
        self._dictionary = dictionary
        self._folder = folder
        self._settings = settings
        self._options = index_options

    @property
    def needs_codebooks(self) -> bool:
        """Whether values are coded by rank, so that all shards must share the levels."""
        bits = float(self._options.get("value_bits", 32))
        return self._settings["output"] == "sridx" and bits < 8

    def path(self, block: Block) -> Path:
        """Where a block goes."""
        return self._folder / f"block-{block.number:05d}.{self._settings['output']}"

    def write(self, block: Block) -> None:
        """Encode a block and write it, whole or not at all."""
        rows, ids = self._read(block)
        codes = self._dictionary.encode(rows, k=self._settings["k"])
        if self._settings["output"] == "parquet":
            self._write_parquet(block, codes, ids)
            return
        options = dict(self._options)
        if self.needs_codebooks:
            options["codebooks"] = SparseIndex.open(self._folder / CODEBOOKS)
            options.pop("value_bits")
        with IndexWriter(self.path(block), dictionary=self._dictionary, **options) as writer:
            writer.add(codes, ids=ids)

    def learn_codebooks(self, blocks: list[Block]) -> None:
        """Learn the levels of values from the first items."""
        parts: list[SparseCodes] = []
        for block in blocks:
            rows, _ = self._read(block)
            left = _SAMPLE - sum(len(part) for part in parts)
            parts.append(self._dictionary.encode(rows[:left], k=self._settings["k"]))
            if left <= len(rows):
                break
        sample = SparseCodes.concatenate(parts)
        index = SparseIndex.from_codes(sample, dictionary=self._dictionary, **self._options)
        index.save(self._folder / CODEBOOKS)

    def _read(self, block: Block) -> tuple[Any, Any]:
        """Embeddings and ids of a block."""
        from sparse_retrieval._rows import ParquetRows

        parquet = require("pyarrow.parquet", "encode")
        rows = ParquetRows(Path(block.path), self._settings["column"])
        file = parquet.ParquetFile(block.path)
        before = sum(file.metadata.row_group(g).num_rows for g in range(block.first_group))
        x = rows[before : before + block.rows]
        name = self._settings["id_column"]
        if name is None:
            return x, np.arange(block.first_row, block.first_row + block.rows)
        groups = list(range(block.first_group, block.first_group + block.n_groups))
        if name not in file.schema_arrow.names:
            raise ValueError(f"{block.path}: has no column {name!r}")
        column = file.read_row_groups(groups, columns=[name]).column(name)
        if column.null_count:
            raise ValueError(f"{block.path}: the column {name!r} holds a null; ids must be there")
        ids = column.to_pylist()
        return x, ids if ids and isinstance(ids[0], str) else np.asarray(ids)

    def _write_parquet(self, block: Block, codes: SparseCodes, ids: Any) -> None:
        arrow = require("pyarrow", "encode")
        parquet = require("pyarrow.parquet", "encode")
        offsets = codes.indptr.astype(np.int64)
        table = arrow.table(
            {
                "id": arrow.array(ids),
                "latents": arrow.LargeListArray.from_arrays(offsets, arrow.array(codes.latents)),
                "values": arrow.LargeListArray.from_arrays(offsets, arrow.array(codes.values)),
            }
        )
        with replacing(self.path(block)) as temporary:
            parquet.write_table(table, temporary)


def _files(paths: Any) -> list[Path]:
    given = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    files: list[Path] = []
    for one in map(Path, given):
        files += sorted(one.glob("*.parquet")) if one.is_dir() else [one]
    if not files:
        raise ValueError(f"no .parquet files in {', '.join(map(str, given)) or 'nothing'}")
    return files


def _blocks(files: list[Path], block_rows: int) -> list[Block]:
    parquet = require("pyarrow.parquet", "encode")
    blocks: list[Block] = []
    first_row = 0
    for path in files:
        metadata = parquet.ParquetFile(path).metadata
        groups = [metadata.row_group(g).num_rows for g in range(metadata.num_row_groups)]
        first, rows = 0, 0
        for group, count in enumerate(groups):
            rows += count
            if rows and (rows >= block_rows or group == len(groups) - 1):
                span = group + 1 - first
                blocks.append(Block(len(blocks), str(path), first, span, first_row, rows))
                first, first_row, rows = group + 1, first_row + rows, 0
    if not blocks:
        raise ValueError(f"{', '.join(map(str, files))}: no rows")
    return blocks


def _manifest(
    files: list[Path],
    blocks: list[Block],
    dictionary: Dictionary,
    settings: dict[str, Any],
    index_options: dict[str, Any],
) -> dict[str, Any]:
    """What must be equal for blocks to be those of the same encoding."""
    atoms = hashlib.sha256(dictionary.atoms.tobytes())
    if dictionary.mean is not None:
        atoms.update(dictionary.mean.tobytes())
    return {
        "files": [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files],
        "blocks": [asdict(block) for block in blocks],
        "dictionary": atoms.hexdigest(),
        "settings": settings,
        "index_options": index_options,
    }


def _claim(folder: Path, manifest: dict[str, Any]) -> None:
    """Say what the folder is for, or check that it is for this."""
    path = folder / MANIFEST
    try:
        text = json.dumps(manifest, indent=1)
    except TypeError as error:
        raise TypeError(f"index options must be JSON-serialisable: {error}") from None
    if not path.exists():
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    wanted = json.loads(text)
    differ = [key for key in wanted if there.get(key) != wanted[key]]
    if differ:
        raise ValueError(
            f"{folder} holds the blocks of another encoding (its {', '.join(differ)} differ); "
            "choose another folder, or delete this one"
        )
