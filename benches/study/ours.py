"""Ours, as `SparseIndex.from_embeddings` makes it, at several bytes an item and seeds.

One dictionary a seed serves all sizes: it is learnt at k = 32, the default, and what is stored is
pursued anew at each k. Its atoms are as many as the package's own default for that many items.
"""

from __future__ import annotations

import functools
import time
from pathlib import Path

import numpy as np

import sparse_retrieval as sr
from sparse_retrieval import complete
from sparse_retrieval.compress import default_atoms, encode, tried
from study.systems import DECODED, DEPTH, Ids, Rows, Setting, System, mean_cosine

#: bytes an item, row and scale, at most; the dictionary comes on top
BUDGETS = (32, 48, 64, 96, 128)
#: beside them: what four bits a dimension of 384 take
LARGER = (200,)
ROUNDS = 12


def dictionary(items: Rows, cache: Path, n_atoms: int, seed: int) -> tuple[sr.Dictionary, float]:
    """Atoms in half precision and the processor seconds they took, kept in the study's folder."""
    path = cache / f"dictionary-{n_atoms}-{seed}.safetensors"
    timing = path.with_suffix(".seconds")
    if not timing.is_file():
        begun = time.process_time()
        learnt = sr.Dictionary.fit(items, n_atoms=n_atoms, k=32, rounds=ROUNDS, seed=seed)
        sr.Dictionary(learnt.atoms.astype(np.float16)).save(path)
        timing.write_text(f"{time.process_time() - begun:.1f}", encoding="ascii")
    return sr.Dictionary.load(path), float(timing.read_text(encoding="ascii"))


def built(items: Rows, cache: Path, *, budget: float, seed: int, oversample: float = 0) -> System:
    """Codes of at most ``budget`` bytes; rescored against float16 vectors if asked for."""
    n_atoms = default_atoms(len(items), items.shape[1])
    learnt, learn_s = dictionary(items, cache, n_atoms, seed)
    begun = time.process_time()
    chosen = tried(learnt, items, bytes_per_item=budget, metric="cosine", threads=None)
    learnt, chosen = complete.better_of(
        items, (learnt, chosen), bytes_per_item=budget, normalise=True, threads=None
    )
    codes = encode(learnt, items, chosen, normalise=True, threads=None, progress=False)
    index = sr.SparseIndex.from_codes(
        codes,
        dictionary=learnt,
        metric="cosine",
        value_bits=chosen.value_bits,
        complete=chosen.is_complete,
        unit_items=True,
        modes=("dense",),
    )
    encode_s = time.process_time() - begun
    if chosen.is_complete:  # the mean is no part of what is quantised
        decoded = mean_cosine(
            items[:DECODED], learnt.decode(index.get(np.arange(min(DECODED, len(items)))))
        )
    else:
        decoded = mean_cosine(items[:DECODED], learnt.decode(codes[:DECODED]))
        decoded *= float(index.stats()["quantisation_cosine"])
    sections = sum(section["bytes"] for section in index.stats()["sections"])
    vectors = items.astype(np.float16) if oversample else None

    def search(queries: Rows, threads: int) -> Ids:
        if vectors is None:
            return index.search(queries, DEPTH, threads=threads).ids
        return index.search(
            queries, DEPTH, threads=threads, rescore=vectors, oversample=oversample
        ).ids

    kept = 2.0 * items.shape[1] if oversample else 0.0
    return System(
        bytes_per_item=index.bytes_per_item + kept,
        shared_bytes=sections - index.bytes_per_item * len(items),
        search=search,
        learn_s=learn_s,
        encode_s=encode_s,
        cosine=decoded,
        note=(f"{chosen.k} axes" if chosen.is_complete else f"{n_atoms} atoms, k = {chosen.k}")
        + f", {index.value_bits if chosen.is_complete else chosen.value_bits:.3g} bits a value"
        + (f"; {kept:g} bytes may lie on disk" if vectors is not None else ""),
    )


def settings(seeds: tuple[int, ...], *, quick: bool = False) -> list[Setting]:
    """Every budget and seed, and one budget rescored."""
    made = [
        Setting(
            "ours",
            f"ours, {budget} bytes",
            functools.partial(built, budget=budget, seed=seed),
            seed=seed,
            timed=seed == seeds[0],
        )
        for seed in seeds
        for budget in BUDGETS + (() if quick else LARGER)
    ]
    rescored = functools.partial(built, budget=64, seed=seeds[0], oversample=3)
    return [*made, Setting("ours, rescored", "ours, 64 bytes, rescored x3", rescored, timed=True)]
