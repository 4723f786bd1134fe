"""The OpenAPI schema against the service: requests made up from it, and answers checked by it.

schemathesis makes the requests, those that fit the schema and those that break it, and checks
each answer: no error of the server's, a status and a content type that the schema names, a body
as it says, and nothing accepted that the schema forbids. Left out is one check, that whatever
fits the schema is accepted: queries must fit the index too, whose width no schema can say.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi import checks as openapi_checks

import sparse_retrieval as sr
from sparse_retrieval.service import ServiceConfig, create_app

load_all_checks()
OPERATIONS = [
    ("GET", "/health"),
    ("GET", "/info"),
    ("GET", "/metrics"),
    ("GET", "/ready"),
    ("POST", "/reload"),
    ("POST", "/search"),
    ("POST", "/search.npy"),
]


TOKEN = "0123456789abcdef"
#: Sent with every request; one of the checks leaves it out, to see that it is needed.
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module", params=[False, True], ids=["open", "with a token"])
def schema(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest):
    folder: Path = tmp_path_factory.mktemp("schema")
    path, tokens = folder / "items.sridx", folder / "tokens"
    tokens.write_text(TOKEN, encoding="utf-8")
    codes = sr.SparseCodes([[0, 2], [1, 2]], [[0.5, -1.0], [2.0, 1.0]], dim=4)
    sr.SparseIndex.from_codes(codes, dictionary=sr.Dictionary(np.eye(4))).save(path)
    config = ServiceConfig(
        str(path),
        watch_s=0,
        max_body_bytes=200_000,
        token_file=str(tokens) if request.param else None,
    )
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(config), headers=HEADERS)


def test_every_route_is_in_the_schema(schema):
    found = sorted(
        (method.upper(), path)
        for path, methods in schema.raw_schema["paths"].items()
        for method in methods
    )
    assert found == sorted(OPERATIONS)


def test_the_schema_says_what_needs_a_token(schema, request):
    closed = {
        path
        for path, methods in schema.raw_schema["paths"].items()
        for operation in methods.values()
        if operation.get("security") == [{"bearer": []}] and "401" in operation["responses"]
    }
    schemes = schema.raw_schema["components"].get("securitySchemes")
    if "open" in request.node.name:
        assert not closed
        assert schemes is None
    else:
        assert closed == {path for _, path in OPERATIONS} - {"/health", "/ready"}
        assert schemes == {"bearer": {"type": "http", "scheme": "bearer"}}


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        *((method, path, GenerationMode.POSITIVE) for method, path in OPERATIONS),
        # the others take nothing that could be wrong
        ("POST", "/search", GenerationMode.NEGATIVE),
        ("POST", "/search.npy", GenerationMode.NEGATIVE),
    ],
)
def test_made_up_requests_get_answers_that_the_schema_names(schema, method, path, mode):
    takes_nothing = not path.startswith("/search")

    @settings(max_examples=2 if takes_nothing else 25, suppress_health_check=list(HealthCheck))
    @given(case=schema[path][method].as_strategy(generation_mode=mode))
    def ask(case):
        excluded = [openapi_checks.positive_data_acceptance]
        case.call_and_validate(excluded_checks=excluded, headers=HEADERS)

    ask()
