"""Several processes under torchrun train as one process does with the same batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sparse_retrieval
from sparse_retrieval.training import CompresSAE, History, TrainConfig, train
from training_data import lengths, mixture

BASE = {"steps": 12, "batch_size": 51, "lr": 0.01, "dead_after_items": 100}

#: Everything that is taken over a whole batch has to be taken over all processes.
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "constraint and averages": {"tangent": True, "max_grad_norm": 0.05, "ema_decay": 0.8},
    "batch selection": {"selection": "batch"},
    "ranking": {"ranking_weight": 1.0, "ranking_anchors": 16, "ranking_start": 0.25},
    "auxiliary": {"revive": "auxiliary", "aux_k": 8},
    "resample": {"revive": "resample", "resample_every": 4},
    "nested": {"nested_k": [2, 4, 8], "schedule": "cosine", "warmup_steps": 2},
    # fewer rows than processes: one of them has none
    "one row": {"batch_size": 1},
    "windows": {"shuffle": "windows", "window_rows": 64},
    "neighbours": {"hard_negatives": 3, "batch_size": 32, "ranking_start": 0.5, "mine_every": 4},
}

CHILD = """
import faulthandler, json, os, sys
faulthandler.dump_traceback_later(100, exit=True)  # a hang ends, and says where it was
import numpy as np, torch
import torch.distributed as dist
from sparse_retrieval.training import CompresSAE, TrainConfig, train
torch.set_num_threads(1)
folder = sys.argv[1]
x = np.load(folder + "/x.npy", mmap_mode="r")
rank = int(os.environ["RANK"])
assert not dist.is_initialized()  # torchrun's processes are joined by the first training
for number, options in enumerate(json.load(open(folder + "/cases.json"))):
    model = CompresSAE(16, 64, 4, seed=rank).double()  # process 0's weights count
    told = []
    history = train(model, x, config=TrainConfig.from_dict(options), held_out=40,
                    on_step=lambda metrics: told.append(metrics.step))
    assert bool(told) == (rank == 0)
    torch.save([list(model.state_dict().values()), history.to_json()],
               f"{folder}/{number}-{rank}.pt")
# each process with half of the rows, its own share
model = CompresSAE(16, 64, 4).double()
history = train(model, np.array(x[rank::2]), steps=80, batch_size=100, sharded=True)
torch.save([list(model.state_dict().values()), history.to_json()], f"{folder}/shard-{rank}.pt")
assert dist.get_backend() == "gloo"
dist.barrier()
# all is trained and saved. Left to itself the interpreter aborts now and then while it ends, with
# or without the group being destroyed: a thread of torch's then wants a lock that is gone
os._exit(0)
"""


def launched(folder: Path, processes: int = 2) -> None:
    package = str(Path(sparse_retrieval.__file__).parents[1])
    (folder / "child.py").write_text(CHILD)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", str(folder / "child.py"), str(folder)]
    environment = {**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr[-4000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes under torchrun made of every case."""
    folder = tmp_path_factory.mktemp("torchrun")
    np.save(folder / "x.npy", mixture(300))
    options = [{**BASE, **case} for case in CASES.values()]
    (folder / "cases.json").write_text(json.dumps(options))
    launched(folder)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_as_one_does_with_the_same_batches(folder: Path, name: str) -> None:
    number = list(CASES).index(name)
    (first, history), (second, _) = (
        torch.load(folder / f"{number}-{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)  # the same bits in both processes
    model = CompresSAE(16, 64, 4).double()
    config = TrainConfig.from_dict({**BASE, **CASES[name]})
    alone = train(model, np.load(folder / "x.npy"), config=config, held_out=40)
    together = History.from_json(history)
    # Sums in double precision in another order differ by 1e-15 of their size; Adam divides a
    # gradient by its own length, which magnifies that where a gradient nearly cancels.
    np.testing.assert_allclose(together.loss, alone.loss, rtol=0, atol=1e-8)
    np.testing.assert_array_equal(together.dead_latents, alone.dead_latents)
    for a, b in zip(first, model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert (lengths(model) - 1).abs().max() < 1e-14
    pairs = zip(together.evaluations, alone.evaluations, strict=True)
    for there, here in pairs:
        assert there.step == here.step
        assert there.recall == pytest.approx(here.recall, abs=1e-3)


def test_processes_with_a_share_of_the_rows_each_learn_together(folder: Path) -> None:
    (first, history), (second, other) = (
        torch.load(folder / f"shard-{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    together = History.from_json(history)
    np.testing.assert_array_equal(together.loss, History.from_json(other).loss)
    assert together.loss[-1] < together.loss[0]
    # both halves were learnt: 50 rows of each a step
    np.testing.assert_allclose(together.items_per_second * together.seconds, 100)
    model = CompresSAE(16, 64, 4).double()
    model.load_state_dict(dict(zip(model.state_dict(), first, strict=True)))
    x = torch.from_numpy(np.load(folder / "x.npy")).double()
    cosines = torch.cosine_similarity(model(x), x)
    assert cosines[::2].mean() > 0.85
    assert cosines[1::2].mean() > 0.85
