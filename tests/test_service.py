"""The HTTP service: answers equal to the index's own, what it refuses, and a file that changes."""

from __future__ import annotations

import io
import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient

import sparse_retrieval as sr
from sparse_retrieval.service import ServiceConfig, create_app

D, ATOMS, N = 12, 40, 300


def make(path: Path, *, seed: int = 0, n: int = N, d: int = D, strings: bool = False) -> None:
    rng = np.random.default_rng(seed)
    atoms = rng.standard_normal((ATOMS, d))
    support = np.argsort(rng.random((n, ATOMS)), axis=1)[:, :5]
    codes = sr.SparseCodes(support, rng.standard_normal((n, 5)), dim=ATOMS)
    sr.SparseIndex.from_codes(
        codes,
        dictionary=sr.Dictionary(atoms / np.linalg.norm(atoms, axis=1, keepdims=True)),
        metric="cosine",
        value_bits=4,
        modes=("sparse", "dense", "reconstructed"),
        ids=[f"sku {i}" for i in range(n)] if strings else np.arange(n) + 1000,
        approximate=True,
    ).save(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    make(tmp_path / "items.sridx")
    return tmp_path / "items.sridx"


@pytest.fixture
def client(path: Path) -> Iterator[TestClient]:
    config = ServiceConfig(str(path), watch_s=0, max_batch=50, max_k=200, max_body_bytes=100_000)
    with TestClient(create_app(config)) as client:
        yield client


QUERIES = np.random.default_rng(9).standard_normal((7, D)).astype(np.float32)


def answers(response: httpx.Response) -> list[tuple[list[object], list[float]]]:
    assert response.status_code == 200, response.text
    return [(one["ids"], one["scores"]) for one in response.json()["results"]]


def expected(found: sr.SearchResult) -> list[tuple[list[object], list[float]]]:
    """Without the padding; json prints the shortest decimal of a double, so nothing is lost."""
    rows = zip(found.ids.tolist(), found.scores.tolist(), strict=True)
    return [
        (
            [i for i, s in zip(ids, scores, strict=True) if s > -np.inf],
            [s for s in scores if s > -np.inf],
        )
        for ids, scores in rows
    ]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "dense"},
        {"mode": "reconstructed"},
        {"mode": "sparse", "k_row": 2},
        {"filter": [1003, 1008, 1200]},
        {"filter": []},
        {"exclude": [[1000 + i, 1100 + i] for i in range(7)]},
        {"approximate": True},
        {"approximate": {"clusters": 3, "rerank": 40}},
    ],
    ids=str,
)
def test_a_search_gives_what_the_index_gives(client, path, options):
    index = sr.SparseIndex.open(path)
    local = dict(options)
    if isinstance(local.get("approximate"), dict):
        local["approximate"] = sr.Approximate(**local["approximate"])
    found = index.search(QUERIES, 20, **local)
    response = client.post("/search", json={"queries": QUERIES.tolist(), "k": 20, **options})
    assert answers(response) == expected(found)


def test_codes_are_searched_as_codes(client, path):
    index = sr.SparseIndex.open(path)
    codes = index.get([1005, 1006])
    bounds = codes.indptr.astype(int)
    rows = [slice(a, b) for a, b in itertools.pairwise(bounds)]
    body = {
        "codes": {
            "latents": [codes.latents[row].tolist() for row in rows],
            "values": [codes.values[row].tolist() for row in rows],
        },
        "k": 4,
        "mode": "sparse",
    }
    assert answers(client.post("/search", json=body)) == expected(
        index.search(codes, 4, mode="sparse")
    )


def test_npy_in_and_out_gives_the_same(client, path):
    body = io.BytesIO()
    np.save(body, QUERIES)
    response = client.post("/search.npy?k=9", content=body.getvalue())
    assert response.status_code == 200, response.text
    records = np.load(io.BytesIO(response.content))
    found = sr.SparseIndex.open(path).search(QUERIES, 9)
    np.testing.assert_array_equal(records["id"], found.ids)
    np.testing.assert_array_equal(records["score"], found.scores)


def test_npy_refuses_parameters_that_it_would_ignore(client):
    body = io.BytesIO()
    np.save(body, QUERIES)
    refused = client.post("/search.npy?k=3&filter=5&exclude=1", content=body.getvalue())
    assert refused.status_code == 422
    assert "has exclude, filter; expected k, mode" in refused.json()["detail"]


