"""The transport as a response sees it."""

import asyncio
from collections.abc import Callable


class Outlet:
    """Replaces the transport's `close` by the connection's, which waits for a client that still sends."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, close: Callable[[], None], transport: asyncio.Transport) -> None:
        self.close, self.write, self.is_closing = close, transport.write, transport.is_closing
