"""What each part of ours gives and costs: one choice changed at a time, at equal bytes.

    PYTHONPATH=benches python -m study.parts --data FOLDER [--cache FOLDER] [--sets NAME ...]

`make study-parts DATA=FOLDER` is this. Goes by the study's splits, truth and dictionaries, and
writes ``benches/results/study_parts.json``; sets that are not named keep what the file has of them.
The reference is ours at 66 bytes as the study has it, seed 0. Each row is compared with it query by
query, with an interval. Choices that need a dictionary learnt anew are left out where that takes
more than LEARN_S processor seconds; the catalogue has them in ``recall_per_bytes.json``.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import _ablations
import _machine
import sparse_retrieval as sr
from sparse_retrieval._files import replacing
from sparse_retrieval.compress import default_atoms, plan, tried
from study import datasets, measures, ours, sparse
from study.systems import DEPTH, Ids, Rows

ROOT = Path(__file__).resolve().parent.parent.parent
OUT = ROOT / "benches" / "results" / "study_parts.json"
SETS = ("catalogue", "reviews")
BYTES, SEED = 66, 0
#: sign and the 8 levels of `_ablations`
BITS_APART = 4
#: learning of the reference beyond which nothing is learnt anew
LEARN_S = 60.0


class Part(NamedTuple):
    """One choice: what it is a choice of, what was chosen, and what came of it.

    Attributes
    ----------
    of, choice : str
        The reference has the choice "as it is".
    bytes : float
        An item.
    found : ndarray of int64, shape (n_queries, 100)
    learn_s, encode_s : float
        Processor seconds.
    """

    of: str
    choice: str
    bytes: float
    found: Ids
    learn_s: float
    encode_s: float


class Study:
    """One set with the dictionary of the reference and the plan that goes with it."""

    def __init__(self, name: str, data: Path, cache: Path) -> None:
        self.parts = datasets.prepared(name, data, cache)
        self.items, self.queries = self.parts.items, self.parts.queries
        self.folder = cache / name
        self.n_atoms = default_atoms(len(self.items), self.items.shape[1])
        self.atoms, self.learn_s = ours.dictionary(self.items, self.folder, self.n_atoms, SEED)
        self.plan = tried(
            self.atoms, self.items, bytes_per_item=BYTES, metric="cosine", threads=None
        )

    @property
    def latent_bits(self) -> int:
        """Bits of a latent in a row."""
        return (self.n_atoms - 1).bit_length()

    def k_of(self, value_bits: float, n_atoms: int | None = None) -> int:
        """As many nonzeros as fit."""
        atoms = n_atoms or self.n_atoms
        return plan(
            len(self.items), k=None, bytes_per_item=BYTES, n_atoms=atoms, value_bits=value_bits
        ).k

    def encoded(
        self, dictionary: sr.Dictionary, k: int, method: str = "pursuit", **options: Any
    ) -> tuple[sr.SparseCodes, float]:
        """Codes of the items and processor seconds."""
        begun = time.process_time()
        codes = dictionary.encode(self.items, k=k, method=method, **options)
        return codes, time.process_time() - begun

    def part(
        self,
        of: str,
        choice: str,
        dictionary: sr.Dictionary,
        encoded: tuple[sr.SparseCodes, float],
        *,
        value_bits: float | None = None,
        unit_items: bool = True,
        n_bytes: float | None = None,
        learn_s: float | None = None,
    ) -> Part:
        """Build, ask with dense queries, describe."""
        codes, encode_s = encoded
        index = sr.SparseIndex.from_codes(
            codes,
            dictionary=dictionary,
            metric="cosine",
            value_bits=self.plan.value_bits if value_bits is None else value_bits,
            unit_items=unit_items,
            modes=("dense",),
        )
        return Part(
            of,
            choice,
            index.bytes_per_item if n_bytes is None else n_bytes,
            index.search(self.queries, DEPTH).ids,
            self.learn_s if learn_s is None else learn_s,
            encode_s,
        )


def reference(study: Study) -> Iterator[Part]:
    """Ours, and the same codes asked by encoded queries."""
    encoded = study.encoded(study.atoms, study.plan.k)
    codes, encode_s = encoded
    yield study.part("", "as it is", study.atoms, encoded)
    asked = study.atoms.encode(study.queries, k=study.plan.k)
    bits = study.plan.value_bits
    options: dict[str, Any] = {"metric": "cosine", "value_bits": bits}
    for mode in ("reconstructed", "sparse"):
        if mode == "reconstructed":
            options |= {"dictionary": study.atoms, "unit_items": True}
        else:
            options = {"metric": "cosine", "value_bits": bits}
        index = sr.SparseIndex.from_codes(codes, modes=(mode,), **options)
        found = index.search(asked, DEPTH, mode=mode).ids
        choice = f"queries encoded, mode {mode}"
        yield Part("query", choice, index.bytes_per_item, found, study.learn_s, encode_s)
    name = f"float32 at the same k = {study.plan.k}"
    yield study.part("values", name, study.atoms, encoded, value_bits=32)
    name = "items divided by their decoded norm"
    yield study.part("scale", name, study.atoms, encoded, unit_items=False)


def values(study: Study) -> Iterator[Part]:
    """Other bits a value, with as many nonzeros as the bytes then hold."""
    for bits in (3, 4, 5, 8, 16, 32):
        k = study.k_of(bits)
        kind = "coded by rank" if bits < 8 else "of a grid" if bits < 32 else "as they are"
        name = f"{bits} bits {kind}, k = {k}"
        encoded = study.encoded(study.atoms, k)
        if bits != study.plan.value_bits:
            yield study.part("values", name, study.atoms, encoded, value_bits=bits)
        if bits == BITS_APART:
            codes, encode_s = encoded
            apart = _ablations.levels_apart(study.atoms, codes), encode_s
            # the levels in float32, at the bytes of the rows that name them
            options = {"value_bits": 32, "n_bytes": 2 + -(-k * (study.latent_bits + bits) // 8)}
            name += ", each level chosen alone"
            yield study.part("values", name, study.atoms, apart, **options)


def encoders(study: Study) -> Iterator[Part]:
    """Other ways to choose the atoms of an item."""
    k = study.plan.k
    ways: dict[str, dict[str, Any]] = {
        "pursuit, one refit at the end": {"refit_every": k},
        "pursuit, a refit after every atom (omp)": {"method": "omp"},
        "the k largest projections, refitted": {"method": "topk_refit"},
        "the k largest projections as they are": {"method": "topk"},
    }
    for name, options in ways.items():
        yield study.part("encoder", name, study.atoms, study.encoded(study.atoms, k, **options))


def _rounded(atoms: NDArray[np.floating[Any]]) -> NDArray[np.float16]:
    """In half precision, as an index holds them."""
    return atoms.astype(np.float16)


def drawn(study: Study) -> Iterator[Part]:
    """Atoms that nothing was learnt for."""
    rng = np.random.default_rng(SEED)
    rows = study.items[np.sort(rng.permutation(len(study.items))[: study.n_atoms])]
    directions = rng.standard_normal(rows.shape)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    for name, atoms in (("items drawn at random", rows), ("directions at random", directions)):
        dictionary = sr.Dictionary(_rounded(atoms))
        encoded = study.encoded(dictionary, study.plan.k)
        yield study.part("atoms", name, dictionary, encoded, learn_s=0.0)


def trained(study: Study) -> Iterator[Part]:
    """The atoms and the encoder of a CompresSAE in place of ours."""
    model, train_s = sparse.model(study.items, study.folder)
    dictionary = model.dictionary()
    dictionary = sr.Dictionary(dictionary.atoms.astype(np.float16), mean=dictionary.mean)
    bits = study.plan.value_bits
    k = study.k_of(bits, dictionary.n_atoms)
    steps = f"{sparse.STEPS} steps"
    encoded = study.encoded(dictionary, k)
    name = f"{dictionary.n_atoms} of a CompresSAE, {steps}, k = {k}"
    yield study.part("atoms", name, dictionary, encoded, learn_s=train_s)
    begun = time.process_time()
    codes = model.sparse_codes(study.items, k=k)
    encoded = codes, time.process_time() - begun
    name = f"CompresSAE's own, {steps}, k = {k}"
    yield study.part("encoder", name, dictionary, encoded, unit_items=False, learn_s=train_s)


def learnt(study: Study) -> Iterator[Part]:
    """Dictionaries learnt otherwise, where one is learnt quickly."""
    if study.learn_s > LEARN_S:
        return
    bits = study.plan.value_bits
    others: list[tuple[str, str, int, dict[str, Any]]] = [
        ("atoms", f"{factor} times as many" if factor > 1 else "half as many", n_atoms, {})
        for factor, n_atoms in ((0.5, study.n_atoms // 2), (2, study.n_atoms * 2))
        if n_atoms <= len(study.items)
    ]
    others += [("learning", f"{r} rounds", study.n_atoms, {"rounds": r}) for r in (1, 4, 24)]
    others += [
        ("learning", "without momentum", study.n_atoms, {"momentum": 0.0}),
        ("learning", "the mean subtracted", study.n_atoms, {"subtract_mean": True}),
    ]
    for of, name, n_atoms, options in others:
        begun = time.process_time()
        options = {"rounds": ours.ROUNDS, **options}
        made = sr.Dictionary.fit(study.items, n_atoms=n_atoms, k=32, seed=SEED, **options)
        learn_s = time.process_time() - begun
        dictionary = sr.Dictionary(made.atoms.astype(np.float16), mean=made.mean)
        k = study.k_of(bits, n_atoms)
        name += f", k = {k}" if of == "atoms" else ""
        encoded = study.encoded(dictionary, k)
        yield study.part(of, name, dictionary, encoded, learn_s=learn_s)


FAMILIES: dict[str, Callable[[Study], Iterator[Part]]] = {
    "reference": reference,
    "values": values,
    "encoders": encoders,
    "drawn": drawn,
    "learnt": learnt,
    "trained": trained,
}


def of_set(
    name: str, data: Path, cache: Path, families: Sequence[str], before: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """What is known of a set after each family: rows against the reference, and rows of before."""
    study = Study(name, data, cache)
    rows = {(row["of"], row["choice"]): row for row in before.get("rows", [])}
    judge = functools.partial(measures.recall, truth=study.parts.truth, depth=DEPTH)
    base: Rows | None = None
    for family in ("reference", *(f for f in FAMILIES if f in families and f != "reference")):
        for part in FAMILIES[family](study):
            recall = judge(part.found)
            base = recall if base is None else base
            row = {"of": part.of, "choice": part.choice, "bytes": part.bytes}
            row |= {"recall": measures.summary(recall), "change": measures.summary(recall - base)}
            row |= {"learn_cpu_s": round(part.learn_s, 1), "encode_cpu_s": round(part.encode_s, 1)}
            rows[part.of, part.choice] = row
            print(f"{name:10} {part.of:8} {part.choice:44} {row['bytes']:6.1f} {recall.mean():.4f}")
            sys.stdout.flush()
        yield {
            "title": datasets.DATA_SETS[name].title,
            "items": len(study.items),
            "atoms": study.n_atoms,
            "k": study.plan.k,
            "value_bits": study.plan.value_bits,
            "machine": _machine.describe(),
            "rows": list(rows.values()),
        }


def main() -> int:
    """Measure the sets and write the file set by set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(), help="folder of the catalogue")
    parser.add_argument("--cache", type=Path, default=ROOT / ".study", help="the study's folder")
    parser.add_argument("--sets", nargs="+", choices=list(datasets.DATA_SETS), default=SETS)
    parser.add_argument("--only", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--out", type=Path, default=OUT, help="result file")
    options = parser.parse_args()
    made = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    made |= {
        "benchmark": "study_parts",
        "command": "make study-parts DATA=FOLDER",
        "bytes": BYTES,
        "confidence": measures.CONFIDENCE,
    }
    for name in options.sets:
        before = made.get("sets", {}).get(name, {})
        for of in of_set(name, options.data, options.cache / "full", options.only, before):
            made["sets"] = made.get("sets", {}) | {name: of}
            with replacing(options.out) as temporary:
                temporary.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
