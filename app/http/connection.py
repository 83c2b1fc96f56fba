"""One HTTP connection: uvicorn's protocol on httptools, with limits.

Plain uvicorn reads a head of any length at any rate, closes while a client still sends (which then never sees the
response), treats a half-closed connection as a disconnect, and treats `Upgrade: h2c` as the end of the request.
"""

import asyncio
import math
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from app.errors import forget
from app.http.connections import (
    DRAIN_S,
    LINGER_BYTES,
    LINGER_PAUSE_S,
    LINGER_S,
    SWEEP_S,
    WINDOW_S,
    Connections,
)
from app.http.outlet import Outlet
from app.http.reader import RequestReader
from app.http.refusal import Refused, answer


class Connection(RequestReader):
    """An asyncio protocol. `Connections.watch` calls `check` every SWEEP_S."""

    def __init__(
        self,
        connections: Connections,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(connections.limits, config, server_state, app_state, _loop)
        self._connections = connections
        self.peer = ""
        self._answering: RequestResponseCycle | None = None  # `cycle` belongs to the last head, which may be queued
        self._lingering_since = math.inf
        self._stopping_since = math.inf

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.peer = self.client[0] if self.client else ""
        self._outlet = Outlet(self.finish, transport)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.remove(self)
        super().connection_lost(exc)
        if self._answering is not None:
            self._answering.disconnected = True
            self._answering.message_event.set()
        self._outlet.close = self.transport.close  # not self.finish: reference cycles are freed late
        self.pipeline.clear()
        self.scope = self.cycle = self._answering = None  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._measure.add(len(data))
        if self._lingering_since < math.inf:
            if self._measure.bytes > LINGER_BYTES:
                self.transport.abort()
            self.flow.pause_reading()
            self.loop.call_later(LINGER_PAUSE_S, self.flow.resume_reading)
            return
        try:
            self._feed(data)
        except (Refused, httptools.HttpParserError) as error:
            refusal = error if isinstance(error, Refused) else error.__context__
            forget(error)
            if isinstance(refusal, Refused):
                self._refuse(refusal.status, str(refusal))
            else:
                self._refuse(400, "this is not valid HTTP/1.1")

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection if the request is complete: a half-closed client still gets its response."""
        if self._working and self._message_complete and not self.transport.is_closing():
            self._half_closed = True
            self.cycle.keep_alive = False
            return True
        return False

    def resume_writing(self) -> None:
        self._rate.drained()
        super().resume_writing()

    def shutdown(self) -> None:
        """Stop: finish the request in progress, drop pipelined ones, close idle connections."""
        self._stopping_since = self.loop.time()
        self.pipeline.clear()
        if self._working:
            self.cycle.keep_alive = False
        elif self._lingering_since == math.inf:
            self.transport.close()

    def finish(self) -> None:
        """Close after the response, but first read and drop what the client still sends, for at most LINGER_S.

        The kernel resets a connection that is closed with unread bytes, and the client then loses the response. nginx
        calls this lingering close: https://nginx.org/en/docs/http/ngx_http_core_module.html#lingering_close
        """
        if self._message_complete or self.transport.is_closing():
            self.transport.close()
            return
        self.pipeline.clear()  # nothing can be written after the last response
        if self.cycle is not None:
            self.cycle.waiting_for_100_continue = False
        self._lingering_since = self.waiting_since = now = self.loop.time()
        self._measure.begin()
        self._rate.begin(now)
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def cut_off(self) -> None:
        """Abort the connection: the client does not read the response, and the application gives up."""
        if self._answering is not None:
            self._answering.disconnected = True
        self.transport.abort()

    def give_way(self) -> None:
        """Close this connection to make room for another one."""
        if self._lingering_since < math.inf or (self._working and not self._reads_body):
            self.transport.abort()
            return
        if self._in_head or self._reads_body or not self._has_answered:  # else the connection is idle
            self._refuse(503, "the server has reached its maximum number of connections")
        self.transport.close()

    def check(self, now: float) -> None:
        """Close the connection if a timeout or a minimum rate is violated. `now`: loop time, s."""
        limits = self._limits
        waited = now - self.waiting_since
        if self._lingering_since < math.inf:
            limit_s = LINGER_S if self._stopping_since == math.inf else SWEEP_S
            if now - self._lingering_since > limit_s or self._too_slow(now, WINDOW_S):
                self.transport.abort()
        elif now - self._stopping_since > DRAIN_S and self._stalls(now):
            if self._reads_body:
                self._refuse(503, "the server is stopping")
            else:
                self.transport.abort()
        elif self._working:
            self._check_request(now)
        elif self._in_head:
            if waited > limits.head_s:
                self._refuse(408, f"the request's head took more than {limits.head_s:g} s")
        elif not self._message_complete:  # answered, and the client still sends the body
            if waited > LINGER_S or self._too_slow(now, WINDOW_S) or self._measure.body_bytes > LINGER_BYTES:
                self.transport.abort()
        elif waited > (limits.keep_alive_s if self._has_answered else limits.head_s):
            self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _check_request(self, now: float) -> None:
        limits = self._limits
        left = self.transport.get_write_buffer_size()
        if self._reads_body:
            if self.flow.read_paused:  # the application has paused reading
                self._rate.begin(now, self._measure.body_bytes)
            elif self._too_slow(now, WINDOW_S):
                self._refuse(408, f"the body arrives at less than {limits.bytes_per_s} bytes a second")
        elif not left:
            self.waiting_since = math.inf
            self._rate.begin(now, self._measure.body_bytes)
            self._probe()
        elif not self._rate.sends:  # the response has begun
            self.waiting_since = now
            self._rate.begin(now, self._measure.body_bytes, left)
        elif self._too_slow(now, limits.send_s):
            self.transport.abort()

    def _probe(self) -> None:
        """Detect whether a half-closed client is gone: its kernel then resets the connection. A waiting client skips
        this line.
        """
        if self._half_closed and not self.cycle.response_started and self.cycle.scope["http_version"] == "1.1":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _too_slow(self, now: float, window_s: float) -> bool:
        received = self._measure.bytes if self._lingering_since < math.inf else self._measure.body_bytes
        return self._rate.too_slow(now, window_s, received, self.transport.get_write_buffer_size())

    def _stalls(self, now: float) -> bool:
        """Return True if the client, not the application, delays the stop."""
        if not self._working or self._reads_body:
            return True
        return bool(self.transport.get_write_buffer_size()) and self._too_slow(now, DRAIN_S)

    def _refuse(self, status: int, message: str) -> None:
        """Send an error response without the application, and close."""
        if self.transport.is_closing():
            return
        if self.pipeline or (self._working and not (self._reads_body and not self.cycle.response_started)):
            self.transport.close()  # another response is due first, or already being sent
            return
        if self._working:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self._in_head:
            self.headers.clear()  # frees memory: the connection may linger
        self._in_head = self._message_complete = False
        self.transport.write(answer(status, message))
        self.finish()
