"""What waits for a client gives up where its memory or its place is needed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from app.errors import Overloaded
from app.serving.inflight import Share


@asynccontextmanager
async def evictable(share: Share) -> AsyncIterator[None]:
    """Raises Overloaded when the share is evicted meanwhile."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(None) as timeout:

            def stop() -> None:
                with suppress(RuntimeError):  # it is over
                    timeout.reschedule(loop.time())

            def evict() -> None:  # on any thread
                loop.call_soon_threadsafe(stop)

            share.begin_waiting(evict)
            yield
    except TimeoutError:
        if not share.evicted:
            raise
        raise Overloaded("the client was too slow, and what its request held was needed") from None
    finally:
        share.end_waiting()
