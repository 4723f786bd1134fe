"""Threads, forks and signals, each in a real process that may hang or die without the test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import sparse_retrieval as sr

SETUP = """
import numpy as np, sparse_retrieval as sr, sys, os, threading, time, signal
rng = np.random.default_rng(0)
n = int(os.environ.get("N", "20000"))
support = (np.arange(32) * 7 + rng.integers(0, 4096, (n, 1))) % 4096
codes = sr.SparseCodes(support, rng.standard_normal((n, 32)), dim=4096)
index = sr.SparseIndex.from_codes(codes, metric="cosine", value_bits=8)
"""


def run(script: str, timeout: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SETUP + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **env},
        check=False,
    )


def ends_with_ctrl_c(script: str, *arguments: str, within: float, **env: str) -> None:
    """Press Ctrl-C when the script has started; it must say within so many seconds that it was.

    Not a measure of speed: what is cut short would take several times as long.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            time.sleep(0.3)
            begun = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "interrupted\n"
            assert time.monotonic() - begun < within
            assert process.wait(timeout=10) == 0
        finally:
            process.kill()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("threads", [1, 2, None])
def test_a_child_forked_after_a_search_searches_too(threads):
    done = run(
        f"""
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of fork itself
        expected = index.search(codes[:20], 10, threads={threads}).ids.tobytes()
        child = os.fork()
        if child == 0:
            again = index.search(codes[:20], 10, threads={threads}).ids.tobytes()
            os._exit(0 if again == expected else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert index.search(codes[:20], 10, threads={threads}).ids.tobytes() == expected
        print("both")
        """
    )
    assert done.stdout == "both\n", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_forked_while_another_thread_searches_searches_too():
    done = run(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        stop = threading.Event()
        def search():
            while not stop.is_set():
                index.search(codes[:50], 10)
        thread = threading.Thread(target=search)
        thread.start()
        for _ in range(10):
            child = os.fork()
            if child == 0:
                index.search(codes[:20], 10)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
        stop.set()
        thread.join()
        print("all")
        """
    )
    assert done.stdout == "all\n", done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_counts_none_of_the_calls_that_run_in_its_parent():
    done = run(
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        expected = index.search(codes[:20], 10).ids.tobytes()
        seen = []
        def fork(done):
            seen.append(sr._native.calls_in_flight())
            child = os.fork()
            if child == 0:
                alone = sr._native.calls_in_flight() == 0
                same = index.search(codes[:20], 10).ids.tobytes() == expected
                os._exit(0 if alone and same and sr._native.calls_in_flight() == 0 else 1)
            _, status = os.waitpid(child, 0)
            seen.append(os.waitstatus_to_exitcode(status))
            raise StopIteration
        try:
            index.search(codes, 10, progress=fork)
        except StopIteration:
            print(seen, sr._native.calls_in_flight())
        """
    )
    assert done.stdout == "[1, 0] 0\n", done.stderr


def test_calls_are_counted_until_they_end_in_whatever_way():
    done = run(
        """
        def refused(done):
            raise LookupError
        ends = []
        for call in (
            lambda: index.search(codes[:50], 10),
            lambda: index.search(codes[:50], 10, threads=2),
            lambda: index.get([n]),
            lambda: index.search(codes[:50], 10, threads=1025),
            lambda: index.search(codes, 10, progress=refused),
            lambda: index.search(codes, 10, threads=1, progress=refused),
        ):
            try:
                call()
                ends.append("result")
            except Exception as error:
                ends.append(type(error).__name__)
            assert sr._native.calls_in_flight() == 0, ends
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            while True:
                index.search(codes, 10)
        except KeyboardInterrupt:
            ends.append("interrupt")
        print(*ends, sr._native.calls_in_flight())
        """
    )
    expected = "result result KeyError ValueError LookupError LookupError interrupt 0\n"
    assert done.stdout == expected, done.stderr


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads through /proc")
def test_calls_that_leave_threads_open_share_the_processors():
    # a call within another's progress is one of two: it waits for none, and finds the same
    done = run(
        """
        tasks = f"/proc/{os.getpid()}/task"
        def pool_threads():
            names = [open(f"{tasks}/{t}/comm").read() for t in os.listdir(tasks)]
            return sum(name.startswith("sparse-retrieva") for name in names)
        seen = [pool_threads()]
        alone = index.search(codes[:20], 5).ids.tobytes()
        seen.append(pool_threads())
        def nested(done):
            assert index.search(codes[:20], 5).ids.tobytes() == alone
            seen.append(pool_threads())
            raise StopIteration
        try:
            index.search(codes, 5, progress=nested)
        except StopIteration:
            print(*np.diff(seen))
        """,
        RAYON_NUM_THREADS="4",
    )
    # alone on the four threads that the index was built on, then on two that are new
    assert done.stdout == "0 2\n", done.stderr


