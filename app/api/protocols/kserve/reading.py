"""Reads messages of gRPC calls, with a limit on those in memory that are not counted yet."""

import asyncio
from typing import Any

import grpc

from app.errors import DeadlineExceeded, MalformedBody
from app.serving.inflight import Share

MAX_S, MAX_CONTENDED_S = 10.0, 2.0  # time limits for reading a message; the second while other calls wait
DRAIN_S = 2.0  # time limit for reading a message once the server stops


class Reads:
    """Reads at most `places` messages at a time, since gRPC reports a message only when it is complete.

    Use from one event loop only.
    """

    def __init__(self, places: int) -> None:
        self._places = asyncio.Semaphore(places)
        self._waiting = 0
        self._begun: dict[asyncio.Timeout, float] = {}  # loop time

    async def receive(self, context: Any, seconds: float, share: Share) -> bytes:
        """Read the one message of a call and count it in `share`. Raises DeadlineExceeded, MalformedBody or Overloaded.

        Reads from `context`: gRPC's iterator of messages would keep the last one until garbage collection.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(min(seconds, MAX_S)) as timeout:
                await self._take_place()
                try:
                    self._begun[timeout] = loop.time()
                    if self._waiting:
                        self._limit_reads(MAX_CONTENDED_S)
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
            self._limit_reads(MAX_CONTENDED_S)
        try:
            await self._places.acquire()
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Limit the reads in progress to DRAIN_S each."""
        self._limit_reads(DRAIN_S)

    def _limit_reads(self, seconds: float) -> None:
        """Shorten the time limit of the reads in progress to `seconds` from their start."""
        now = asyncio.get_running_loop().time()
        for timeout, began in self._begun.items():
            end = max(now, began + seconds)
            if not timeout.expired() and end < (timeout.when() or 0):
                timeout.reschedule(end)
