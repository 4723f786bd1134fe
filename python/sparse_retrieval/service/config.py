"""What may be set about the service, validated once. Knows nothing of HTTP libraries."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class ServiceConfig:
    """Settings of the service.

    Parameters
    ----------
    index : str
        Path of the index file. It may be replaced and committed to while it is served.
    names : str, optional
        Text file; line i, from 0, names the item of id i. Results then carry names.
    mmap : bool, default True
        Map the file instead of reading it whole.
    host : str, default "127.0.0.1"
        Where to listen. There is no TLS: put a proxy that has it in front before others than
        yourself may connect.
    port : int, default 8000
        0 takes a free one.
    token_file : str, optional
        Text file of one token a line (:func:`auth.read_tokens`), read when the service starts.
        All but ``/health`` and ``/ready`` then needs one of them, as ``Authorization: Bearer``.
    workers : int, default 1
        Processes. One is enough for most: the search itself runs on all cores, outside the
        interpreter lock. More of them decode more JSON at once, and outlive one that dies.
    threads : int, optional
        Threads of one search; by default all cores, of which searches at a time have a share each.
    searches : int, default 2
        Searches at a time in one process; others wait, and those that wait are joined to one.
    max_concurrent : int, default 256
        Requests that may be read, wait or run at once in one process; one more gets a 503.
    max_wait_s : float, default 10
        A request that has waited longer for its search gets a 503 instead.
    max_body_bytes : int, default 16 MiB
        A longer body gets a 413.
    max_batch : int, default 1024
        Queries of a request.
    max_k : int, default 1000
        Results a query.
    watch_s : float, default 2
        How often to look whether the file is another one; 0 never looks (``POST /reload`` does).
    stop_s : float, default 30
        How long requests that run may take to finish when the service is stopped.
    explore : bool, default False
        Serve the page for people at ``/``.
    originals, queries : str, optional
        Of the page: the items' embeddings in the index's order (``.npy``, mapped), and held-out
        queries to measure recall with.

    Raises
    ------
    TypeError, ValueError
        If a setting is of the wrong kind or out of range; the message names it.
    """

    index: str
    names: str | None = None
    mmap: bool = True
    host: str = "127.0.0.1"
    port: int = 8000
    token_file: str | None = None
    workers: int = 1
    threads: int | None = None
    searches: int = 2
    max_concurrent: int = 256
    max_wait_s: float = 10.0
    max_body_bytes: int = 16 * 2**20
    max_batch: int = 1024
    max_k: int = 1000
    watch_s: float = 2.0
    stop_s: float = 30.0
    explore: bool = False
    originals: str | None = None
    queries: str | None = None

    def __post_init__(self) -> None:
        for name in ("index", "names", "token_file", "originals", "queries"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, os.fspath(value))
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if name == "threads" and value is None:
                continue
            whole = name not in _SECONDS
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise TypeError(
                    f"{name} is {value!r}; expected {'an integer' if whole else 'seconds'}"
                )
            if not least <= value < float("inf"):
                raise ValueError(f"{name} is {value}; expected at least {least}")
        if self.port > 65_535:
            raise ValueError(f"port is {self.port}; expected at most 65535")
        if self.explore and self.token_file is not None:
            raise ValueError("token_file goes with a service, not with the page: it sends no token")

    def to_json(self) -> str:
        """Return the settings as one line, for the processes of ``workers``."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ServiceConfig:
        """Read what :meth:`to_json` wrote; an unknown setting is an error."""
        settings = json.loads(text)
        unknown = sorted(set(settings) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown settings: {', '.join(unknown)}")
        return cls(**settings)

    @property
    def index_path(self) -> Path:
        """The index file."""
        return Path(self.index)


_SECONDS = {"max_wait_s", "watch_s", "stop_s"}
_LEAST: dict[str, float] = {
    "port": 0,
    "workers": 1,
    "threads": 1,
    "searches": 1,
    "max_concurrent": 1,
    "max_wait_s": 0.001,
    "max_body_bytes": 1024,
    "max_batch": 1,
    "max_k": 1,
    "watch_s": 0,
    "stop_s": 0,
}
