"""Reads the requests of one HTTP connection: uvicorn's protocol on httptools, with limits on heads and bodies."""

import asyncio
import math
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from app.http import head
from app.http.connections import MAX_PIPELINE, Limits
from app.http.measure import Measure
from app.http.outlet import Outlet
from app.http.rate import Rate
from app.http.refusal import Refused

_REPLAYED_HEAD = b"POST / HTTP/1.1\r\nhost: again\r\n%s\r\n"


class RequestReader(HttpToolsProtocol):
    """The parser's callbacks. `_feed` raises Refused, or httptools' HttpParserError."""

    _outlet: Outlet

    def __init__(
        self,
        limits: Limits,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        loop: asyncio.AbstractEventLoop | None,
    ) -> None:
        super().__init__(config, server_state, app_state, loop)
        self._limits = limits
        self.waiting_since = self.loop.time()  # loop time, s; inf while the server works
        self._has_answered = False
        self._in_head = False
        self._message_complete = True  # the request is received in full, answered or not
        self._half_closed = False  # the client has shut its writing side
        self._measure = Measure(limits.head_bytes)
        self._rate = Rate(limits.bytes_per_s)
        self._replaying_head = False  # callbacks are ignored meanwhile
        self._ignores_upgrade = False

    def cut_off(self) -> None:
        """Abort the connection: the client does not read the response, and the application gives up."""
        raise NotImplementedError

    def on_message_begin(self) -> None:
        if self._replaying_head:
            return
        super().on_message_begin()
        if self._has_answered and not self._working:
            self.waiting_since = self.loop.time()
        self._in_head, self._message_complete = True, False
        self._measure.begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._replaying_head:
            return
        self._measure.add_line(in_head=self._in_head)
        if self._in_head:  # trailers are dropped
            super().on_header(name, value)

    def on_url(self, url: bytes) -> None:
        if not self._replaying_head:
            super().on_url(url)

    def on_headers_complete(self) -> None:
        if self._replaying_head:
            return
        if len(self.pipeline) >= MAX_PIPELINE:
            raise Refused(400, f"more than {MAX_PIPELINE} requests are waiting on one connection")
        measure = self._measure.head_may_be_long
        head.check(self.headers, self.url, self.parser.get_http_version(), self._limits, measure=measure)
        self._in_head = False
        self.scope["yolopard.cut_off"] = self.cut_off  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()
        self.cycle.transport = self._outlet  # type: ignore[assignment]
        self._ignores_upgrade = self.parser.should_upgrade() and bool(head.framing(self.headers))
        self.waiting_since = now = self.loop.time()
        self._rate.begin(now)

    def on_body(self, body: bytes) -> None:
        self._measure.add_body(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._replaying_head or self._ignores_upgrade:
            return
        self._message_complete = True
        if self._working:
            self.waiting_since = math.inf
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._has_answered = True
        self.waiting_since = self.loop.time()
        super().on_response_complete()
        self._unset_keepalive_if_required()  # `check` enforces the keep-alive timeout
        if self._working and self._message_complete:  # pipelined
            self.waiting_since = math.inf
        if self._half_closed and not self.pipeline:
            self.transport.close()

    @property
    def _working(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _reads_body(self) -> bool:
        return self._working and not (self._message_complete or self._in_head)

    def _feed(self, data: bytes) -> None:
        alone = self._message_complete
        while data:
            try:
                self.parser.feed_data(data)
                break
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._skip_upgrade()
        self._measure.end_piece(
            alone=alone, in_head=self._in_head, complete=self._message_complete, has_lines=bool(self.headers)
        )

    def _skip_upgrade(self) -> None:
        """Ignore the upgrade that a head offers, and go on with the body: a new parser replays the lines that frame it.

        httptools stops at such a head: it makes llhttp expect no body, whatever the head says
        (`cb_on_headers_complete`).
        """
        if self._ignores_upgrade:
            self._ignores_upgrade = False
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            self._replaying_head = True
            self.parser.feed_data(_REPLAYED_HEAD % head.framing(self.cycle.scope["headers"]))
            self._replaying_head = False