def test_ids_that_are_strings_and_names_come_back(tmp_path):
    make(tmp_path / "s.sridx", strings=True)
    with TestClient(create_app(ServiceConfig(str(tmp_path / "s.sridx"), watch_s=0))) as client:
        found = sr.SparseIndex.open(tmp_path / "s.sridx").search(QUERIES[:1], 3, filter=["sku 7"])
        body = {"queries": QUERIES[:1].tolist(), "k": 3, "filter": ["sku 7"]}
        assert answers(client.post("/search", json=body)) == expected(found)
        npy = io.BytesIO()
        np.save(npy, QUERIES)
        refused = client.post("/search.npy", content=npy.getvalue())
        assert refused.status_code == 422
        assert "ask with JSON" in refused.json()["detail"]
    make(tmp_path / "n.sridx", n=2)
    (tmp_path / "names.txt").write_text("".join(f"item {i}\n" for i in range(1001)))
    config = ServiceConfig(str(tmp_path / "n.sridx"), names=str(tmp_path / "names.txt"), watch_s=0)
    with TestClient(create_app(config)) as client:
        (one,) = client.post("/search", json={"queries": [[1.0] * D]}).json()["results"]
        assert dict(zip(one["ids"], one["names"], strict=True)) == {1000: "item 1000", 1001: None}


BAD = {
    "wrong width": ({"queries": [[1.0, 2.0]]}, "queries have 2 columns, this index holds"),
    "ragged": ({"queries": [[1.0] * D, [1.0]]}, "one width for all"),
    "none": ({"queries": []}, "expected at least one query"),
    "neither": ({"k": 3}, "either `queries` or `codes`"),
    "too many": ({"queries": [[0.0] * D] * 51}, "at most 50 at once"),
    "k too large": ({"queries": [[0.0] * D], "k": 201}, "returns at most 200"),
    "k zero": ({"queries": [[0.0] * D], "k": 0}, "k: Input should be greater than"),
    "unknown id": ({"queries": [[0.0] * D], "filter": [5]}, "5"),
    "unknown name": ({"queries": [[0.0] * D], "filters": [1000]}, "filters: Extra inputs"),
    "id beyond 64 bits": ({"queries": [[0.0] * D], "filter": [2**63]}, "filter"),
    "exclude of another length": ({"queries": [[0.0] * D] * 3, "exclude": [[1000]]}, "exclude"),
    "unequal codes": ({"codes": {"latents": [[1, 2]], "values": [[1.0]]}}, "2 latents and 1 val"),
    "a latent twice": ({"codes": {"latents": [[1, 1]], "values": [[1, 1]]}}, "latent 1"),
    "a latent too high": ({"codes": {"latents": [[ATOMS]], "values": [[1]]}}, str(ATOMS)),
}


@pytest.mark.parametrize(("body", "says"), BAD.values(), ids=BAD)
def test_a_bad_request_is_told_what_is_wrong_with_it(client, body, says):
    response = client.post("/search", json=body)
    assert response.status_code == 422
    assert response.headers["content-type"] == "application/problem+json"
    assert says in response.json()["detail"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "no .npy file"),
        (b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4'", "no .npy file"),
        (b"\x93NUMPY\x09\x00", "no .npy file"),
        (None, "expected float16"),
        (b"huge", "takes"),
    ],
)
def test_bad_npy_bytes_are_refused_before_anything_is_allocated(client, body, says):
    file = io.BytesIO()
    if body is None:
        np.save(file, np.zeros((2, D), dtype=np.int64))
    elif body == b"huge":
        header = {"descr": "<f8", "fortran_order": False, "shape": (2**40, D)}
        np.lib.format.write_array_header_1_0(file, header)
    else:
        file.write(body)
    response = client.post("/search.npy", content=file.getvalue())
    assert response.status_code == 422
    assert says in response.json()["detail"]


def test_nan_is_refused_in_both_forms(client):
    response = client.post("/search", content=b'{"queries": [[NaN]]}')
    assert response.status_code == 422
    file = io.BytesIO()
    np.save(file, np.full((2, D), np.nan))
    response = client.post("/search.npy", content=file.getvalue())
    assert (response.status_code, response.json()["detail"]) == (422, "queries[0] holds NaN or inf")


