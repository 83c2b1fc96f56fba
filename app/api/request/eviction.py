"""What waits for a client gives up where its memory or its place is needed."""

import asyncio
import math
from contextlib import suppress
from types import TracebackType
from typing import Self

from app.errors import Overloaded
from app.serving.inflight import Share


class Evictable:
    """While entered, the share may be evicted, which raises Overloaded; TimeoutError at the deadline, a loop time."""

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
            raise Overloaded("the client was too slow, and what its request held was needed") from None

    def _evict(self) -> None:
        """Called on any thread."""
        self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        with suppress(RuntimeError):  # it is over
            self._timeout.reschedule(self._loop.time())
