"""Measure what docs/reliability.md says: faults, kills, cuts, flips, memory, additions.

    python benches/reliability.py [PART ...]

Parts: fuzz, guided, memcheck, faults, kills, damage, model, writer, mapped, additions. Each
writes its entry of ``benches/results/reliability.json`` and leaves the others; without arguments
all run, which takes an hour. ``fuzz``, ``guided``, ``memcheck`` and ``faults`` need cargo,
``guided`` a C++ compiler too, ``memcheck`` valgrind.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import sparse_retrieval as sr
from _machine import describe

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benches" / "results" / "reliability.json"
DIM, WIDTH = 4096, 32


def codes_of(n: int, seed: int, dim: int = DIM, width: int = WIDTH) -> sr.SparseCodes:
    """Codes of fixed width whose latents differ and whose values are those of their seed."""
    rng = np.random.default_rng(seed)
    step = dim // width
    support = np.arange(width) * step + rng.integers(0, step, (n, width))
    values = rng.standard_normal((n, width), dtype=np.float32) + np.float32(0.01)
    return sr.SparseCodes(support.astype(np.int32), values, dim=dim)


def peak_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def in_child(script: str, *arguments: object, timeout: float | None = None) -> str:
    """Standard output of a script in a fresh interpreter, this file's functions at hand."""
    prelude = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    done = subprocess.run(
        [sys.executable, "-c", prelude + textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        timeout=timeout,
    )
    return done.stdout


def fuzz(options: argparse.Namespace) -> dict[str, Any]:
    """Run the mutational fuzzer, or read what a run apart from this one has printed."""
    if options.fuzz_report is not None:
        printed: dict[str, Any] = json.loads(options.fuzz_report.read_text())
        return printed
    command = [
        *("cargo", "run", "--release", "--quiet", "-p", "sparse_retrieval", "--example", "fuzz"),
        *("--", "--executions", str(options.executions), "--seed", "1"),
        *("--corpus", "tests/formats"),
    ]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def guided(options: argparse.Namespace) -> dict[str, Any]:
    """Fuzz guided by coverage, under the address sanitizer; see rust/fuzz/run.sh."""
    folder = ROOT / "rust" / "fuzz"
    if not options.guided_done:
        subprocess.run([folder / "run.sh", str(options.guided_executions)], check=True)
    targets = {}
    for log in sorted((folder / "target").glob("*.log")):
        text = log.read_text(errors="replace")
        done = re.search(r"^#(\d+)\s+DONE\s+cov: (\d+).* corp: (\d+)/", text, re.MULTILINE)
        assert done is not None, f"{log} tells of no run that came to its end"
        executions, edges, kept = map(int, done.groups())
        targets[log.stem] = {"executions": executions, "edges": edges, "inputs_kept": kept}
    return {
        "targets": targets,
        "executions": sum(target["executions"] for target in targets.values()),
        "sanitizer": "address",
        "crashes": 0,  # else run.sh fails
    }


def memcheck(options: argparse.Namespace) -> dict[str, Any]:
    """Run the mutational fuzzer under valgrind, which watches every read and write."""
    build = ["cargo", "build", "--release", "--quiet", "-p", "sparse_retrieval", "--example"]
    subprocess.run([*build, "fuzz"], cwd=ROOT, check=True)
    command = [
        *("valgrind", "-q", "--error-exitcode=9", "target/release/examples/fuzz"),
        *("--executions", str(options.memcheck_executions), "--seed", "4"),
        *("--corpus", "tests/formats"),
    ]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report | {"errors": 0}  # else valgrind's exit code says so


def faults(_: argparse.Namespace) -> dict[str, Any]:
    """Count the calls that tests/faults.rs made to fail."""
    done = subprocess.run(
        [
            *("cargo", "test", "--release", "--quiet", "-p", "sparse_retrieval"),
            *("--test", "faults", "--", "--nocapture"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    counts = re.findall(r"faults injected into (.+): (\d+)", done.stdout)
    return {"by_work": {what: int(count) for what, count in counts}, "lost_or_torn": 0}


WORKER = """
import sys, numpy as np, sparse_retrieval as sr
from reliability import codes_of
path, kind, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
if kind == "writer":
    with sr.IndexWriter(path, dim=64, value_bits=4) as writer:
        for batch in range(10):
            rows = codes_of(2_000, batch, 64, 8)
            writer.add(rows, ids=np.arange(2_000) * 10 + batch)
else:
    index = sr.SparseIndex.open(path)
    first = int(index.ids.max()) + 1
    for step in range(1_000):
        index.add(codes_of(20, seed + step, 64, 8), ids=np.arange(20) + first + 20 * step)
        index.remove([first + 20 * step])
        if kind == "commit" or step % 5:
            index.commit()
        else:
            index.save(path)
        print(len(index), flush=True)
"""


def kills(options: argparse.Namespace) -> dict[str, Any]:
    """Kill writers at random moments; what was acknowledged must be there, whole."""
    counts = {"commit": 0, "save": 0, "writer": 0}
    acknowledged = lost = torn = 0
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "items.sridx"
        for number in range(options.kills):
            kind = ("commit", "save", "writer")[number % 3]
            if (kind != "writer" and number % 30 < 2) or not path.exists():
                path.with_name(path.name + ".journal").unlink(missing_ok=True)
                sr.SparseIndex.from_codes(
                    codes_of(500, 1, 64, 8), ids=np.arange(500)[::-1], value_bits=4
                ).save(path)
            before = len(sr.SparseIndex.open(path))
            prelude = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            child = subprocess.Popen(
                [sys.executable, "-c", prelude + WORKER, path, kind, str(number)],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(rng.uniform(0.0, 0.06))
            child.send_signal(signal.SIGKILL)
            said = child.communicate()[0].split()
            counts[kind] += 1
            try:
                index = sr.SparseIndex.open(path)
                for mode in index.modes:
                    index.search(codes_of(1, 2, 64, 8), 5, mode=mode)
                if not index.stats()["changes"]["uncommitted"]:
                    sr.merge([path], Path(folder) / "copy.sridx")
                    sr.SparseIndex.open(Path(folder) / "copy.sridx").verify()
            except sr.IndexFormatError:
                torn += 1
                continue
            if kind == "writer":
                torn += len(index) not in (before, 20_000)
                continue
            acknowledged += len(said)
            # the last one said, or one more that was whole but not said yet
            last = int(said[-1]) if said else before
            lost += len(index) not in (last, last + 19)
    return {
        "kills": sum(counts.values()),
        "by_work": counts,
        "acknowledged_changes": acknowledged,
        "lost": lost,
        "torn": torn,
    }


def damage(_: argparse.Namespace) -> dict[str, Any]:
    """Cut a file and its journal at every byte, and flip every bit of them."""
    cuts = flips = missed = passed_over = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "items.sridx"
        journal = path.with_name(path.name + ".journal")
        names = [f"n{i * 7 % 12}" for i in range(12)]
        sr.SparseIndex.from_codes(codes_of(10, 1, 64, 8), ids=names[:10], value_bits=4).save(path)
        index = sr.SparseIndex.open(path)
        index.add(codes_of(2, 2, 64, 8), ids=names[10:])
        index.commit()
        index.remove(names[:1])
        index.commit()
        states = {len(sr.SparseIndex.open(path)), 10, 12}
        for target in (path, journal):
            whole = target.read_bytes()
            for length in range(len(whole)):
                target.write_bytes(whole[:length])
                cuts += 1
                try:
                    missed += len(sr.SparseIndex.open(path)) not in states
                    missed += target is path
                except sr.IndexFormatError:
                    pass
            for at in range(len(whole)):
                for bit in range(8):
                    broken = bytearray(whole)
                    broken[at] ^= 1 << bit
                    target.write_bytes(broken)
                    flips += 1
                    try:
                        opened = sr.SparseIndex.open(path)
                        opened.verify()
                    except sr.IndexFormatError:
                        continue
                    # the journal counts for nothing where it names another file
                    is_other = target is path and 24 <= at < 32
                    passed_over += is_other
                    missed += not is_other
            target.write_bytes(whole)
    return {"cuts": cuts, "flipped_bits": flips, "missed": missed, "harmless": passed_over}


def model(options: argparse.Namespace) -> dict[str, Any]:
    """Run the stateful test of tests/test_changes.py for many steps."""
    script = """
    import sys
    sys.path.insert(0, sys.argv[1])
    from hypothesis import HealthCheck, settings
    from hypothesis.stateful import run_state_machine_as_test
    import test_changes
    steps = 0
    class Counted(test_changes.Model):
        def check_invariants(self, *arguments, **options):
            global steps
            steps += 1
            return super().check_invariants(*arguments, **options)
    runs = int(sys.argv[2])
    run_state_machine_as_test(Counted, settings=settings(
        max_examples=runs, stateful_step_count=50, deadline=None, database=None,
        suppress_health_check=list(HealthCheck), derandomize=True))
    print(steps)
    """
    steps = int(in_child(script, ROOT / "tests", options.runs))
    return {"sequences": options.runs, "steps": steps, "differences": 0}


def writer(options: argparse.Namespace) -> dict[str, Any]:
    """Write many rows through IndexWriter, twice; memory above the interpreter and bytes."""
    script = """
    import sys, time, zlib
    import numpy as np, sparse_retrieval as sr
    from reliability import codes_of, peak_kb
    path, n, batch = sys.argv[1], int(sys.argv[2]), 50_000
    pool = [codes_of(batch, seed) for seed in range(4)]
    before, started = peak_kb(), time.perf_counter()
    with sr.IndexWriter(path, dim=4096, metric="cosine", value_bits=4) as writer:
        for start in range(0, n, batch):
            ids = (np.arange(start, start + batch) * 7919) % 100_000_007
            writer.add(pool[start // batch % 4], ids=ids)
    elapsed = time.perf_counter() - started
    checksum = 0
    with open(path, "rb") as file:
        while part := file.read(1 << 24):
            checksum = zlib.crc32(part, checksum)
    print(before, peak_kb(), elapsed, checksum)
    """
    results = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "many.sridx"
        for n in (options.rows // 10, options.rows, options.rows):
            before, peak, elapsed, checksum = in_child(script, path, n).split()
            results.append(
                {
                    "rows": n,
                    "file_mb": path.stat().st_size / 1e6,
                    "above_interpreter_mb": (int(peak) - int(before)) * 1024 / 1e6,
                    "seconds": float(elapsed),
                    "crc32": int(checksum),
                }
            )
    return {
        "runs": results,
        "nonzeros": WIDTH,
        "same_bytes": results[1]["crc32"] == results[2]["crc32"],
    }


def mapped(options: argparse.Namespace) -> dict[str, Any]:
    """Memory of opening and searching a large mapped file that is not the page cache."""
    script = """
    import sys
    import numpy as np, sparse_retrieval as sr
    from reliability import codes_of
    def anonymous_kb():
        lines = open("/proc/self/status").read().splitlines()
        return next(int(l.split()[1]) for l in lines if l.startswith("RssAnon"))
    query = codes_of(4, 9)
    before = anonymous_kb()
    index = sr.SparseIndex.open(sys.argv[1])
    index.search(query, 100)
    index.get(index.search(query, 10).ids[0])
    print(before, anonymous_kb(), len(index))
    """
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "many.sridx"
        part = codes_of(50_000, 1)
        with sr.IndexWriter(path, dim=DIM, metric="cosine", value_bits=4) as written:
            for start in range(0, 8_000_000, 50_000):
                written.add(part, ids=np.arange(start, start + 50_000))
        before, after, n = map(int, in_child(script, path).split())
        size = path.stat().st_size / 1e6
    return {"file_mb": size, "rows": n, "above_interpreter_mb": (after - before) * 1024 / 1e6}


def additions(options: argparse.Namespace) -> dict[str, Any]:
    """Add to a million rows: until visible, until durable, and what searches lose by it."""
    n, batch = 1_000_000, 1_000
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "items.sridx"
        with sr.IndexWriter(path, dim=DIM, metric="cosine", value_bits=4) as written:
            for start in range(0, n, 50_000):
                written.add(codes_of(50_000, start), ids=np.arange(start, start + 50_000) * 2)
        plain, changed = sr.SparseIndex.open(path), sr.SparseIndex.open(path)
        queries = codes_of(32, 77)
        visible, durable = [], []
        slower: dict[int, dict[str, float]] = {}
        for step in range(10):
            new = codes_of(batch, 10**6 + step)
            ids = np.arange(batch) * 2 + 2 * (n + batch * step)
            started = time.perf_counter()
            changed.add(new, ids=ids)
            found = changed.search(new[:1], 1).ids[0, 0]
            visible.append(time.perf_counter() - started)
            assert found == ids[0]
            started = time.perf_counter()
            changed.commit()
            durable.append(time.perf_counter() - started)
            if step in (0, 4, 9):
                times: dict[str, list[float]] = {"plain": [], "changed": []}
                for _ in range(9):
                    for name, index in (("plain", plain), ("changed", changed)):
                        for size in (1, 32):
                            started = time.perf_counter()
                            index.search(queries[:size], 10, threads=1)
                            times.setdefault(f"{name}{size}", []).append(
                                time.perf_counter() - started
                            )
                slower[batch * (step + 1)] = {
                    f"ratio_{size}": statistics.median(
                        a / b
                        for a, b in zip(times[f"changed{size}"], times[f"plain{size}"], strict=True)
                    )
                    for size in (1, 32)
                }
        syncs = []
        for _ in range(10):
            with (Path(folder) / "sync").open("wb") as file:
                file.write(os.urandom(100_000))
                file.flush()
                started = time.perf_counter()
                os.fsync(file.fileno())
                syncs.append(time.perf_counter() - started)
    return {
        "rows": n,
        "batch": batch,
        "visible_ms": statistics.median(visible) * 1e3,
        "commit_ms": statistics.median(durable) * 1e3,
        "fsync_of_100_kb_ms": statistics.median(syncs) * 1e3,
        "searches": [{"added": added} | ratios for added, ratios in slower.items()],
    }


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "fuzz": fuzz,
    "guided": guided,
    "memcheck": memcheck,
    "faults": faults,
    "kills": kills,
    "damage": damage,
    "model": model,
    "writer": writer,
    "mapped": mapped,
    "additions": additions,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which; default all")
    parser.add_argument("--executions", type=int, default=40_000_000, help="of the fuzzer")
    parser.add_argument("--fuzz-report", type=Path, default=None, help="of a run that is over")
    parser.add_argument("--guided-executions", type=int, default=1_000_000, help="a target")
    parser.add_argument("--guided-done", action="store_true", help="read the last run's logs")
    parser.add_argument("--memcheck-executions", type=int, default=25_000)
    parser.add_argument("--kills", type=int, default=1_000)
    parser.add_argument("--runs", type=int, default=250, help="sequences against the model")
    parser.add_argument("--rows", type=int, default=10_000_000, help="through the writer")
    parser.add_argument("--folder", type=Path, default=None, help="for files of gigabytes")
    options = parser.parse_args()
    for name in options.parts or PARTS:
        started = time.perf_counter()
        part = PARTS[name](options)
        part["wall_s"] = round(time.perf_counter() - started, 1)
        part["machine"] = describe()
        # read now: another part may have been measured meanwhile
        results = json.loads(RESULT.read_text()) if RESULT.exists() else {"parts": {}}
        results["command"] = "python benches/reliability.py"
        results["parts"][name] = part
        RESULT.write_text(json.dumps(results, indent=1) + "\n")
        print(name, json.dumps({k: v for k, v in part.items() if k != "machine"}), flush=True)


if __name__ == "__main__":
    main()
