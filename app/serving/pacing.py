"""Large bodies arrive a little at a time, so that whoever asks for little meanwhile does not wait for them."""

import asyncio
from collections import deque

FREE_BYTES = 1 << 20  # of a body, that come at any pace
PIECES = 1  # of all larger bodies together, in one turn of the event loop; uvloop's are of 256 KiB


class Pacing:
    """First come, first served. Belongs to one event loop."""

    def __init__(self) -> None:
        self._left = PIECES  # in this turn
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def piece(self) -> None:
        """Wait until one more piece may be asked for."""
        loop = asyncio.get_running_loop()
        if self._left == PIECES:
            loop.call_soon(self._turn)
        if self._left:
            self._left -= 1
            return
        mine = loop.create_future()
        self._waiting.append(mine)
        await mine

    def _turn(self) -> None:
        """The event loop has looked for what has arrived."""
        self._left = PIECES
        while self._left and self._waiting:
            if not (next_one := self._waiting.popleft()).done():
                next_one.set_result(None)
                self._left -= 1
        if self._left < PIECES:
            asyncio.get_running_loop().call_soon(self._turn)
