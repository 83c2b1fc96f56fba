"""The transport as a response sees it."""

import asyncio
from collections.abc import Callable


class Outlet:
    """Whose close is the connection's own: it waits for a client that still sends."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, close: Callable[[], None], transport: asyncio.Transport) -> None:
        self.close, self.write, self.is_closing = close, transport.write, transport.is_closing
