"""The processes that train together: who they are, and sums and maxima over them.

`World` of one process answers everything without torch.distributed, so that the loop is written
once. Knows nothing of models.
"""

from __future__ import annotations

import atexit
import os

import torch
import torch.distributed as dist
from torch import Tensor


class World:
    """All processes of the default process group, or this one alone.

    Attributes
    ----------
    rank, size : int
        This process's number, and how many there are.
    """

    def __init__(self) -> None:
        self.joined: bool = bool(dist.is_available() and dist.is_initialized())
        self.rank = dist.get_rank() if self.joined else 0
        self.size = dist.get_world_size() if self.joined else 1

    @property
    def leads(self) -> bool:
        """Whether this process writes, shows progress and warns for all."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Sum over processes, the same bits in each."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def max(self, values: Tensor) -> Tensor:
        """Largest over processes."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all processes in order of rank; the counts may differ, the widths may not."""
        if self.size == 1:
            return rows
        counts = torch.zeros(self.size, dtype=torch.int64, device=rows.device)
        counts[self.rank] = len(rows)
        lengths = self.sum(counts).tolist()
        padded = rows.new_zeros((max(lengths), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    def from_lead(self, numbers: list[float], device: torch.device) -> list[float]:
        """The numbers that process 0 has, in every process."""
        if self.size == 1:
            return numbers
        dtype = torch.float32 if device.type == "mps" else torch.float64
        shared = torch.tensor(numbers, dtype=dtype, device=device)
        dist.broadcast(shared, 0)
        return [float(number) for number in shared]

    def _reduced(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        if self.size == 1:
            return values
        reduced = values.detach().clone()
        dist.all_reduce(reduced, op=operation)
        return reduced


def joined(device: torch.device) -> World:
    """The world that this process trains in.

    A process group that is there is used. Under torchrun, where none is there yet, one is made,
    NCCL for CUDA, else gloo, and left until the process ends: one that is made a second time meets
    what the first left in torchrun's store, and now and then its processes wait for each other
    without end.
    """
    launched = "TORCHELASTIC_RUN_ID" in os.environ and not World().joined
    if launched and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    return World()


def _leave() -> None:
    if World().joined:
        dist.destroy_process_group()


def local_device(device: str | torch.device | None, current: torch.device) -> torch.device:
    """The device to train on: ``"cuda"`` without a number is that of torchrun's LOCAL_RANK."""
    wanted = current if device is None else torch.device(device)
    if str(wanted) == "cuda" and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return wanted


def refuse_absent(device: torch.device) -> None:
    """Say that a device is not there before a model is moved to it.

    Raises
    ------
    ValueError
        If torch sees no such CUDA or MPS device here.
    """
    if device.type == "cuda":
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        absent = (device.index or 0) >= there
        seen = f"{there} CUDA devices" if there else "no CUDA device"
    else:
        absent = device.type == "mps" and not torch.backends.mps.is_available()
        seen = "no MPS device"
    if absent:
        raise ValueError(
            f"device is {str(device)!r}, but torch {torch.__version__} sees {seen} here; "
            "train with device='cpu', or with a torch and a driver for that device"
        )
