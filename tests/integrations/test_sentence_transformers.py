"""SparseEncoder made of a text model and one of ours, with the library itself.

The text model is a static one of random vectors, made here: small, and of the library's own
parts. The pipeline on a real MiniLM is examples/text_search.py, which has its own test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sentence_transformers.sparse_encoder.losses import CSRLoss, SparseMultipleNegativesRankingLoss
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

import sparse_retrieval as sr
from hub_server import Hub, environment, hub_server
from sparse_retrieval.integrations.sentence_transformers import (
    CompresSAEModule,
    PursuitModule,
    codes_of,
    sparse_encoder,
)

D, S, K = 24, 96, 8
WORDS = [f"w{i}" for i in range(300)]
TEXTS = [" ".join(f"w{(i * 7 + j * j) % 300}" for j in range(4)) for i in range(400)]


@pytest.fixture(scope="module")
def text_model() -> SentenceTransformer:
    vocabulary = {"[UNK]": 0, **{word: i + 1 for i, word in enumerate(WORDS)}}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    weights = np.random.default_rng(0).standard_normal((301, D)).astype(np.float32)
    return SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu"
    )


@pytest.fixture(scope="module")
def x(text_model: SentenceTransformer) -> np.ndarray:
    return text_model.encode(TEXTS, show_progress_bar=False)


@pytest.fixture(scope="module")
def dictionary(x: np.ndarray) -> sr.Dictionary:
    return sr.Dictionary.fit(x, n_atoms=S, k=K, rounds=3)


@pytest.fixture
def model() -> sr.CompresSAE:
    return sr.CompresSAE(D, S, k=K, seed=0)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")
def test_a_sparse_encoder_gives_the_codes_of_the_model(
    text_model: SentenceTransformer, model: sr.CompresSAE, x: np.ndarray
) -> None:
    encoder = sparse_encoder(text_model, model)
    codes = codes_of(encoder.encode_document(TEXTS[:50]))
    expected = model.sparse_codes(x[:50])
    assert np.array_equal(codes.latents, expected.latents)
    # the same product over other batches: the last bits may differ
    assert np.allclose(codes.values, expected.values, atol=1e-6)
    assert encoder.get_embedding_dimension() == S
    narrow = encoder.encode(TEXTS[:5], max_active_dims=3)
    assert codes_of(narrow).nnz == 15
    assert codes_of(encoder.encode_query(TEXTS[:50])).nnz == codes.nnz
    assert encoder.sparsity(encoder.encode(TEXTS[:5]))["active_dims"] == K


def test_a_dictionary_gives_codes_by_pursuit(
    text_model: SentenceTransformer, dictionary: sr.Dictionary, x: np.ndarray
) -> None:
    encoder = sparse_encoder(text_model, dictionary, k=K)
    assert codes_of(encoder.encode(TEXTS[:50])) == dictionary.encode(x[:50], k=K)
    assert codes_of(encoder.encode(TEXTS[:5], max_active_dims=3)).nnz == 15


@pytest.mark.parametrize("kind", ["model", "dictionary"])
@pytest.mark.parametrize("queries", ["sparse", "dense"])
def test_a_saved_encoder_comes_back_with_the_same_answers(
    text_model: SentenceTransformer,
    model: sr.CompresSAE,
    dictionary: sr.Dictionary,
    tmp_path: Path,
    kind: str,
    queries: Any,
) -> None:
    coder = model if kind == "model" else dictionary
    encoder = sparse_encoder(text_model, coder, k=5, queries=queries)
    encoder.save_pretrained(str(tmp_path))
    loaded = SparseEncoder(str(tmp_path), trust_remote_code=True, device="cpu")
    assert type(loaded[-1]) is (CompresSAEModule if kind == "model" else PursuitModule)
    for call in ("encode_document", "encode_query"):
        mine = getattr(encoder, call)(TEXTS[:20]).to_dense()
        assert torch.equal(getattr(loaded, call)(TEXTS[:20]).to_dense(), mine)
    (folder,) = tmp_path.glob("1_*")
    assert np.array_equal(
        sr.Dictionary.from_pretrained(folder).atoms,
        coder.dictionary().atoms if isinstance(coder, sr.CompresSAE) else coder.atoms,
    )
    if kind == "model":
        assert sr.CompresSAE.from_pretrained(folder).config == model.config


def test_dense_queries_score_as_the_index_does(
    text_model: SentenceTransformer, dictionary: sr.Dictionary, x: np.ndarray
) -> None:
    encoder = sparse_encoder(text_model, dictionary, k=K, queries="dense")
    documents = encoder.encode_document(TEXTS)
    queries = encoder.encode_query(TEXTS[:10])
    scores = encoder.similarity(queries, documents).numpy()
    index = sr.SparseIndex.from_codes(
        codes_of(documents), dictionary=dictionary, metric="cosine", unit_items=True
    )
    expected, ids = index.search(x[:10], 5)
    assert np.allclose(np.take_along_axis(scores, ids, axis=1), expected, atol=1e-5)
    assert np.allclose(-np.sort(-scores, axis=1)[:, :5], expected, atol=1e-5)
    # and better than codes with codes, on this data and in general
    exact = x[:10] @ (x / np.linalg.norm(x, axis=1, keepdims=True)).T
    true = np.argsort(-exact, axis=1)[:, :10]
    codes = encoder.encode_document(TEXTS[:10])
    sparse = encoder.similarity(codes, documents).numpy()
    shares = [
        np.mean(
            [len(np.intersect1d(a, b)) for a, b in zip(np.argsort(-s)[:, :10], true, strict=False)]
        )
        for s in (scores, sparse)
    ]
    assert shares[0] > shares[1]


def test_losses_of_the_library_train_through_the_model(
    text_model: SentenceTransformer, model: sr.CompresSAE
) -> None:
    encoder = sparse_encoder(text_model, model)
    encoder.train()
    loss_of = CSRLoss(encoder, SparseMultipleNegativesRankingLoss(encoder))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        features = [encoder.preprocess(TEXTS[:16]), encoder.preprocess(TEXTS[1:17])]
        parts = loss_of(features, torch.empty(0))
        # a text and its neighbour are not alike, so it is the reconstruction that must fall
        losses.append({name: float(value.detach()) for name, value in parts.items()})
        optimizer.zero_grad()
        sum(parts.values()).backward()
        assert all(one.grad is not None and one.grad.any() for one in model.parameters())
        optimizer.step()
        model.normalize_decoder()
    for name in ("reconstruction_loss_k", "reconstruction_loss_4k"):
        assert losses[-1][name] < 0.7 * losses[0][name]


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda t, m: sparse_encoder(t, "model"), TypeError, "expected CompresSAE"),
        (lambda t, m: PursuitModule(m), TypeError, "expected Dictionary"),
        (lambda t, m: sparse_encoder(t, m, k=S + 1), ValueError, f"k is {S + 1}"),
        (lambda t, m: sparse_encoder(t, m, queries="x"), ValueError, "queries is 'x'"),
        (lambda t, m: sparse_encoder(t, sr.CompresSAE(5, 9, k=2)), ValueError, "24 columns.*5"),
        (
            lambda t, m: PursuitModule(sr.Dictionary(np.eye(3), mean=np.ones(3))),
            ValueError,
            "has a mean",
        ),
    ],
)
def test_bad_parts_are_refused(
    text_model: SentenceTransformer,
    model: sr.CompresSAE,
    call: Any,
    error: type[Exception],
    match: str,
) -> None:
    with pytest.raises(error, match=match):
        call(text_model, model)


def test_pickled_weights_are_refused(model: sr.CompresSAE, tmp_path: Path) -> None:
    for module in (CompresSAEModule(model), PursuitModule(sr.Dictionary(np.eye(3)), k=1)):
        with pytest.raises(ValueError, match="safetensors only"):
            module.save(str(tmp_path), safe_serialization=False)


PUSH_AND_PULL = """
import sys
import torch
from sentence_transformers import SparseEncoder
encoder = SparseEncoder(sys.argv[1], trust_remote_code=True, device="cpu")
name = "owner/" + sys.argv[2]
print(encoder.push_to_hub(name, token="hf_x", commit_message="first"))
back = SparseEncoder(name, trust_remote_code=True, device="cpu", token="hf_x")
print(type(back[-1]).__name__, back[-1].k, back[-1].queries, back.get_embedding_dimension())
texts = ["w1 w2 w3", "w7 w9"]
for encode in ("encode_document", "encode_query"):
    both = [getattr(e, encode)(texts, convert_to_sparse_tensor=False) for e in (encoder, back)]
    print(torch.equal(*both))
