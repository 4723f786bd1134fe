"""Starting and stopping: uvicorn around the application, in one process or several."""

from __future__ import annotations

import inspect
import os
import signal
import tempfile
from collections.abc import Callable
from typing import Any

import uvicorn

from sparse_retrieval.service.config import ServiceConfig

_SETTINGS = "SPARSE_RETRIEVAL_SERVICE"


def serve(config: ServiceConfig, *, on_start: Callable[[str], object] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; requests that run are then finished first.

    Parameters
    ----------
    config : ServiceConfig
    on_start : callable, optional
        Called with the address: with one process once connections are taken, with several once
        they queue for the processes that are being started.

    Raises
    ------
    OSError, IndexFormatError
        If the index cannot be opened, or nothing can listen at the address.
    ValueError
        If the file of tokens holds something else.
    """
    if config.workers > 1:
        _serve_many(config, on_start)
        return
    from sparse_retrieval.service.app import create_app

    server = _Server(uvicorn.Config(create_app(config), **_options(config)), on_start)
    _stop_quietly(server.run)
    if not server.started:
        raise OSError(f"cannot listen at {config.host}:{config.port}; is the port taken?")


def create_worker() -> object:
    """Make the application of one of several processes, from the settings of its parent."""
    from sparse_retrieval.service.app import create_app

    return create_app(ServiceConfig.from_json(os.environ[_SETTINGS]))


def _serve_many(config: ServiceConfig, on_start: Callable[[str], object] | None) -> None:
    from uvicorn.supervisors import Multiprocess

    from sparse_retrieval.index import SparseIndex
    from sparse_retrieval.service.auth import read_tokens

    SparseIndex.open(config.index_path)  # a bad file is told here, not by each process in turn
    if config.token_file is not None:
        read_tokens(config.token_file)
    with tempfile.TemporaryDirectory(prefix="sparse-retrieval-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        os.environ[_SETTINGS] = config.to_json()
        settings = uvicorn.Config(
            "sparse_retrieval.service.run:create_worker",
            factory=True,
            workers=config.workers,
            **_options(config),
        )
        listening = settings.bind_socket()
        if on_start is not None:
            on_start(_address(listening))
        options: dict[str, Any] = {"sockets": [listening]}
        if "target" in inspect.signature(Multiprocess).parameters:  # until uvicorn 0.50
            options["target"] = uvicorn.Server(settings).run
        Multiprocess(settings, **options).run()  # starts those that die again


def _options(config: ServiceConfig) -> dict[str, Any]:
    return {
        "host": config.host,
        "port": config.port,
        "log_level": "warning",
        "access_log": False,
        "timeout_graceful_shutdown": int(config.stop_s) or None,
        "server_header": False,
    }


class _Server(uvicorn.Server):
    """A server that tells where it listens."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[str], object] | None) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started and self._on_start is not None:
            self._on_start(_address(self.servers[0].sockets[0]))


def _address(listening: Any) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _stop_quietly(run: Callable[[], object]) -> None:
    """Run; uvicorn raises the signal that stopped it once more, which would end the process."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        run()
    except KeyboardInterrupt:
        pass
    except SystemExit:  # uvicorn's way of saying that it could not start; told by the caller
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
