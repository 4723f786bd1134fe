"""A small HTTP service over one index file: ``sparse-retrieval serve items.sridx``.

FastAPI and uvicorn, with the extra ``serve``; nothing here is imported by the rest of the
package but the command line. ``config`` says what may be set, ``holder`` keeps the newest
version of the file open, ``batching`` runs searches in threads and joins those that wait,
``limits`` refuses what is too much and ``auth`` who brings no token, ``app`` ties them to routes,
``run`` starts and stops it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparse_retrieval.service.config import ServiceConfig

if TYPE_CHECKING:
    from sparse_retrieval.service.app import create_app
    from sparse_retrieval.service.run import serve

__all__ = ["ServiceConfig", "create_app", "serve"]


def __getattr__(name: str) -> Any:
    if name == "create_app":
        from sparse_retrieval.service.app import create_app

        return create_app
    if name == "serve":
        from sparse_retrieval.service.run import serve

        return serve
    raise AttributeError(f"module 'sparse_retrieval.service' has no attribute {name!r}")
