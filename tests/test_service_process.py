"""The service as a process: it stops without dropping requests, and outlives a dead worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest

import sparse_retrieval as sr
from sparse_retrieval.service import ServiceConfig

# a search that takes a second, so that a signal meets it under way
SLOW = """
import sys, time
import sparse_retrieval.service.batching as batching
from sparse_retrieval.cli import main
plain = batching.Batcher._search
def slowly(self, version, search):
    time.sleep(1)
    return plain(self, version, search)
batching.Batcher._search = slowly
sys.exit(main())
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("service") / "items.sridx"
    codes = sr.SparseCodes([[0, 2], [1, 2]], [[0.5, -1.0], [2.0, 1.0]], dim=4)
    sr.SparseIndex.from_codes(codes, dictionary=sr.Dictionary(np.eye(4))).save(path)
    return path


@contextmanager
def serving(*arguments: str, script: str = "") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service of its own process, and its address."""
    begin = ["-c", script] if script else ["-m", "sparse_retrieval.cli"]
    command = [sys.executable, *begin, "serve", *arguments, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert " at http://" in line, process.communicate(timeout=10)[1]
        yield process, line.rpartition(" at ")[2].strip()
    finally:
        process.kill()
        process.communicate(timeout=10)


BODY = {"queries": [[1.0, 0.0, 0.0, 0.0]], "k": 2}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_service_finishes_what_it_has_begun_and_ends_well(path, number):
    with serving(str(path), script=SLOW) as (process, url):
        statuses: list[int] = []
        asking = [
            threading.Thread(
                target=lambda: statuses.append(
                    httpx.post(f"{url}/search", json=BODY, timeout=30).status_code
                )
            )
            for _ in range(4)
        ]
        for thread in asking:
            thread.start()
        end = time.monotonic() + 20
        while "requests_in_flight 4.0" not in httpx.get(f"{url}/metrics").text:
            assert time.monotonic() < end
        process.send_signal(number)
        for thread in asking:
            thread.join(30)
        assert process.wait(20) == 0, process.communicate()[1]
        assert statuses == [200] * 4


def test_a_killed_worker_is_replaced_and_the_others_answer(path):
    with serving(str(path), "--workers", "2") as (process, url):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        end = time.monotonic() + 30
        while True:  # both are up: each has written its gauge
            assert time.monotonic() < end, "the workers did not start"
            try:
                first = httpx.post(f"{url}/search", json=BODY, timeout=10)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        before = children.read_text().split()
        workers = [pid for pid in before if "spawn_main" in _command(pid)]
        assert len(workers) == 2
        os.kill(int(workers[0]), signal.SIGKILL)
        wrong = 0
        while True:
            assert time.monotonic() < end, "no new worker came"
            try:  # a request that the dead one had taken is lost; a new connection is not
                response = httpx.post(f"{url}/search", json=BODY, timeout=10)
                wrong += response.json() != first.json()
            except httpx.TransportError:
                time.sleep(0.01)
            now = [pid for pid in children.read_text().split() if "spawn_main" in _command(pid)]
            if len(now) == 2 and workers[0] not in now:
                break
        assert wrong == 0
        metrics = httpx.get(f"{url}/metrics").text
        assert 'requests_total{route="/search",status="200"}' in metrics
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, process.communicate()[1]


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def test_what_cannot_be_served_is_one_line_and_exit_code_1(path, tmp_path):
    run = [sys.executable, "-m", "sparse_retrieval.cli", "serve"]
    for workers in ("1", "2"):
        done = subprocess.run(
            [*run, str(tmp_path / "none.sridx"), "--workers", workers],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "none.sridx: No such file" in done.stderr
    with serving(str(path)) as (_, url):
        done = subprocess.run(
            [*run, str(path), "--port", url.rpartition(":")[2]],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        assert "is the port taken?" in done.stderr


TOKENS = ["0123456789abcdef-first", "Zm9vYmFyYmF6cXV4Cg=="]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_with_tokens_only_who_brings_one_may_ask(path, tmp_path, workers):
    (tmp_path / "tokens").write_text(f"{TOKENS[0]}\n\n  {TOKENS[1]}  \n", encoding="utf-8")
    options = ("--token-file", str(tmp_path / "tokens"), "--workers", workers)
    with serving(str(path), *options) as (process, url):

        def ask(method: str, route: str, sent: str | None, **options: object) -> httpx.Response:
            headers = {} if sent is None else {"Authorization": sent}
            end = time.monotonic() + 30
            while True:  # of several workers none may have begun
                try:
                    return httpx.request(method, url + route, headers=headers, **options)
                except httpx.TransportError:
                    assert time.monotonic() < end
                    time.sleep(0.1)

        closed = [
            ("POST", "/search"),
            ("POST", "/search.npy"),
            ("POST", "/reload"),
            ("GET", "/info"),
            ("GET", "/metrics"),
            ("GET", "/openapi.json"),
            ("GET", "/nothing"),
        ]
        wrong = [
            None,
            "",
            "Bearer",
            f"Basic {TOKENS[0]}",
            TOKENS[0],
            f"Bearer {TOKENS[0]}x",
            f"Bearer {TOKENS[0][:-1]}",
            f"Bearer {TOKENS[0]} {TOKENS[1]}",
            f"Bearer {TOKENS[0].upper()}",
        ]
        for method, route in closed:
            refused = ask(method, route, None)
            assert refused.status_code == 401, route
            assert refused.headers["WWW-Authenticate"] == 'Bearer realm="sparse_retrieval"'
            assert refused.headers["Content-Type"] == "application/problem+json"
            assert "needs a token" in refused.json()["detail"]
        for sent in wrong:
            assert ask("POST", "/search", sent, json=BODY).status_code == 401, sent
        told = ask("POST", "/search", f"Bearer {TOKENS[0]}x", json=BODY)
        assert told.headers["WWW-Authenticate"].endswith(', error="invalid_token"')
        # before the body is read, however long it is said to be
        assert ask("POST", "/search", None, content=b"x" * 5_000_000).status_code == 401
        assert ask("GET", "/health", None).json()["status"] == "ok"
        assert ask("GET", "/ready", None).status_code == 204
        for sent in (f"Bearer {TOKENS[0]}", f"bearer {TOKENS[1]}", f"BEARER  {TOKENS[1]}"):
            found = ask("POST", "/search", sent, json=BODY)
            assert found.status_code == 200
            assert found.json()["results"][0]["ids"] == [0, 1]
        metrics = ask("GET", "/metrics", f"Bearer {TOKENS[1]}").text
        refusals = len(closed) + len(wrong) + 2
        assert f'sparse_retrieval_refused_total{{reason="no_token"}} {refusals}.0' in metrics
        assert 'requests_total{route="/search",status="401"}' in metrics
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, process.communicate()[1]


def test_the_environment_may_name_the_tokens_and_a_bad_file_of_them_is_told(
    path, tmp_path, monkeypatch
):
    tokens = tmp_path / "tokens"
    monkeypatch.setenv("SPARSE_RETRIEVAL_TOKEN_FILE", str(tokens))
    run = [sys.executable, "-m", "sparse_retrieval.cli", "serve", str(path), "--port", "0"]
    secret = "much too short"
    for text, workers, code, says in (
        (None, "1", 1, "no such file"),
        ("\n", "1", 2, "holds no token"),
        (f"{TOKENS[0]}\n{secret}\n", "2", 2, "line 2 is no token; expected at least 16"),
    ):
        if text is not None:
            tokens.write_text(text, encoding="utf-8")
        done = subprocess.run(
            [*run, "--workers", workers], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == code
        assert done.stderr.count("\n") == 1
        assert says in done.stderr
        assert secret not in done.stderr
    tokens.write_text(TOKENS[0], encoding="utf-8")
    with serving(str(path)) as (_, url):
        assert httpx.get(f"{url}/info").status_code == 401
        sent = {"Authorization": f"Bearer {TOKENS[0]}"}
        assert httpx.get(f"{url}/info", headers=sent).status_code == 200
    with pytest.raises(ValueError, match="it sends no token"):
        ServiceConfig(str(path), token_file=str(tokens), explore=True)


@pytest.mark.parametrize("command", ["serve", "explore"])
def test_without_fastapi_it_is_told_which_extra_to_install(path, run_python, command):
    script = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'fastapi':\n"
        "            raise ModuleNotFoundError('No module named fastapi', name='fastapi')\n"
        "sys.meta_path.insert(0, Block())\n"
        "from sparse_retrieval.cli import main\n"
        f"sys.exit(main([{command!r}, {str(path)!r}]))\n"
    )
    done = run_python(script)
    assert done.returncode == 1
    assert f"{command} needs fastapi, which is not installed" in done.stderr
    assert "pip install 'sparse_retrieval[serve]'" in done.stderr
