"""What the page for people is told: atoms, neighbours and the curve, against plain numpy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

import sparse_retrieval as sr
from sparse_retrieval.explore.atlas import STRONGEST, Atlas
from sparse_retrieval.service import ServiceConfig, create_app

N, D, ATOMS, K = 400, 24, 60, 6
STATIC = Path(sr.__file__).parent / "explore" / "static"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """An index of clustered embeddings, and the embeddings, in one folder."""
    folder = tmp_path_factory.mktemp("explore")
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((25, D))
    x = centres[rng.integers(0, 25, N)] + 0.4 * rng.standard_normal((N, D))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    np.save(folder / "x.npy", x)
    index = sr.SparseIndex.from_embeddings(x, k=K, n_atoms=ATOMS, rounds=3, ids=np.arange(N) * 2)
    index.save(folder / "items.sridx")
    (folder / "names.txt").write_text("".join(f"<b>item</b> {i}\n" for i in range(2 * N)))
    return folder / "items.sridx", x


@pytest.fixture(scope="module")
def client(made: tuple[Path, np.ndarray]) -> Iterator[TestClient]:
    path = made[0]
    config = ServiceConfig(
        str(path),
        names=str(path.parent / "names.txt"),
        originals=str(path.parent / "x.npy"),
        explore=True,
        watch_s=0,
    )
    with TestClient(create_app(config)) as client:
        yield client


def test_an_atom_is_told_by_the_items_that_use_it_most(client, made):
    dense = sr.SparseIndex.open(made[0]).get(np.arange(N) * 2).to_dense()
    for latent in range(ATOMS):
        for positive, sign in ((True, 1), (False, -1)):
            told = client.get(f"/explore/api/atom?latent={latent}&positive={positive}").json()
            column = dense[:, latent] * sign
            best = [at for at in np.argsort(-column, kind="stable") if column[at] > 0][:STRONGEST]
            assert [one["id"] for one in told["items"]] == [2 * at for at in best]
            assert [one["value"] for one in told["items"]] == dense[best, latent].tolist()
            assert told["used_by"] == np.count_nonzero(dense[:, latent])


def test_an_item_is_told_by_its_atoms_and_neighbours(client, made):
    path, x = made
    index = sr.SparseIndex.open(path)
    told = client.get("/explore/api/item?id=20").json()
    code = index.get([20])
    assert told["name"] == "<b>item</b> 20"
    values = [atom["value"] for atom in told["atoms"]]
    assert np.isclose(np.sum(np.square(values)), 1)
    assert np.all(np.diff(np.abs(values)) <= 0)
    assert {atom["latent"] for atom in told["atoms"]} == set(code.latents.tolist())
    scores = x @ x[10]
    scores[10] = -np.inf
    exact = np.argsort(-scores, kind="stable")[:10]
    assert [one["id"] for one in told["by_original"]] == (2 * exact).tolist()
    found = index.search(x[10], 10, exclude=[20])
    assert [one["id"] for one in told["by_code"]] == found.ids.tolist()
    assert told["shared"] == len(set(found.ids.tolist()) & set((2 * exact).tolist()))
    other = index.get([told["by_code"][0]["id"]]).to_dense()[0]
    products = code.to_dense()[0] * other
    best = sorted(np.flatnonzero(products), key=lambda j: (-abs(products[j]), j))[:3]
    assert [one["latent"] for one in told["by_code"][0]["common"]] == best


def test_the_curve_is_the_recall_of_prefixes(client, made):
    told = client.get("/explore/api/curve").json()
    assert [point["setting"] for point in told["ours"]] == [
        "2 nonzeros",
        "4 nonzeros",
        "6 nonzeros",
    ]
    index = sr.SparseIndex.open(made[0])
    assert told["ours"][-1]["bytes"] == pytest.approx(index.bytes_per_item)
    recalls = [point["recall"] for point in told["ours"]]
    assert recalls == sorted(recalls)
    assert recalls[-1] > 0.5
    assert [point["bytes"] for point in told["pca"]] == [10, 18]
    assert (told["queries"], told["held_out"]) == (200, False)


def test_items_are_found_by_name_the_beginning_first(client):
    assert len(client.get("/explore/api/items").json()) == 30
    found = client.get("/explore/api/items", params={"text": "ITEM</b> 1"}).json()
    assert all("item</b> 1" in one["name"] for one in found)
    assert client.get("/explore/api/items", params={"text": "zebra"}).json() == []


@pytest.mark.parametrize(
    "path", ["item?id=1", "item?id=x", f"item?id={2**63}", f"atom?latent={ATOMS}"]
)
def test_what_is_not_there_is_a_404_that_says_so(client, path):
    response = client.get(f"/explore/api/{path}")
    assert response.status_code == 404
    assert response.json()["detail"]


def test_strings_without_dictionary_or_originals_can_be_browsed_too(tmp_path):
    codes = sr.SparseCodes([[0, 2], [1, 2], [1, 3]], [[0.5, -1.0], [2.0, 1.0], [1.0, 1.0]], dim=4)
    sr.SparseIndex.from_codes(codes, ids=["a", "b", "c"]).save(tmp_path / "s.sridx")
    config = ServiceConfig(str(tmp_path / "s.sridx"), explore=True, watch_s=0)
    with TestClient(create_app(config)) as client:
        told = client.get("/explore/api/item?id=b").json()
        assert [one["id"] for one in told["by_code"]] == ["c", "a"]
        assert told["by_original"] is None
        assert client.get("/explore/api/curve").json() is None
        assert client.get("/explore/api/item?id=z").status_code == 404
        assert client.get("/explore/api/summary").json()["first"] == {"id": "a", "name": "a"}


def test_originals_that_do_not_fit_are_refused_at_the_start(made):
    index = sr.SparseIndex.open(made[0])
    with pytest.raises(ValueError, match=r"originals have 3 rows for 400 items"):
        Atlas(index, originals=np.zeros((3, D)))
    with pytest.raises(ValueError, match=r"queries have shape \(2, 3\)"):
        Atlas(index, queries=np.zeros((2, 3)))


def test_the_page_needs_nothing_from_elsewhere_and_sets_names_as_text(client):
    page = client.get("/")
    assert "default-src 'self'" in page.headers["content-security-policy"]
    linked = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert set(linked) == {"explore/style.css", "explore/page.js", "explore/plot.js", "data:,"}
    for name in linked[:-1]:
        if name != "data:,":
            assert client.get(f"/{name}").status_code == 200
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8")
        addresses = set(re.findall(r"https?://[^\s\"'`]+", text))
        assert addresses <= {"http://www.w3.org/2000/svg"}, file.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)


def test_without_explore_there_is_no_page(made):
    with TestClient(create_app(ServiceConfig(str(made[0]), watch_s=0))) as client:
        assert client.get("/").status_code == 404
        assert client.get("/explore/api/summary").status_code == 404
