"""Refuses a request that is too much before it is read, and counts those that are not.

A plain ASGI middleware: it sees the body as it comes, so that one without a length, or with a
false one, is cut off as well.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sparse_retrieval.service.errors import answer
from sparse_retrieval.service.metrics import Metrics


class _TooLongError(Exception):
    pass


class Limits:
    """The middleware.

    Parameters
    ----------
    app : ASGI application
    max_body_bytes, max_concurrent : int
        As in :class:`ServiceConfig`.
    metrics : Metrics
    free : iterable of str
        Paths that are always answered: health and metrics must tell of an overload.
    routes : iterable of str
        Paths that are counted by name; others are counted as "other", since there are as many
        as a caller cares to make up.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        max_concurrent: int,
        metrics: Metrics,
        free: Iterable[str],
        routes: Iterable[str],
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_concurrent = max_concurrent
        self._metrics = metrics
        self._free = frozenset(free)
        self._routes = frozenset(routes)
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        route = path if path in self._routes else "other"
        begun = time.perf_counter()
        status = 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        counts = path not in self._free
        try:
            if counts and self._in_flight >= self._max_concurrent:
                await self._refuse(503, "too_many", scope, receive, counted)
                return
            if counts:
                self._in_flight += 1
                self._metrics.in_flight.inc()
            try:
                await self._bounded(scope, receive, counted)
            finally:
                if counts:
                    self._in_flight -= 1
                    self._metrics.in_flight.dec()
        finally:
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - begun)

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._max_body_bytes:
            await self._refuse(413, "too_long", scope, receive, send)
            return
        read = 0
        started = False

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_body_bytes:
                raise _TooLongError
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, bounded, noted)
        except _TooLongError:
            if started:
                raise
            await self._refuse(413, "too_long", scope, receive, send)

    async def _refuse(
        self, status: int, reason: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._metrics.refused.labels(reason).inc()
        if status == 503:
            detail = (
                f"{self._max_concurrent} requests are being answered, which is as many as this "
                "service takes at once; try again, or start it with a larger --max-concurrent"
            )
            headers = {"Retry-After": "1"}
        else:
            detail = (
                f"the body is longer than {self._max_body_bytes:,} bytes; send fewer queries at "
                "once, or start the service with a larger --max-body-bytes"
            )
            headers = {"Connection": "close"}  # what is left of the body is not read
        await answer(status, detail, headers)(scope, receive, send)
