"""A training step of CompresSAE: the package against a straightforward dense formulation.

Both take the same rows from the same start, and the first step's losses are compared. Times are
interleaved in one process: each round of the package's step is preceded by a dense one. Peak
memory is that of two steps, each formulation in a fresh process, above what the process held once
imports, rows and weights were in place; so gradients and Adam's moments (38 MB) are counted.

    pytest benches/bench_training.py --benchmark-only

On a machine with other work set OMP_WAIT_POLICY=passive, or both formulations spend their time
spinning at barriers for a thread that is not running.

The figures of the docs, all variants interleaved, with their memory:

    python benches/bench_training.py steps

The same on a CUDA device, at the size of the paper's training (batch 100,000, d = 768):

    python benches/bench_training.py gpu

Also the evidence for the default learning rate, a table in docs/training.md that this rewrites:

    python benches/bench_training.py rates x.npy --steps 500

The benchmark's rows are sums of about 24 of 2,000 random directions: the time of a step does not
depend on the data, only the loss does.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

import _machine
from sparse_retrieval.training import CompresSAE, TrainConfig, train
from sparse_retrieval.training.config import Init
from sparse_retrieval.training.loop import Loop

BATCH, DIM, LATENTS, K = 4096, 384, 4096, 32
LR = TrainConfig().lr
ROUNDS = 5

Step = Callable[[], float]

RESULTS = Path(__file__).parent / "results" / "training_step.json"

#: Batch and width of the paper's training, for a GPU, where latents and k are as above.
GPU_BATCH, GPU_DIM = 100_000, 768
GPU_RESULTS = Path(__file__).parent / "results" / "training_gpu.json"

#: Options of the package's step; the dense formulation is the other one.
VARIANTS: dict[str, dict[str, Any]] = {
    "sparse": {},
    "sparse, bf16": {"precision": "bf16"},
    "sparse, compiled loss": {"compile": True},
    "sparse, five nested k": {"nested_k": (8, 16, 32, 64, 128)},
    "sparse, ranking": {"ranking_weight": 1.0, "ranking_start": 0.0},
}


def rows(batch: int = BATCH, dim: int = DIM) -> Tensor:
    """(batch, dim) float32 rows that few directions explain."""
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((2000, dim), dtype=np.float32)
    weights = rng.standard_normal((batch, 2000), dtype=np.float32)
    # no larger temporary than this one: it would hide in the baseline what a step allocates
    weights[rng.random(weights.shape, dtype=np.float32) > 24 / 2000] = 0
    return torch.from_numpy(weights @ directions)


class Dense:
    """The objective as one would first write it: two (batch, s) masks, two dense decodes."""

    def __init__(self, start: CompresSAE) -> None:
        self.encoder = start.encoder_weight.detach().T.clone().requires_grad_()
        self.bias = start.encoder_bias.detach().clone().requires_grad_()
        self.decoder = start.decoder_weight.detach().clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.encoder, self.bias, self.decoder], lr=LR)

    def step(self, x: Tensor) -> float:
        """One optimizer step; the loss before it."""
        e = (x / x.norm(dim=1, keepdim=True)) @ self.encoder + self.bias
        cosines = []
        for k in (K, 4 * K):
            best = e.abs().topk(k, dim=1)
            code = torch.zeros_like(e).scatter(1, best.indices, best.values) * e.sign()
            cosines.append(torch.cosine_similarity(x, code @ self.decoder, dim=1))
        loss = (1 - cosines[0]).mean() + (1 - cosines[1]).mean() / 8
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        with torch.no_grad():
            self.decoder /= self.decoder.norm(dim=1, keepdim=True)
        return float(loss.detach())


def make_step(which: str, x: Tensor) -> Step:
    """Set up one formulation at the common start; calling the result takes a step."""
    model = CompresSAE(x.shape[1], LATENTS, K).to(x.device)
    if which == "dense":
        dense = Dense(model)
        del model
        return lambda: dense.step(x)
    loop = Loop(model, TrainConfig(lr=LR, **VARIANTS[which]))
    return lambda: loop.step(x, 1, time.perf_counter()).loss


@pytest.fixture(scope="module")
def x() -> Tensor:
    return rows()


def peak(which: str) -> dict[str, float]:
    """Peak memory of two steps in a fresh process, MB."""
    run = subprocess.run(
        [sys.executable, __file__, which], capture_output=True, text=True, check=True
    )
    result: dict[str, float] = json.loads(run.stdout)
    return result


def test_training_step_sparse(benchmark: Any, x: Tensor) -> None:
    sparse, dense = make_step("sparse", x), make_step("dense", x)
    # Each loss is a mean of 4096 float32 cosines, which carry the rounding of 384-term sums
    # (2e-6 at worst); nothing cancels.
    assert sparse() == pytest.approx(dense(), abs=1e-5)
    peaks = {which: peak(which) for which in ("sparse", "dense")}
    assert all(memory["peak_over_baseline_mb"] > 0 for memory in peaks.values())
    dense_seconds: list[float] = []
    cpu_seconds: dict[str, list[float]] = {"sparse": [], "dense": []}

    def on_cpu(which: str, step: Step) -> None:
        began = time.process_time()
        step()
        cpu_seconds[which].append(time.process_time() - began)

    def run_dense() -> None:
        began = time.perf_counter()
        on_cpu("dense", dense)
        dense_seconds.append(time.perf_counter() - began)

    benchmark.group = f"training step, batch {BATCH}, d {DIM}, s {LATENTS}, k {K}"
    benchmark.pedantic(
        on_cpu, args=("sparse", sparse), setup=run_dense, rounds=ROUNDS, iterations=1
    )
    stats = benchmark.stats.stats
    benchmark.extra_info.update(
        dense_median_s=float(np.median(dense_seconds)),
        dense_min_s=min(dense_seconds),
        ratio_of_medians=float(np.median(dense_seconds)) / stats.median,
        ratio_of_minima=min(dense_seconds) / stats.min,
        # over all threads; with OMP_WAIT_POLICY=passive it hardly sees other work on the machine
        sparse_cpu_median_s=float(np.median(cpu_seconds["sparse"])),
        dense_cpu_median_s=float(np.median(cpu_seconds["dense"])),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        **{f"{which}_{key}": mb for which, memory in peaks.items() for key, mb in memory.items()},
    )


def test_training_step_dense(benchmark: Any, x: Tensor) -> None:
    dense = make_step("dense", x)
    benchmark.group = f"training step, batch {BATCH}, d {DIM}, s {LATENTS}, k {K}"
    benchmark.pedantic(dense, rounds=3, iterations=1, warmup_rounds=1)


def _peak_megabytes() -> float:
    """Most memory that this process has held resident so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # not ru_maxrss: across fork and exec it keeps the peak of the parent, here of pytest
        (line,) = (row for row in status.read_text().splitlines() if row.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, others kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _peak_of_this_process(which: str) -> dict[str, float]:
    batch = rows()
    step = make_step(which, batch)
    # the first parallel region brings thread stacks and MKL's buffers along: part of neither
    torch.randn(512, DIM) @ torch.randn(DIM, 512)
    before = _peak_megabytes()
    step()
    step()
    after = _peak_megabytes()
    return {"peak_over_baseline_mb": round(after - before, 1), "peak_mb": round(after, 1)}


def steps(rounds: int) -> dict[str, Any]:
    """Every variant and the dense formulation, one step of each in turn; medians and memory."""
    x = rows()
    made = {which: make_step(which, x) for which in ("dense", *VARIANTS)}
    losses = {which: step() for which, step in made.items()}  # compiles, warms up
    assert losses["sparse"] == pytest.approx(losses["dense"], abs=1e-5)
    seconds: dict[str, list[float]] = {which: [] for which in made}
    cpu: dict[str, list[float]] = {which: [] for which in made}
    encoder = CompresSAE(x.shape[1], LATENTS, K)
    encoding: dict[str, list[float]] = {"full": [], "bf16": []}
    for _ in range(rounds):
        for precision, of in encoding.items():
            dtype = torch.bfloat16 if precision == "bf16" else None
            wall = time.perf_counter()
            encoder.encode(x, 4 * K, compute_dtype=dtype)
            of.append(time.perf_counter() - wall)
        for which, step in made.items():
            wall, on_cpu = time.perf_counter(), time.process_time()
            step()
            seconds[which].append(time.perf_counter() - wall)
            cpu[which].append(time.process_time() - on_cpu)
    del made
    return {
        "benchmark": "training_step",
        "command": "OMP_WAIT_POLICY=passive python benches/bench_training.py steps",
        "machine": _machine.describe(),
        "batch": BATCH,
        "columns": DIM,
        "hidden_dim": LATENTS,
        "k": K,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "encode_median_s": {name: float(np.median(of)) for name, of in encoding.items()},
        "steps": {
            which: {
                "median_s": float(np.median(seconds[which])),
                "min_s": min(seconds[which]),
                "cpu_median_s": float(np.median(cpu[which])),
                **peak(which),
            }
            for which in seconds
        },
    }


#: What is timed on a GPU: a formulation, and how float32 matrices are multiplied ("high": TF32).
GPU_VARIANTS: dict[str, tuple[str, Literal["highest", "high"]]] = {
    "dense, float32": ("dense", "highest"),
    "dense, TF32": ("dense", "high"),
    "sparse, float32": ("sparse", "highest"),
    "sparse, TF32": ("sparse", "high"),
    "sparse, bf16 and TF32": ("sparse, bf16", "high"),
}


def gpu(rounds: int) -> dict[str, Any]:
    """Each variant in turn on the CUDA device; medians, and the memory of a step.

    Raises
    ------
    RuntimeError
        If torch sees no CUDA device.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no CUDA device, and this is about one")
    on_cpu = rows(GPU_BATCH, GPU_DIM)
    x = on_cpu.cuda()
    # the same rows give the same loss as on the CPU, where a small batch is taken
    few = {device: make_step("sparse", on_cpu[:512].to(device))() for device in ("cpu", "cuda")}
    assert few["cuda"] == pytest.approx(few["cpu"], abs=1e-5)
    seconds: dict[str, list[float]] = {name: [] for name in GPU_VARIANTS}
    losses, peaks = {}, {}
    for name, (which, precision) in GPU_VARIANTS.items():
        torch.set_float32_matmul_precision(precision)
        before = torch.cuda.memory_allocated()
        step = make_step(which, x)
        losses[name] = step()  # Adam's moments are made here
        torch.cuda.reset_peak_memory_stats()
        step()
        peaks[name] = (torch.cuda.max_memory_allocated() - before) / 1e6
        del step
        torch.cuda.empty_cache()
    assert losses["sparse, float32"] == pytest.approx(losses["dense, float32"], abs=1e-5)
    made = {name: make_step(which, x) for name, (which, _) in GPU_VARIANTS.items()}
    for turn in range(rounds + 1):
        for name, step in made.items():
            torch.set_float32_matmul_precision(GPU_VARIANTS[name][1])
            torch.cuda.synchronize()
            began = time.perf_counter()
            step()
            torch.cuda.synchronize()
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - began)
    return {
        "benchmark": "training_gpu",
        "command": "python benches/bench_training.py gpu",
        "machine": _machine.describe(),
        "device": torch.cuda.get_device_name(),
        "cuda": torch.version.cuda,
        "batch": GPU_BATCH,
        "columns": GPU_DIM,
        "hidden_dim": LATENTS,
        "k": K,
        "rounds": rounds,
        "steps": {
            name: {
                "median_s": float(np.median(of)),
                "min_s": min(of),
                "peak_mb": round(peaks[name], 1),
                "first_loss": losses[name],
            }
            for name, of in seconds.items()
        },
    }


def recall(model: CompresSAE, queries: Tensor, items: Tensor, n: int = 100) -> float:
    """Recall@n of dense queries against reconstructed items; both (., d) of unit length."""
    with torch.no_grad():
        x_hat = torch.cat([model(block) for block in items.split(4096)])
        found = (queries @ torch.nn.functional.normalize(x_hat).T).topk(n).indices
        exact = (queries @ items.T).topk(n).indices
    hits = [len(np.intersect1d(a, b)) for a, b in zip(found, exact, strict=True)]
    return float(np.mean(hits)) / n


def rates(path: Path, steps: int, trials: list[tuple[Init, float]]) -> Iterator[str]:
    """Rows of a table: one short training per start and rate, judged on 1,000 held-out rows."""
    x = np.load(path, mmap_mode="r")
    order = np.random.default_rng(0).permutation(len(x))
    held_out, rest = (np.sort(part) for part in np.split(order, [1000]))
    train_rows = np.asarray(x[rest])
    queries, items = (
        torch.nn.functional.normalize(torch.from_numpy(np.asarray(part, dtype=np.float32)))
        for part in (x[held_out], train_rows)
    )
    for init, lr in trials:
        model = CompresSAE(x.shape[1], LATENTS, K, init=init)
        config = TrainConfig(steps=steps, batch_size=BATCH, lr=lr, schedule="constant")
        history = train(model, train_rows, config=config)
        with torch.no_grad():
            cosine = float(torch.cosine_similarity(queries, model(queries)).mean())
        yield (
            f"| {init} | {lr:g} | {history.loss[-10:].mean():.4f} | {cosine:.4f} "
            f"| {recall(model, queries, items):.4f} | {history.dead_latents[-1]:.1%} |"
        )


def write_table(page: Path, lines: list[str], caption: str) -> None:
    """Replace what stands between the two markers of the page."""
    begin, end = "<!-- rates: begin -->", "<!-- rates: end -->"
    head, _, tail = page.read_text().partition(begin)
    _, found, tail = tail.partition(end)
    if not found:
        raise ValueError(f"{page} lacks the markers {begin} and {end}")
    page.write_text("\n".join([head + begin, caption, "", *lines, end]) + tail)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for which in ("dense", *VARIANTS):
        commands.add_parser(which, help=f"peak memory of two {which} steps, as JSON")
    parser_rates = commands.add_parser("rates", help="short trainings at several learning rates")
    parser_rates.add_argument("embeddings", type=Path, help="(n, d) rows, .npy")
    parser_rates.add_argument("--steps", type=int, default=500)
    parser_rates.add_argument(
        "--trials", nargs="+", default=["independent:3e-3", "independent:1e-2", "tied:1e-2"]
    )
    timed = {
        "steps": (steps, RESULTS, "time every variant, into results/"),
        "gpu": (gpu, GPU_RESULTS, "time steps on a CUDA device, into results/"),
    }
    for name, (_, out, what) in timed.items():
        parser_timed = commands.add_parser(name, help=what)
        parser_timed.add_argument("--rounds", type=int, default=7)
        parser_timed.add_argument("--out", type=Path, default=out)
    given = parser.parse_args()
    if given.command in timed:
        results = timed[given.command][0](given.rounds)
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(results["steps"], indent=1))
        return
    if given.command != "rates":
        print(json.dumps(_peak_of_this_process(given.command)))
        return
    pairs: list[Any] = [trial.split(":") for trial in given.trials]
    caption = (
        f"{given.embeddings.name}, s = {LATENTS}, k = {K}, {given.steps} steps of {BATCH}, "
        "1,000 rows held out:"
    )
    lines = [
        "| start | rate | loss, last 10 steps | held-out cosine | recall@100, dense query | dead |",
        "|---|---|---|---|---|---|",
    ]
    for line in rates(given.embeddings, given.steps, [(init, float(lr)) for init, lr in pairs]):
        print(line, flush=True)
        lines.append(line)
        # after every trial: a run of many that is stopped leaves what it found
        write_table(Path(__file__).parents[1] / "docs" / "training.md", lines, caption)


if __name__ == "__main__":
    main()
