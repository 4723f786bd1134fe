"""Bearer tokens (RFC 6750): who may ask, before anything of the request but its head is read.

A plain ASGI middleware. Tokens come from a file, so that they stand neither in the list of
processes nor in the environment.
"""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from sparse_retrieval._files import read_lines
from sparse_retrieval.service.errors import answer
from sparse_retrieval.service.metrics import Metrics

#: Characters that RFC 6750 allows, and enough of them that nobody guesses one.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")

#: What OpenAPI calls this, and where it says so.
SCHEME = {"bearer": {"type": "http", "scheme": "bearer"}}


def read_tokens(path: str | os.PathLike[str]) -> list[str]:
    """Read the tokens of a file: one a line, any of which opens.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it holds no token, or a line that is none; a line is named, never shown.
    """
    tokens = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        if not _TOKEN.fullmatch(line.strip()):
            raise ValueError(
                f"{os.fspath(path)}: line {number} is no token; expected at least 16 of the "
                "characters A-Z a-z 0-9 - . _ ~ + /, as `openssl rand -hex 32` prints"
            )
        tokens.append(line.strip())
    if not tokens:
        raise ValueError(f"{os.fspath(path)}: holds no token; expected one a line")
    return tokens


class Tokens:
    """The middleware: 401 for who brings none of the tokens.

    Parameters
    ----------
    app : ASGI application
    tokens : sequence of str
    free : iterable of str
        Paths that need no token.
    metrics : Metrics
        Counts what is refused.
    """

    def __init__(
        self, app: ASGIApp, *, tokens: Sequence[str], free: Iterable[str], metrics: Metrics
    ) -> None:
        self._app = app
        self._digests = [sha256(token.encode()).digest() for token in tokens]
        self._free = frozenset(free)
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or scope["path"] in self._free:
            await self._app(scope, receive, send)
            return
        brought = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, token = brought.partition(b" ")
        is_bearer = scheme.lower() == b"bearer"
        if is_bearer and self._opens(token.strip()):
            await self._app(scope, receive, send)
            return
        self._metrics.refused.labels("no_token").inc()
        challenge = 'Bearer realm="sparse_retrieval"'
        if is_bearer:
            detail = "the token is none of this service's"
            challenge += ', error="invalid_token"'
        else:
            detail = "this service needs a token: send the header `Authorization: Bearer TOKEN`"
        await answer(401, detail, {"WWW-Authenticate": challenge})(scope, receive, send)

    def _opens(self, token: bytes) -> bool:
        # digests are of one length, and all are compared, to the end: the time tells nothing
        digest = sha256(token).digest()
        same = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(same)


def described(schema: dict[str, Any], free: Iterable[str], refusal: dict[str, Any]) -> None:
    """Say in an OpenAPI schema that all paths but some need a token."""
    schema["components"]["securitySchemes"] = SCHEME
    for path, operations in schema["paths"].items():
        if path not in free:
            for operation in operations.values():
                operation["security"] = [{"bearer": []}]
                operation["responses"]["401"] = refusal
