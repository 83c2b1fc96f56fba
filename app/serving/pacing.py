"""Limits how fast large bodies are read, so that small requests do not wait for them."""

import asyncio
from collections import deque

UNPACED_BYTES = 1 << 20  # first bytes of each body, read at any speed
MAX_PIECES = 1  # of all larger bodies together, per iteration of the event loop; a piece of uvloop has 256 KiB


class Pacing:
    """Limits the pieces read per iteration of one event loop; first come, first served."""

    def __init__(self) -> None:
        self._left = MAX_PIECES  # in this iteration
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def piece(self) -> None:
        """Wait until one more piece may be read."""
        loop = asyncio.get_running_loop()
        if self._left == MAX_PIECES:
            loop.call_soon(self._renew)
        if self._left:
            self._left -= 1
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _renew(self) -> None:
        """Allow MAX_PIECES again; called in each iteration, after the event loop has polled the sockets."""
        self._left = MAX_PIECES
        while self._left and self._waiting:
            if not (next_one := self._waiting.popleft()).done():
                next_one.set_result(None)
                self._left -= 1
        if self._left < MAX_PIECES:
            asyncio.get_running_loop().call_soon(self._renew)
