"""Run the study, or a part of it, or compare a run with the committed result.

    PYTHONPATH=benches python -m study --quick [--check]
    PYTHONPATH=benches python -m study --data FOLDER [--sets NAME ...] [--only FAMILY ...]

FOLDER holds ``catalogue_minilm_f16.npy``, which ``benches/study/make_catalogue.py`` makes. What was
found is kept in the folder given with ``--cache``, part by part; a part that is there is not run
again: delete the folder to measure anew. The result file keeps what this run did not measure.
``--quick`` needs ``examples/data`` alone, and with ``--check`` compares its figures with
``benches/results/study_quick.json`` and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from sparse_retrieval._files import replacing
from study import datasets, latency, results, rivals, run
from study.minilm import AbsentError

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benches" / "results"
SEEDS, QUICK_SEEDS = (0, 1, 2), (0, 1)
LIMIT_S, QUICK_LIMIT_S = 900.0, 120.0


def parsed() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="study", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="minutes: examples/data, fewer rivals")
    parser.add_argument("--check", action="store_true", help="with --quick: compare, write nothing")
    parser.add_argument("--data", type=Path, default=Path(), help="folder of the catalogue")
    parser.add_argument("--cache", type=Path, help="what is kept: .study, or nothing with --check")
    parser.add_argument("--sets", nargs="+", choices=list(datasets.DATA_SETS), help="default: all")
    parser.add_argument("--only", nargs="+", default=[], help="families; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", help="of our learning")
    parser.add_argument("--limit", type=float, help="seconds that a setting may take")
    parser.add_argument("--no-latency", action="store_true", help="leave times out")
    parser.add_argument("--judge", action="store_true", help="run nothing, judge what is there")
    parser.add_argument("--out", type=Path, help="result file")
    return parser.parse_args()


def main() -> int:
    """Run what is missing, then judge all that is there."""
    given = parsed()
    with tempfile.TemporaryDirectory() as folder:
        # what is checked is run anew: what an earlier run left may be of other code
        cache = given.cache or (Path(folder) if given.check else ROOT / ".study")
        return study(given, cache)


def study(given: argparse.Namespace, cache: Path) -> int:
    """Run and judge, with what is kept in ``cache``."""
    everything = [name for name in datasets.DATA_SETS if name != "small"]
    sets = given.sets or (["small"] if given.quick else everything)
    plan = run.Plan(
        data=given.data,
        cache=cache / ("quick" if given.quick else "full"),
        names=tuple(sets),
        seeds=tuple(given.seeds or (QUICK_SEEDS if given.quick else SEEDS)),
        limit_s=given.limit or (QUICK_LIMIT_S if given.quick else LIMIT_S),
        quick=given.quick,
        only=tuple(given.only),
    )
    plan.cache.mkdir(parents=True, exist_ok=True)
    for library in rivals.absent():
        print(f"study: {library} is not installed, its settings are left out", file=sys.stderr)
    begun = time.perf_counter()
    absent = []
    for name in () if given.judge else plan.names:
        try:
            run.run(plan, name)
        except AbsentError as error:
            absent.append(name)
            print(f"study: {name} is left out: {error}", file=sys.stderr)
            continue
        if not given.no_latency:
            latency.run(plan, name)
    command = "make study-quick" if given.quick else "make study DATA=FOLDER"
    out = given.out or RESULTS / ("study_quick.json" if given.quick else "study.json")
    before = None
    if not given.check and out.is_file():
        before = json.loads(out.read_text(encoding="utf-8"))
    made = results.assembled(plan, command, before)
    print(f"{time.perf_counter() - begun:.0f} s")
    if given.check:
        expected = json.loads((RESULTS / "study_quick.json").read_text(encoding="utf-8"))
        differing = results.differences(made, expected)
        for line in differing:
            print(f"study: {line}", file=sys.stderr)
        compared = sum(len(of["rows"]) for of in made["sets"].values())
        print(f"{compared} settings compared, {len(differing)} figures differ")
        return 1 if differing or not compared else 0
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {out}; `make docs` brings the docs in step")
    return 1 if absent and given.sets else 0


if __name__ == "__main__":
    sys.exit(main())
