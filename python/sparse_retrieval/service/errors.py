"""Errors as answers: one JSON object, as RFC 9457 has it, with a sentence on how to mend it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

MEDIA_TYPE = "application/problem+json"


class ProblemError(Exception):
    """An error that is the answer to a request.

    Parameters
    ----------
    status : int
        Of HTTP.
    detail : str
        What was got, what was expected, how to mend it.
    headers : mapping, optional
        More headers of the answer.
    """

    def __init__(self, status: int, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = dict(headers or {})


def answer(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the answer that tells of an error."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    return JSONResponse(body, status, dict(headers or {}), media_type=MEDIA_TYPE)


def overloaded(reason: str) -> ProblemError:
    """Return the error of a service that has too much to do."""
    return ProblemError(503, reason, {"Retry-After": "1"})


def described(errors: Sequence[Any]) -> str:
    """Return pydantic's first three complaints in one line."""
    shown = [
        f"{'.'.join(str(part) for part in error['loc']) or 'body'}: {error['msg']}"
        for error in errors[:3]
    ]
    more = len(errors) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
