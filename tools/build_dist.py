"""Build what a release consists of, and check it: wheels, the source, the source with its crates.

    python tools/build_dist.py [--out dist] [--targets x86_64,aarch64] [--no-offline] [--no-check]

Needs a Rust toolchain, and the Python packages maturin and ziglang (zig links against the glibc of
manylinux2014 whatever the machine has, for any CPU; a foreign CPU also needs
``rustup target add TARGET``). In ``out`` it leaves

- one abi3 wheel for each target, for Python 3.10 and newer;
- the source distribution, which fetches its crates when it is built;
- ``*-offline.tar.gz``, the same with all crates in it: it builds without a network;
- ``SHA256SUMS``.

Checks: the version is one everywhere; wheels hold what they must and load in an empty environment
(those for this machine), where an index is built, saved, opened and searched; the offline source
builds with an empty cargo home and no network.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {"x86_64": "x86_64-unknown-linux-gnu", "aarch64": "aarch64-unknown-linux-gnu"}
#: What a wheel without is broken, though it installs.
MUST_HOLD = (
    "sparse_retrieval/__init__.py",
    "sparse_retrieval/_native.abi3.so",
    "sparse_retrieval/_native.pyi",
    "sparse_retrieval/py.typed",
    "sparse_retrieval/explore/static/index.html",
    "sparse_retrieval/explore/static/page.js",
)
#: Where cargo finds the crates of the offline source.
VENDORED = """[source.crates-io]
replace-with = "vendored-sources"

[source.vendored-sources]
directory = "vendor"
"""
SMOKE = """
import pathlib, sys, tempfile
import numpy as np, sparse_retrieval as sr
x = np.random.default_rng(0).normal(size=(400, 16)).astype(np.float32)
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "items.sridx"
    sr.SparseIndex.from_embeddings(x, k=6, n_atoms=48, rounds=2).save(path)
    index = sr.SparseIndex.open(path)
    index.verify()
    assert index.search(x[:20], 1).ids.shape == (20, 1)
assert "torch" not in sys.modules
print(sr.__version__, sr.__file__)
"""


def run(command: Sequence[str | Path], **options: object) -> str:
    """Run a command and return what it printed; its own words are shown if it fails."""
    text = [str(part) for part in command]
    done = subprocess.run(text, capture_output=True, text=True, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"{' '.join(text)}\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def version() -> str:
    """Return the version, which stands in Cargo.toml alone; other places must agree."""
    (found,) = re.findall(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.M)
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if f"## {found}" not in changes:
        sys.exit(f"CHANGELOG.md has no section for {found}")
    lock = (ROOT / "Cargo.lock").read_text(encoding="utf-8")
    for crate in ("sparse_retrieval", "sparse_retrieval_pymodule"):
        if f'name = "{crate}"\nversion = "{found}"' not in lock:
            sys.exit(f"Cargo.lock has another version of {crate}: cargo update --workspace")
    return str(found)


def wheel(target: str, out: Path) -> Path:
    """Build the wheel of a target against manylinux2014."""
    before = set(out.glob("*.whl"))
    # maturin asks the first Python of the path for zig: it must be the one that has it
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    run(
        [
            *(sys.executable, "-m", "maturin", "build", "--release", "--locked", "--zig"),
            *("--compatibility", "manylinux2014", "--target", TARGETS[target]),
            *("--interpreter", sys.executable, "--out", out),
        ],
        cwd=ROOT,
        env={**os.environ, "PATH": here},
    )
    made = set(out.glob(f"*{target}*.whl"))
    (path,) = made - before or made
    return path


def check_wheel(path: Path) -> None:
    """Refuse a wheel with another tag than abi3 and manylinux2014, or without its parts."""
    if not re.search(r"-cp310-abi3-manylinux2014_", path.name):
        sys.exit(f"{path.name}: expected a wheel for cp310-abi3 and manylinux2014")
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        missing = [name for name in MUST_HOLD if name not in names]
        if missing or not any(name.endswith("licenses/LICENSE") for name in names):
            sys.exit(f"{path.name}: lacks {', '.join(missing) or 'its licence'}")


def smoke(package: Path, env: dict[str, str] | None = None) -> str:
    """Install a wheel or a source in an empty environment, and use it there."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_"))}
        run([python, "-m", "pip", "install", "--quiet", package], env={**clean, **(env or {})})
        return run([python, "-c", SMOKE], cwd=folder, env=clean).strip()


def sdist(out: Path) -> Path:
    """Build the source distribution."""
    run([sys.executable, "-m", "maturin", "sdist", "--out", out], cwd=ROOT)
    return out / f"sparse_retrieval-{version()}.tar.gz"


def offline(source: Path) -> Path:
    """Add to a source distribution the crates that it needs, and tell cargo to use them."""
    target = source.with_name(source.name.replace(".tar.gz", "-offline.tar.gz"))
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(source) as archive:
            archive.extractall(folder, filter="data")
        (top,) = Path(folder).iterdir()
        run(["cargo", "vendor", "--locked", "--quiet", "vendor"], cwd=top)
        (top / ".cargo").mkdir(exist_ok=True)
        (top / ".cargo" / "config.toml").write_text(VENDORED, encoding="utf-8")
        with tarfile.open(target, "w:gz", compresslevel=9) as archive:
            archive.add(top, top.name, filter=_anonymous)
    return target


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out who packed it and when, so that equal sources make equal archives."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    return entry


def check_offline(source: Path) -> None:
    """Build it with an empty cargo home that may not reach the network."""
    with tempfile.TemporaryDirectory() as home:
        env = {"CARGO_HOME": home, "CARGO_NET_OFFLINE": "true"}
        print(f"  {source.name}: {smoke(source, env)}")


def sums(out: Path) -> None:
    """Write the checksums of everything that is there."""
    text = io.StringIO()
    for path in sorted(out.glob("sparse_retrieval-*")):
        text.write(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
    (out / "SHA256SUMS").write_text(text.getvalue(), encoding="utf-8")


def main() -> None:
    """Build and check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    parser.add_argument("--targets", default="x86_64,aarch64")
    parser.add_argument("--no-offline", action="store_true")
    parser.add_argument("--no-check", action="store_true", help="do not install what was built")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    print(f"sparse_retrieval {version()}")
    for target in arguments.targets.split(","):
        path = wheel(target, out)
        check_wheel(path)
        print(f"  {path.name}, {path.stat().st_size / 1e6:.1f} MB")
        if not arguments.no_check and target == platform.machine():
            print(f"    installed: {smoke(path)}")
    source = sdist(out)
    print(f"  {source.name}, {source.stat().st_size / 1e6:.1f} MB")
    if not arguments.no_offline:
        packed = offline(source)
        print(f"  {packed.name}, {packed.stat().st_size / 1e6:.1f} MB")
        if not arguments.no_check:
            check_offline(packed)
    sums(out)


if __name__ == "__main__":
    main()