def test_a_long_body_is_refused_with_and_without_a_length(client):
    def chunks():
        for _ in range(200):
            yield b" " * 1000

    for body in (b" " * 100_001, chunks()):
        response = client.post("/search", content=body)
        assert response.status_code == 413
        assert "100,000 bytes" in response.json()["detail"]
    assert 'refused_total{reason="too_long"} 2.0' in client.get("/metrics").text


def test_health_info_and_metrics(client):
    assert client.get("/health").json() == {
        "status": "ok",
        "version": sr.__version__,
        "items": N,
        "generation": 1,
        "error": None,
    }
    assert client.get("/ready").status_code == 204
    info = client.get("/info").json()
    assert info["index"]["items"] == N
    assert info["limits"]["max_k"] == 200
    client.post("/search", json={"queries": QUERIES.tolist()})
    client.post("/search", json={})
    client.get("/no/such/page")
    text = client.get("/metrics").text
    assert 'requests_total{route="/search",status="200"} 1.0' in text
    assert 'requests_total{route="/search",status="422"} 1.0' in text
    assert 'requests_total{route="other",status="404"} 1.0' in text
    assert "sparse_retrieval_search_queries_sum 7.0" in text
    assert f"sparse_retrieval_index_items {N}.0" in text


class Slow:
    """Holds back the searches of an application until it is let go."""

    def __init__(self, app, monkeypatch) -> None:
        self.go = threading.Event()
        self.sizes: list[int] = []
        batcher = app.state.service.batcher
        plain = batcher._search

        def slowly(version, search):
            self.sizes.append(len(search))
            self.go.wait(20)
            return plain(version, search)

        monkeypatch.setattr(batcher, "_search", slowly)


def until(true, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.01)


def in_threads(calls) -> list[object]:
    """Begin calls, one in a thread each; the list fills with what they return."""
    results: list[object] = [None] * len(calls)

    def run(at: int) -> None:
        results[at] = calls[at]()

    threads = [threading.Thread(target=run, args=(at,), daemon=True) for at in range(len(calls))]
    for thread in threads:
        thread.start()
    results.append(threads)
    return results


def joined(results: list[object]) -> list[object]:
    for thread in results.pop():
        thread.join(30)
    return results


def test_searches_that_wait_are_joined_and_answer_as_if_alone(path, monkeypatch):
    app = create_app(ServiceConfig(str(path), watch_s=0, searches=1))
    slow = Slow(app, monkeypatch)
    index = sr.SparseIndex.open(path)
    with TestClient(app) as client:

        def ask(body):
            return lambda: client.post("/search", json=body)

        first = in_threads([ask({"queries": QUERIES[:1].tolist()})])
        until(lambda: slow.sizes == [1])
        bodies = [{"queries": QUERIES[i : i + 2].tolist(), "k": 3 + i} for i in range(5)]
        bodies.append({"queries": [[0.0]], "k": 2})  # too narrow: it alone is refused
        bodies.append({"queries": QUERIES[:1].tolist(), "filter": [1001]})  # never joined
        rest = in_threads([ask(body) for body in bodies])
        until(lambda: app.state.service.metrics.in_flight._value.get() == 1 + len(bodies))
        until(lambda: len(app.state.service.batcher._waiting) == len(bodies))
        slow.go.set()
        (one,) = joined(first)
        *good, narrow, filtered = joined(rest)
    assert sorted(slow.sizes) == [1, 1, 1, 10]
    assert answers(one) == expected(index.search(QUERIES[:1], 10))
    for i, response in enumerate(good):
        assert answers(response) == expected(index.search(QUERIES[i : i + 2], 3 + i))
    assert narrow.status_code == 422
    assert answers(filtered) == expected(index.search(QUERIES[:1], 10, filter=[1001]))


