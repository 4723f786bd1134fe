from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import sparse_retrieval as sr
from sparse_retrieval import _native

# no deadline: these machines are shared, and a slow example is no fault of the code
settings.register_profile(
    "default",
    deadline=None,
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "100")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("default")

# a shell starts what it puts into the background with Ctrl-C ignored, and children inherit that:
# tests of Ctrl-C, and processes under torchrun, need it as a terminal gives it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ISAS = _native.build_info()["isa_available"]


def pytest_report_header() -> str:
    info = _native.build_info()
    return f"sparse_retrieval {info['version']} ({info['profile']}), instruction sets {ISAS}"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For torch's small steps: on a busy machine threads wait for each other most of the time."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each instruction set of this machine in turn, forced through the environment."""
    monkeypatch.setenv("SPARSE_RETRIEVAL_ISA", request.param)
    return request.param


@pytest.fixture(scope="session")
def real_parts() -> tuple[sr.SparseCodes, sr.Dictionary, np.ndarray]:
    """Codes, dictionary and held-out queries from the sample of real embeddings.

    Atoms are items less their mean, codes the 16 largest projections with values by least
    squares: crude, but with the structure of real data (norms differ, signs are mixed, some
    latents are used far more than others, neighbours share latents).
    """
    folder = Path(__file__).parent.parent / "examples" / "data"
    levels = np.load(folder / "embeddings_i8.npy")
    scales = np.load(folder / "scales_f32.npy")
    x = levels.astype(np.float32) * scales.reshape(-1, 1)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    atoms, items, queries = x[:1024] - x.mean(axis=0), x[1024:9216], x[-64:]
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    projected = items @ atoms.T
    support = np.argpartition(np.abs(projected), -16, axis=1)[:, -16:]
    gram = (atoms @ atoms.T)[support[:, :, None], support[:, None, :]] + 1e-3 * np.eye(16)
    wanted = np.take_along_axis(projected, support, axis=1)
    values = np.linalg.solve(gram, wanted[:, :, None])[:, :, 0]
    return sr.SparseCodes(support, values, dim=1024), sr.Dictionary(atoms), queries


@pytest.fixture
def run_python():
    """Runs a script in a fresh interpreter, so that a hang or a crash fails a test and no more."""
    import subprocess

    def run(
        script: str, *arguments: str, timeout: float = 120, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **(env or {})},
            check=False,
        )

    return run
