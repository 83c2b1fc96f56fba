"""Starts and stops the HTTP server: uvicorn's, with app.http.connection as its protocol."""

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator
from functools import partial

import uvicorn
from starlette.types import ASGIApp

from app.http.connection import Connection
from app.http.connections import Connections, Limits
from app.settings import ServerSettings
from app.system import host

log = logging.getLogger("yolopard.http")

ACCEPT_GRACE_S = 0.25  # for accepting what has reached the socket before a stop
RESERVED_FILES = 64  # open files besides connections: engines, logs, gRPC, images by URL


class Server(uvicorn.Server):
    """Before it stops, accepts the connections that have reached the socket; plain uvicorn would reset them."""

    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self.connections = connections
        self.on_stop: Callable[[], None] = lambda: None  # called when no more requests are accepted
        self._watch: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._watch = asyncio.create_task(self.connections.watch(), name="connections")
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.sleep(ACCEPT_GRACE_S)
        self.on_stop()
        await super().shutdown(sockets)
        if self._watch is not None:
            self._watch.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Stop on SIGHUP, which a closing terminal sends, as on SIGTERM, unless it is ignored (`nohup`)."""
        before = signal.getsignal(signal.SIGHUP)
        if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
            with super().capture_signals():
                yield
            return
        signal.signal(signal.SIGHUP, lambda *_: self.handle_exit(signal.SIGTERM, None))
        try:
            with super().capture_signals():
                yield
        finally:
            signal.signal(signal.SIGHUP, before)


def make_server(settings: ServerSettings, app: ASGIApp | str = "unset") -> Server:
    """Return the server of `app`, not yet started. Without `app`, set `config.app` before the start."""
    connections = Connections(_limits(settings))
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=partial(Connection, connections),  # type: ignore[arg-type]
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=round(settings.deadline_ms / 1000) + 1,
    )
    return Server(config, connections)


def _limits(settings: ServerSettings) -> Limits:
    files = host.allow_open_files(settings.max_connections + RESERVED_FILES)
    connections = max(1, min(settings.max_connections, files - RESERVED_FILES))
    if connections < settings.max_connections:
        log.warning("the process may open only %d files: MAX_CONNECTIONS is lowered to %d", files, connections)
    return Limits(
        connections=connections,
        per_peer=settings.max_connections_per_peer,
        head_bytes=settings.max_head_bytes,
        head_s=settings.head_timeout_ms / 1000,
        keep_alive_s=settings.keep_alive_ms / 1000,
        send_s=settings.send_timeout_ms / 1000,
        bytes_per_s=settings.min_bytes_per_s,
        hosts=settings.hosts,
    )