"""


@pytest.mark.parametrize("what", ["CompresSAE", "Dictionary"])
def test_the_librarys_push_and_pull_give_the_same_codes(
    what: str,
    text_model: SentenceTransformer,
    model: sr.CompresSAE,
    dictionary: sr.Dictionary,
    tmp_path: Path,
    run_python: Any,
) -> None:
    coder = model if what == "CompresSAE" else dictionary
    sparse_encoder(text_model, coder, k=5, queries="dense").save_pretrained(str(tmp_path / "made"))
    with hub_server() as endpoint:
        env = environment(endpoint, tmp_path)
        done = run_python(PUSH_AND_PULL, str(tmp_path / "made"), what, env=env, timeout=300)
        assert done.returncode == 0, done.stderr
        address, module, *equal = done.stdout.splitlines()
        assert address == f"{endpoint}/owner/{what}/commit/{'1' * 40}"
        kind = "CompresSAEModule" if what == "CompresSAE" else "PursuitModule"
        assert module == f"{kind} 5 dense {S}"
        assert equal == ["True", "True"]
        assert Hub.commits == [(f"owner/{what}", "first")]
        files = Hub.repositories[f"owner/{what}"]
        assert {"README.md", "modules.json"} <= set(files)
        weights = "model" if what == "CompresSAE" else "dictionary"
        assert any(path.endswith(f"{kind}/{weights}.safetensors") for path in files), sorted(files)
