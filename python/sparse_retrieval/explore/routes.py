"""The page's routes: three files and what they ask for. Not part of the service's schema."""

from __future__ import annotations

import threading
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Query, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from sparse_retrieval.explore.atlas import Atlas, load_matrix
from sparse_retrieval.service.errors import ProblemError

if TYPE_CHECKING:
    from sparse_retrieval.service.app import Service

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/explore/style.css": ("style.css", "text/css; charset=utf-8"),
    "/explore/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/explore/plot.js": ("plot.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    # names are data: even if one were taken for markup it could load and send nothing
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}


class _Atlases:
    """The atlas of the version that is served; made anew when there is another one."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._originals = load_matrix(service.config.originals)
        self._queries = load_matrix(service.config.queries)
        self._lock = threading.Lock()
        self._made: tuple[int, Atlas] | None = None
        self.current()  # what does not fit is told at the start

    def current(self) -> Atlas:
        version = self._service.holder.current
        with self._lock:
            if self._made is None or self._made[0] != version.generation:
                originals = self._originals
                if self._made is not None and originals is not None:
                    # a new version may have other items: neighbours by original would be wrong
                    originals = originals if len(originals) == version.items else None
                atlas = Atlas(
                    version.index,
                    names=self._service.names,
                    originals=originals,
                    queries=self._queries,
                )
                self._made = (version.generation, atlas)
            return self._made[1]


def add_pages(app: FastAPI, service: Service) -> None:
    """Add the page and what it asks for to the service.

    Raises
    ------
    OSError, ValueError
        If the originals or queries cannot be read, or do not fit the index.
    """
    atlases = _Atlases(service)
    folder = files("sparse_retrieval.explore") / "static"

    for path, (name, media_type) in _FILES.items():
        body = (folder / name).read_bytes()
        app.add_api_route(path, _page(body, media_type), include_in_schema=False)

    async def asked(method: str, *arguments: Any) -> Response:
        try:
            found = await run_in_threadpool(lambda: getattr(atlases.current(), method)(*arguments))
        except KeyError as error:
            raise ProblemError(404, str(error.args[0] if error.args else error)) from None
        return JSONResponse(found, headers={"X-Content-Type-Options": "nosniff"})

    @app.get("/explore/api/summary", include_in_schema=False)
    async def summary() -> Response:
        return await asked("summary")

    @app.get("/explore/api/items", include_in_schema=False)
    async def items(text: str = "") -> Response:
        return await asked("find", text[:200])

    @app.get("/explore/api/item", include_in_schema=False)
    async def item(id: str) -> Response:
        return await asked("item", _as_id(atlases.current(), id))

    @app.get("/explore/api/atom", include_in_schema=False)
    async def atom(
        latent: Annotated[int, Query(ge=0, lt=2**32)], positive: bool = True
    ) -> Response:
        return await asked("atom", latent, positive)

    @app.get("/explore/api/curve", include_in_schema=False)
    async def curve() -> Response:
        return await asked("curve")


def _page(body: bytes, media_type: str) -> Any:
    async def page() -> Response:
        return Response(body, media_type=media_type, headers=_HEADERS)

    return page


def _as_id(atlas: Atlas, text: str) -> Any:
    """An id as the index has it: its page writes numbers and strings alike."""
    if atlas.ids.dtype == object:
        return text
    try:
        number = int(text)
    except ValueError:
        raise ProblemError(404, f"no item has the id {text!r}; ids are numbers") from None
    if not -(2**63) <= number < 2**63:
        raise ProblemError(404, f"no item has the id {number}")
    return number
