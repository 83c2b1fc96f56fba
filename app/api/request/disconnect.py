"""Work that ends when the client goes away. FastAPI does not do it: https://github.com/fastapi/fastapi/issues/3766."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from starlette.requests import ClientDisconnect


@asynccontextmanager
async def unless_gone(request: Request) -> AsyncIterator[None]:
    """The body must have been read. On a hang-up the work inside is cancelled, and ClientDisconnect is raised."""
    task = asyncio.current_task()
    assert task is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
        task.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if left and not task.uncancel():  # nobody else has cancelled it
            raise ClientDisconnect from None
        raise
    finally:
        watching.cancel()