def test_one_request_too_many_gets_a_503_at_once_and_health_still_answers(path, monkeypatch):
    app = create_app(ServiceConfig(str(path), watch_s=0, max_concurrent=2))
    slow = Slow(app, monkeypatch)
    body = {"queries": QUERIES.tolist()}
    with TestClient(app) as client:
        running = in_threads([lambda: client.post("/search", json=body)] * 2)
        until(lambda: app.state.service.metrics.in_flight._value.get() == 2)
        refused = client.post("/search", json=body)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "--max-concurrent" in refused.json()["detail"]
        assert client.get("/health").status_code == 200
        slow.go.set()
        assert [r.status_code for r in joined(running)] == [200, 200]
        assert client.post("/search", json=body).status_code == 200


def test_a_search_that_waited_too_long_gets_a_503(path, monkeypatch):
    app = create_app(ServiceConfig(str(path), watch_s=0, searches=1, max_wait_s=0.05))
    slow = Slow(app, monkeypatch)
    body = {"queries": QUERIES.tolist()}
    with TestClient(app) as client:
        first = in_threads([lambda: client.post("/search", json=body)])
        until(lambda: slow.sizes == [7])
        second = in_threads([lambda: client.post("/search", json=body)])
        until(lambda: len(app.state.service.batcher._waiting) == 1)
        time.sleep(0.1)
        slow.go.set()
        assert [r.status_code for r in joined(first)] == [200]
        (late,) = joined(second)
        assert late.status_code == 503
        assert "waited for 0.05 s" in late.json()["detail"]


def test_a_replaced_file_takes_over_while_requests_run(path, monkeypatch):
    old = sr.SparseIndex.open(path).search(QUERIES, 5)
    app = create_app(ServiceConfig(str(path), watch_s=0.05, searches=2))
    slow = Slow(app, monkeypatch)
    with TestClient(app) as client:
        body = {"queries": QUERIES.tolist(), "k": 5}
        running = in_threads([lambda: client.post("/search", json=body)])
        until(lambda: slow.sizes == [7])
        make(path, seed=1, n=N + 5)  # another dictionary too
        until(lambda: client.get("/health").json()["generation"] == 2)
        slow.go.set()
        (response,) = joined(running)
        assert response.json()["generation"] == 1
        assert answers(response) == expected(old), "it had begun with the old file"
        after = client.post("/search", json=body)
        assert after.json()["generation"] == 2
        assert answers(after) == expected(sr.SparseIndex.open(path).search(QUERIES, 5))


def test_a_commit_to_the_journal_is_seen(client, path):
    index = sr.SparseIndex.open(path)
    index.remove([1000, 1001])
    index.commit()
    assert client.post("/reload").json() == {"reloaded": True, "generation": 2, "items": N - 2}
    assert client.post("/reload").json() == {"reloaded": False, "generation": 2, "items": N - 2}


def test_a_damaged_file_leaves_the_old_version_and_is_told(client, path):
    before = answers(client.post("/search", json={"queries": QUERIES.tolist()}))
    whole = path.read_bytes()
    broken = path.with_name("broken")
    broken.write_bytes(b"no index at all")
    os.replace(broken, path)  # noqa: PTH105, the old bytes stay mapped
    refused = client.post("/reload")
    assert refused.status_code == 409
    assert "kept the old version" in refused.json()["detail"]
    health = client.get("/health").json()
    assert (health["status"], health["items"]) == ("stale", N)
    assert "IndexFormatError" in health["error"]
    assert answers(client.post("/search", json={"queries": QUERIES.tolist()})) == before
    broken.write_bytes(whole)
    os.replace(broken, path)  # noqa: PTH105
    assert client.post("/reload").json()["reloaded"] is True
    assert client.get("/health").json()["status"] == "ok"
    assert 'reloads_total{outcome="failed"} 1.0' in client.get("/metrics").text


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"max_k": 0}, "max_k is 0; expected at least 1"),
        ({"port": 65_536}, "port is 65536"),
        ({"watch_s": float("nan")}, "watch_s is nan"),
        ({"workers": 1.5}, "workers is 1.5; expected an integer"),
    ],
)
def test_settings_are_checked_once(setting, says):
    with pytest.raises((TypeError, ValueError), match=says):
        ServiceConfig("items.sridx", **setting)


def test_settings_survive_the_way_to_a_worker():
    config = ServiceConfig("items.sridx", port=1, max_wait_s=0.5, names="n.txt")
    assert ServiceConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="unknown settings: prt"):
        ServiceConfig.from_json('{"index": "a", "prt": 1}')
