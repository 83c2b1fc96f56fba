"""Messages of gRPC calls, few of them in memory before they are counted."""

import asyncio
from typing import Any

import grpc

from app.errors import DeadlineExceeded, MalformedBody
from app.serving.inflight import Share

MAX_S, SLOW_S = 10.0, 2.0  # for which a message may be on its way; the second where others wait
DRAIN_S = 2.0  # the same, once the server stops


class Reads:
    """Places for messages that are being read. gRPC tells nothing of a message before it is whole. Belongs to one event
    loop.
    """

    def __init__(self, places: int) -> None:
        self._places = asyncio.Semaphore(places)
        self._waiting = 0
        self._begun: dict[asyncio.Timeout, float] = {}  # loop time

    async def receive(self, context: Any, seconds: float, share: Share) -> bytes:
        """The one message of a call, counted in `share`. Raises DeadlineExceeded, MalformedBody or Overloaded.

        From its context: gRPC's iterator of messages would keep the last one until the garbage is collected.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(min(seconds, MAX_S)) as timeout:
                await self._take_place()
                try:
                    self._begun[timeout] = loop.time()
                    if self._waiting:
                        self._hurry(SLOW_S)
                    data = await context.read()
                finally:
                    del self._begun[timeout]
                    self._places.release()
        except TimeoutError:
            raise DeadlineExceeded("the message did not arrive in time") from None
        if data is grpc.aio.EOF:
            raise MalformedBody("the call has no message")
        share.add_bytes(len(data))
        message: bytes = data
        return message

    async def _take_place(self) -> None:
        self._waiting += 1
        if self._places.locked():
            self._hurry(SLOW_S)
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """What is being read has a moment left."""
        self._hurry(DRAIN_S)

    def _hurry(self, seconds: float) -> None:
        """End what has been read for so long already, and the others when they have."""
        now = asyncio.get_running_loop().time()
        for timeout, began in self._begun.items():
            end = max(now, began + seconds)
            if not timeout.expired() and end < (timeout.when() or 0):
                timeout.reschedule(end)
