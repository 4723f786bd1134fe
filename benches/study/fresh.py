"""Ours and its best rivals on queries that no default was chosen by.

    PYTHONPATH=benches python -m study.fresh --data FOLDER [--sets NAME ...]

The defaults of `SparseIndex.from_embeddings` (atoms, bits, when codes are complete) were chosen
while the margins of ``benches/results/study.json`` were looked at, which are of one draw of
held-out rows. Here other rows are held out, as many of them, those of the first draw are items,
and all is learnt anew: of ours with one seed, and of the rival that is the best at each size
there. What is in the study's folder is not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import _machine
from sparse_retrieval._files import replacing
from study import datasets, measures, ours, results, run

ROOT = Path(__file__).resolve().parent.parent.parent
STUDY = ROOT / "benches" / "results" / "study.json"
OUT = ROOT / "benches" / "results" / "study_fresh.json"
DRAW, SEEDS = 1, (0,)
LIMIT_S = 1800.0


def of_set(plan: run.Plan, name: str, margins: list[dict[str, Any]]) -> dict[str, Any]:
    """Ours and the rivals of ``margins`` on this draw, beside the margins of the first."""
    judged = results.of_set(plan, name)
    now = {row["bytes"]: row for row in judged["margins"]}
    rows = {row["setting"]: row for row in judged["rows"] if "recall@100" in row}
    compared = []
    for before in margins:
        if before["bytes"] not in now or before["rival"] not in rows:
            continue  # a rival that was stopped
        after = now[before["bytes"]]
        compared.append(
            {
                "bytes": before["bytes"],
                "ours": after["ours"],
                "rival": after["rival"],
                "recall@100": rows[after["ours"]]["recall@100"],
                "margin": after["recall@100"],
                "rival_of_study": before["rival"],
                "margin_of_study": before["recall@100"],
            }
        )
    kept = ("title", "items", "queries", "sha256")
    return {key: judged[key] for key in kept} | {"margins": compared}


def main() -> int:
    """Run what is missing and write the file set by set."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path(), help="folder of the catalogue")
    parser.add_argument("--cache", type=Path, default=ROOT / ".study", help="the study's folder")
    studied = json.loads(STUDY.read_text(encoding="utf-8"))["sets"]
    parser.add_argument("--sets", nargs="+", choices=list(studied), default=list(studied))
    parser.add_argument("--out", type=Path, default=OUT, help="result file")
    options = parser.parse_args()
    made = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    made |= {
        "benchmark": "study_fresh",
        "command": "make study DATA=FOLDER",
        "confidence": measures.CONFIDENCE,
        "rounds": ours.ROUNDS,
    }
    for name in options.sets:
        margins = studied[name]["margins"]
        wanted = {row[key] for row in margins for key in ("ours", "rival")}
        wanted |= {f"ours, {budget} bytes" for budget in ours.BUDGETS}
        plan = run.Plan(
            data=options.data,
            cache=options.cache / "full",
            names=(name,),
            seeds=SEEDS,
            limit_s=LIMIT_S,
            named=tuple(sorted(wanted)),
            draw=DRAW,
        )
        plan.cache.mkdir(parents=True, exist_ok=True)
        run.run(plan, name)
        of = of_set(plan, name, margins) | {"machine": _machine.describe()}
        sets = made.get("sets", {}) | {name: of}
        made["sets"] = {each: sets[each] for each in datasets.DATA_SETS if each in sets}
        with replacing(options.out) as temporary:
            temporary.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
