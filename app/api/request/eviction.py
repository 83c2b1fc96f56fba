"""Ends a request that waits for its client when its memory or slot is needed for other requests."""

import asyncio
import math
from contextlib import suppress
from types import TracebackType
from typing import Self

from app.errors import Overloaded
from app.serving.inflight import Share


class Evictable:
    """While entered, the share may be evicted: raises Overloaded. Raises TimeoutError at the deadline (loop time)."""

    __slots__ = ("_loop", "_share", "_timeout")

    def __init__(self, share: Share, deadline: float = math.inf) -> None:
        self._loop = asyncio.get_running_loop()
        self._share = share
        self._timeout = asyncio.timeout_at(None if deadline == math.inf else deadline)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._share.begin_waiting(self._evict)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._share.end_waiting()
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            if not self._share.evicted:
                raise
            raise Overloaded("the client was too slow, and the memory or slot of its request was needed") from None

    def _evict(self) -> None:
        """May be called on any thread."""
        self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        with suppress(RuntimeError):  # the context has already ended
            self._timeout.reschedule(self._loop.time())
