"""The routes, and what stands between them and the index: one application a process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Annotated, Any, cast

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import ValidationError
from pydantic.json_schema import models_json_schema
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

import sparse_retrieval as sr
from sparse_retrieval._files import read_lines
from sparse_retrieval.codes import SparseCodes
from sparse_retrieval.service import auth, errors, npy
from sparse_retrieval.service.batching import Batcher, OverloadedError, Search
from sparse_retrieval.service.config import ServiceConfig
from sparse_retrieval.service.errors import ProblemError
from sparse_retrieval.service.holder import Holder, Version
from sparse_retrieval.service.limits import Limits
from sparse_retrieval.service.metrics import CONTENT_TYPE, Metrics
from sparse_retrieval.service.schema import (
    Codes,
    Health,
    Info,
    Mode,
    Problem,
    Reloaded,
    SearchRequest,
    SearchResponse,
)

log = logging.getLogger("sparse_retrieval.service")

_PROBLEM = {"content": {errors.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
_REFUSALS: dict[int | str, dict[str, Any]] = {
    413: {"description": "The body is too long.", **_PROBLEM},
    422: {"description": "The request does not fit the schema or the index.", **_PROBLEM},
    503: {"description": "Too many requests at once; try again.", **_PROBLEM},
}
_UNKNOWN: dict[str, Any] = {"description": "The token is missing, or another one.", **_PROBLEM}
_CONFLICT: dict[str, Any] = {"description": "The new file cannot be opened.", **_PROBLEM}
_FREE = ("/health", "/ready", "/metrics")  # of limits
_OPEN = ("/health", "/ready")  # without a token
_ROUTES = (*_FREE, "/search", "/search.npy", "/info", "/reload", "/openapi.json", "/")


class Service:
    """What the routes share: the open file, the threads that search it, and the counts."""

    def __init__(self, config: ServiceConfig) -> None:
        self.config = config
        self.metrics = Metrics()
        self.holder = Holder(config.index_path, mmap=config.mmap, on_reload=self._reloaded)
        self.batcher = Batcher(
            self.holder,
            searches=config.searches,
            threads=config.threads,
            max_wait_s=config.max_wait_s,
            on_batch=self.metrics.batch,
        )
        self.names = _read_names(config.names)
        self.stopping = False
        self._show()

    def _reloaded(self, well: bool) -> None:
        self.metrics.reloads.labels("done" if well else "failed").inc()

    def _show(self) -> None:
        version = self.holder.current
        self.metrics.items.set(version.items)
        self.metrics.generation.set(version.generation)

    async def reload(self, *, force: bool = False) -> bool:
        """Look at the file, in a thread; an error leaves the old version."""
        new = await run_in_threadpool(self.holder.reload, force=force)
        self._show()
        return new

    async def watch(self) -> None:
        """Look at the file again and again, for as long as the service runs."""
        while True:
            await asyncio.sleep(self.config.watch_s)
            try:
                if await self.reload():
                    log.info("%s: generation %d", self.config.index, self.generation)
            except Exception as error:  # whatever it is, the old version is still good
                log.warning("%s: cannot be opened, kept the old one: %s", self.config.index, error)

    @property
    def generation(self) -> int:
        """Of the version that is served."""
        return self.holder.current.generation

    async def answer(self, search: Search) -> tuple[sr.SearchResult, Version]:
        """Search within the limits; errors of the request become answers."""
        if len(search) > self.config.max_batch:
            raise ProblemError(
                422,
                f"{len(search)} queries; this service takes at most {self.config.max_batch} at "
                "once: split them, or start it with a larger --max-batch",
            )
        if search.k > self.config.max_k:
            raise ProblemError(
                422,
                f"k is {search.k}; this service returns at most {self.config.max_k}: start it "
                "with a larger --max-k",
            )
        try:
            return await self.batcher.search(search)
        except OverloadedError:
            self.metrics.refused.labels("waited_too_long").inc()
            raise errors.overloaded(
                f"the search waited for {self.config.max_wait_s:g} s and had not begun; try again"
            ) from None
        except (TypeError, ValueError) as error:  # the index's own checks: the caller's to mend
            raise ProblemError(422, str(error)) from None


def create_app(config: ServiceConfig) -> FastAPI:
    """Make the application; the index is opened at once, so that a bad file is told at once.

    Parameters
    ----------
    config : ServiceConfig

    Returns
    -------
    fastapi.FastAPI
        Also an ASGI application for other servers; watching begins with its lifespan.

    Raises
    ------
    OSError, IndexFormatError
        If the index, or a file that goes with it, cannot be opened.
    ValueError
        If the file of tokens holds something else.
    """
    tokens = None if config.token_file is None else auth.read_tokens(config.token_file)
    service = Service(config)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.stopping = False
        watcher = asyncio.create_task(service.watch()) if config.watch_s else None
        yield
        service.stopping = True
        if watcher is not None:
            watcher.cancel()
        service.batcher.close()

    app = FastAPI(
        title="sparse_retrieval",
        version=sr.__version__,
        description=f"Exact top-k search of {config.index_path.name}.",
        lifespan=lifespan,
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    _add_search(app, service)
    _add_care(app, service)
    _add_errors(app)
    if config.explore:
        from sparse_retrieval.explore import add_pages

        add_pages(app, service)
    _describe(app, closed=tokens is not None)
    if tokens is not None:
        app.add_middleware(auth.Tokens, tokens=tokens, free=_OPEN, metrics=service.metrics)
    app.add_middleware(  # the last is the outermost: it counts what the others refuse
        Limits,
        max_body_bytes=config.max_body_bytes,
        max_concurrent=config.max_concurrent,
        metrics=service.metrics,
        free=_FREE,
        routes=_ROUTES,
    )
    return app


def _add_search(app: FastAPI, service: Service) -> None:
    @app.post(
        "/search",
        summary="The best items of each query",
        responses={200: {"model": SearchResponse}, **_REFUSALS},
        openapi_extra=_body("application/json", {"$ref": "#/components/schemas/SearchRequest"}),
    )
    async def search(request: Request) -> Response:
        # parsed in a thread: a long body must not keep the others from being read
        dim = service.holder.current.index.dim
        asked = await run_in_threadpool(_parsed, await request.body(), dim)
        found, version = await service.answer(asked)
        body = await run_in_threadpool(_written, found, version.generation, service.names)
        return Response(body, media_type="application/json")

    @app.post(
        "/search.npy",
        summary="The same with queries and results as .npy bytes",
        response_class=Response,
        responses={
            200: {
                "description": "Records of `id` (int64) and `score` (float32), shape (nq, k).",
                "content": {"application/octet-stream": {"schema": {"type": "string"}}},
            },
            **_REFUSALS,
        },
        openapi_extra=_body("application/octet-stream", {"type": "string", "format": "binary"}),
    )
    async def search_npy(
        request: Request,
        k: Annotated[int, Query(ge=1)] = 10,
        mode: Mode | None = None,
        k_row: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
        approximate: bool = False,
    ) -> Response:
        body = await request.body()
        try:
            _check_known(request, ("k", "mode", "k_row", "approximate"))
            queries = _finite(npy.read(body))
            options = _options(mode, k_row, approximate)
            found, version = await service.answer(Search(queries, k, options))
            records = npy.write(found)
        except ValueError as error:
            raise ProblemError(422, str(error)) from None
        headers = {"X-Generation": str(version.generation)}
        return Response(records, media_type="application/octet-stream", headers=headers)


def _add_care(app: FastAPI, service: Service) -> None:
    @app.get("/health", summary="Whether the service lives, and what it serves")
    async def health() -> Health:
        version, error = service.holder.current, service.holder.error
        return Health(
            status="ok" if error is None else "stale",
            version=sr.__version__,
            items=version.items,
            generation=version.generation,
            error=error,
        )

    @app.get(
        "/ready",
        summary="Whether requests should be sent here",
        status_code=204,
        response_class=Response,
        responses={503: _REFUSALS[503]},
    )
    async def ready() -> Response:
        if service.stopping:
            raise errors.overloaded("the service is being stopped")
        return Response(status_code=204)

    @app.get(
        "/metrics",
        summary="Counts for Prometheus",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        body = await run_in_threadpool(service.metrics.render)
        return Response(body, headers={"Content-Type": CONTENT_TYPE})

    @app.get("/info", summary="What the index is", responses={503: _REFUSALS[503]})
    async def info() -> Info:
        version, config = service.holder.current, service.config
        names = ("max_body_bytes", "max_batch", "max_k", "max_concurrent")
        return Info(
            index=await run_in_threadpool(version.index.stats),
            limits={name: getattr(config, name) for name in names},
            generation=version.generation,
        )

    @app.post(
        "/reload",
        summary="Look at the file now; an error leaves the version that is served",
        responses={409: _CONFLICT, 503: _REFUSALS[503]},
    )
    async def reload() -> Reloaded:
        try:
            new = await service.reload(force=service.holder.error is not None)
        except (OSError, ValueError, MemoryError) as error:
            raise ProblemError(409, f"kept the old version: {error}") from None
        version = service.holder.current
        return Reloaded(reloaded=new, generation=version.generation, items=version.items)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(ProblemError)
    async def _problem(_request: Request, error: Exception) -> Response:
        problem = cast(ProblemError, error)
        return errors.answer(problem.status, problem.detail, problem.headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_request: Request, error: Exception) -> Response:
        return errors.answer(422, errors.described(cast(RequestValidationError, error).errors()))

    @app.exception_handler(HTTPException)
    async def _http(_request: Request, error: Exception) -> Response:
        http = cast(HTTPException, error)
        return errors.answer(http.status_code, str(http.detail), http.headers)

    @app.exception_handler(Exception)
    async def _bug(_request: Request, error: Exception) -> Response:
        log.error("a request failed", exc_info=error)
        return errors.answer(500, "an error of the service itself; its log holds the traceback")


def _describe(app: FastAPI, *, closed: bool) -> None:
    """Put into the schema the models of bodies that are parsed by hand, and what needs a token."""

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            _, models = models_json_schema(
                [(SearchRequest, "validation"), (Problem, "serialization")],
                ref_template="#/components/schemas/{model}",
            )
            components = made.setdefault("components", {}).setdefault("schemas", {})
            components.update(models["$defs"])
            if closed:
                auth.described(made, _OPEN, _UNKNOWN)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = schema  # type: ignore[method-assign]


def _body(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def _parsed(body: bytes, dim: int) -> Search:
    try:
        request = SearchRequest.model_validate_json(body)
        coded = request.codes
        queries = _finite(request.queries) if coded is None else _codes(coded, dim)
    except ValidationError as error:
        raise ProblemError(422, errors.described(error.errors(include_url=False))) from None
    except (TypeError, ValueError) as error:
        raise ProblemError(422, str(error)) from None
    setting = request.approximate
    return Search(
        queries,
        request.k,
        _options(
            request.mode,
            request.k_row,
            setting if isinstance(setting, bool) else sr.Approximate(**setting.model_dump()),
        ),
        filter=request.filter,
        exclude=request.exclude,
    )


def _options(mode: Mode | None, k_row: int | None, approximate: Any) -> dict[str, Any]:
    return {"mode": mode, "k_row": k_row, "approximate": approximate or None}


def _check_known(request: Request, names: tuple[str, ...]) -> None:
    """Refuse parameters that would be ignored: a filter that does nothing returns too much."""
    unknown = sorted(set(request.query_params) - set(names))
    if unknown:
        raise ValueError(
            f"the query string has {', '.join(unknown)}; expected {', '.join(names)} "
            "(filter and exclude are taken by POST /search)"
        )


def _finite(rows: Any) -> Any:
    """Queries as one array: what cannot be joined with others is found out before it is."""
    widths = {len(row) for row in rows}
    if len(widths) != 1:
        raise ValueError(
            f"queries have {sorted(widths)[:3]} columns; expected at least one query, and one "
            "width for all"
        )
    array = np.asarray(rows, dtype=np.float64)
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(axis=1))[0])
        raise ValueError(f"queries[{row}] holds NaN or inf")
    return array


def _codes(codes: Codes, dim: int) -> SparseCodes:
    if len(codes.latents) != len(codes.values) or not codes.latents:
        raise ValueError(
            f"codes have {len(codes.latents)} lists of latents and {len(codes.values)} of values; "
            "expected one of each for each query, and at least one query"
        )
    for row, (latents, values) in enumerate(zip(codes.latents, codes.values, strict=True)):
        if len(latents) != len(values):
            raise ValueError(f"codes[{row}] has {len(latents)} latents and {len(values)} values")
    lengths = [len(latents) for latents in codes.latents]
    flat = np.concatenate([np.asarray(one, dtype=np.int64) for one in codes.latents])
    return SparseCodes.from_csr(
        np.concatenate(([0], np.cumsum(lengths))),
        flat,
        np.concatenate([np.asarray(one, dtype=np.float64) for one in codes.values]),
        dim=dim,
    )


def _written(found: sr.SearchResult, generation: int, names: list[str] | None) -> bytes:
    results: list[dict[str, Any]] = []
    for ids, scores in zip(found.ids.tolist(), found.scores.tolist(), strict=True):
        there = [at for at, one in enumerate(ids) if one is not None and scores[at] != -np.inf]
        result: dict[str, Any] = {
            "ids": [ids[at] for at in there],
            # a score beyond float32 is infinite, which JSON cannot say
            "scores": [min(scores[at], _MOST) for at in there],
        }
        if names is not None:
            result["names"] = [name_of(names, ids[at]) for at in there]
        results.append(result)
    return json.dumps({"results": results, "generation": generation}, allow_nan=False).encode()


_MOST = float(np.finfo(np.float32).max)


def name_of(names: list[str] | None, item: Any) -> str | None:
    """Return the name of an id, or None."""
    if names is None or not isinstance(item, int) or not 0 <= item < len(names):
        return None
    return names[item]


def _read_names(path: str | None) -> list[str] | None:
    if path is None:
        return None
    try:
        return read_lines(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text (byte {error.start})") from None