def test_many_threads_search_one_index_and_find_the_same(tmp_path):
    rng = np.random.default_rng(0)
    codes = sr.SparseCodes(
        (np.arange(16) * 5 + rng.integers(0, 512, (5000, 1))) % 512,
        rng.standard_normal((5000, 16)),
        dim=512,
    )
    sr.SparseIndex.from_codes(codes).save(tmp_path / "items.sridx")
    index = sr.SparseIndex.open(tmp_path / "items.sridx")
    expected = index.search(codes[:64], 20)
    wrong: list[object] = []

    def search(first: int) -> None:
        try:
            for _ in range(20):
                found = index.search(codes[first : first + 8], 20)
                if found.ids.tobytes() != expected.ids[first : first + 8].tobytes():
                    wrong.append(first)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=search, args=(first,)) for first in range(0, 64, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_other_threads_run_while_one_searches():
    # with the interpreter's lock held by the search the counter could not move
    done = run(
        """
        counter = 0
        def count():
            global counter
            while searching:
                counter += 1
                time.sleep(0)
        searching = True
        thread = threading.Thread(target=count)
        thread.start()
        before = counter
        index.search(codes[:2000], 10, threads=1)
        after = counter
        searching = False
        thread.join()
        print(after - before > 1000)
        """
    )
    assert done.stdout == "True\n", done.stderr


@pytest.mark.parametrize(
    "call",
    [
        "index.search(codes, 10, threads=1)",
        "index.search(codes, 10)",
        "while True: sr.SparseIndex.from_codes(codes, metric='cosine')",
    ],
)
def test_ctrl_c_ends_a_long_call_within_a_second(call):
    script = SETUP + textwrap.dedent(
        f"""
        print("started", flush=True)
        try:
            {call}
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """
    )
    # what is cut short would have taken a minute
    ends_with_ctrl_c(script, within=10, N="60000")


def test_ctrl_c_ends_a_search_that_a_damaged_file_makes_seem_short(tmp_path):
    # every other row is said to be the one row that has nonzeros: some 10^10 of them
    script = textwrap.dedent(
        """
        import json, sys
        import numpy as np, sparse_retrieval as sr
        path, n, wide = sys.argv[1], 250_000, 65_000
        indptr = np.concatenate([[0], np.full(n, wide)])
        values = np.ones(wide, dtype=np.float32)
        codes = sr.SparseCodes.from_csr(indptr, np.arange(wide), values, wide)
        sr.SparseIndex.from_codes(codes, value_bits=32).save(path)
        data = bytearray(open(path, "rb").read())
        header = json.loads(data[32 : 32 + int.from_bytes(data[16:24], "little")])
        at = next(s["offset"] for s in header["sections"] if s["name"] == "row_offsets")
        offsets = np.where(np.arange(n + 1) % 2, wide, 0).astype("<u4")
        data[at : at + offsets.nbytes] = offsets.tobytes()
        open(path, "wb").write(data)
        index = sr.SparseIndex.open(path)
        query = codes[:1]
        print("started", flush=True)
        try:
            index.search(query, 1, mode="sparse", threads=1)
            print("found", flush=True)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """
    )
    # what is cut short would have taken some 15 seconds
    ends_with_ctrl_c(script, str(tmp_path / "damaged.sridx"), within=5)


def test_threads_are_as_many_as_asked_for():
    done = run(
        """
        def pool_threads():
            tasks = "/proc/self/task"
            names = [open(f"{tasks}/{t}/comm").read() for t in os.listdir(tasks)]
            return sum(name.startswith("sparse-retrieva") for name in names)
        before = pool_threads()
        index.search(codes[:10], 5, threads=3)
        print(pool_threads() - before)
        """,
        RAYON_NUM_THREADS="1",
    )
    if not Path("/proc/self/task").exists():
        pytest.skip("counts threads through Linux's /proc")
    assert done.stdout == "3\n", done.stderr


def test_the_environment_sets_the_default_number_of_threads():
    done = run("print(sr._native.build_info()['threads'])", RAYON_NUM_THREADS="3")
    assert done.stdout == "3\n", done.stderr


def test_a_kill_during_save_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "items.sridx"
    script = SETUP + textwrap.dedent(
        """
        small = sr.SparseIndex.from_codes(codes[:100])
        small.save(sys.argv[1])
        print("saved", flush=True)
        while True:
            index.save(sys.argv[1])
            small.save(sys.argv[1])
        """
    )
    sizes = set()
    for attempt in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "saved\n"
            time.sleep(0.003 * attempt)
            process.kill()
        found = sr.SparseIndex.open(path)
        found.verify()
        sizes.add(len(found))
    assert sizes <= {100, 20_000}


def test_eight_threads_search_a_mapped_index_while_another_process_replaces_its_file(tmp_path):
    # each thread searches one index opened before, and opens the path anew every time: it may
    # find the old file or the new one, and whole answers of that one
    path = tmp_path / "items.sridx"
    rng = np.random.default_rng(0)
    dictionary = sr.Dictionary(np.eye(64))
    codes = sr.SparseCodes(
        (np.arange(16) + rng.integers(0, 64, (6000, 1))) % 64,
        rng.standard_normal((6000, 16)),
        dim=64,
    )
    queries = rng.standard_normal((40, 64))
    kinds = [
        sr.SparseIndex.from_codes(codes, dictionary=dictionary, value_bits=4, metric="cosine"),
        sr.SparseIndex.from_codes(codes[:4500], dictionary=dictionary, ids=np.arange(4500) + 9),
    ]
    for number, kind in enumerate(kinds):
        kind.save(tmp_path / f"{number}.sridx")
    kinds[0].save(path)
    expected = {len(kind): kind.search(queries, 20) for kind in kinds}
    script = """
import sys, sparse_retrieval as sr
folder = sys.argv[1]
kinds = [sr.SparseIndex.open(f"{folder}/{number}.sridx", mmap=False) for number in (0, 1)]
print("ready", flush=True)
done = 0
while True:
    done += 1
    kinds[done % 2].save(f"{folder}/items.sridx")
    print(done, flush=True)
"""
    wrong: list[object] = []
    lengths: set[int] = set()
    index = sr.SparseIndex.open(path)
    stop = threading.Event()

    def check(found: sr.SearchResult, want: sr.SearchResult, rows: slice) -> None:
        if found.ids.tobytes() != want.ids[rows].tobytes():
            wrong.append("ids")
        if found.scores.tobytes() != want.scores[rows].tobytes():
            wrong.append("scores")

    def search(first: int) -> None:
        rows = slice(first, first + 5)
        try:
            while not stop.is_set():
                check(index.search(queries[rows], 20), expected[6000], rows)
                anew = sr.SparseIndex.open(path)
                lengths.add(len(anew))
                check(anew.search(queries[rows], 20, threads=1), expected[len(anew)], rows)
        except Exception as error:
            wrong.append(error)

    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        threads = [threading.Thread(target=search, args=(first,)) for first in range(0, 40, 5)]
        for thread in threads:
            thread.start()
        replaced = [process.stdout.readline() for _ in range(60)]
        stop.set()
        for thread in threads:
            thread.join()
        process.kill()
    assert replaced[-1] == "60\n"
    assert wrong == []
    assert lengths == {4500, 6000}, "both files were met"
    index.verify()  # what is open stays what it was


LOADER = """
import sys, threading
import numpy as np, torch, sparse_retrieval as sr
from torch.utils.data import DataLoader, Dataset

class Found(Dataset):
    # the ten nearest items of each item, searched by whichever worker is asked for it
    def __init__(self, index, queries):
        self.index, self.queries = index, queries
    def __len__(self):
        return len(self.queries)
    def __getitem__(self, i):
        return torch.from_numpy(self.index.search(self.queries[i], 10).ids)

def main():
    index = sr.SparseIndex.open(sys.argv[1])
    queries = np.random.default_rng(1).standard_normal((24, 16)).astype(np.float32)
    expected = index.search(queries, 10).ids  # with threads, before a worker is made
    for context in sys.argv[2].split(","):
        loader = DataLoader(
            Found(index, queries), batch_size=4, num_workers=2, multiprocessing_context=context
        )
        for _ in range(2 if context == "fork" else 1):
            found = torch.cat(list(loader)).numpy()
            assert found.tobytes() == expected.tobytes(), context
    print("same")

if __name__ == "__main__":
    main()
"""


def test_workers_of_a_data_loader_search_one_mapped_file(tmp_path):
    pytest.importorskip("torch", reason="needs the training extra")
    rng = np.random.default_rng(0)
    codes = sr.SparseCodes(
        (np.arange(4) + rng.integers(0, 32, (3000, 1))) % 32, rng.standard_normal((3000, 4)), dim=32
    )
    atoms = rng.standard_normal((32, 16))
    dictionary = sr.Dictionary(atoms / np.linalg.norm(atoms, axis=1, keepdims=True))
    path = tmp_path / "items.sridx"
    sr.SparseIndex.from_codes(codes, dictionary=dictionary, ids=np.arange(3000) * 2).save(path)
    # spawn starts anew and opens the file that the pickle names: the script must be a file
    script = tmp_path / "loader.py"
    script.write_text(LOADER)
    contexts = "fork,spawn" if hasattr(os, "fork") else "spawn"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(path), contexts],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.stdout == "same\n", done.stderr


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads through /proc")
def test_saving_leaves_no_thread_behind_and_none_keeps_the_process_alive(tmp_path):
    started = time.monotonic()
    done = run(
        f"""
        def threads():
            return len(os.listdir("/proc/self/task"))
        index = index.with_postings()
        index.search(codes[:2], 5)
        index.save({str(tmp_path / "a.sridx")!r})
        opened = sr.SparseIndex.open({str(tmp_path / "a.sridx")!r})
        opened.remove([1])
        opened.save({str(tmp_path / "b.sridx")!r})  # starts the thread that all saves use
        before = threads()
        for i in range(3):
            opened.remove([10 + i])
            opened.save({str(tmp_path / "a.sridx")!r})
        assert opened.stats()["postings"] is not None
        print(threads() - before)
        """,
        timeout=120,
    )
    # pools are kept for the next call; those that a save had for itself are gone
    assert done.stdout == "0\n", done.stderr
    assert done.returncode == 0
    assert time.monotonic() - started < 120
