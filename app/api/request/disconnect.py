"""Cancels work when the client disconnects. FastAPI does not: https://github.com/fastapi/fastapi/issues/3766."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from starlette.requests import ClientDisconnect


@asynccontextmanager
async def unless_gone(request: Request) -> AsyncIterator[None]:
    """Cancel the work inside and raise ClientDisconnect if the client disconnects. Read the body first."""
    task = asyncio.current_task()
    assert task is not None
    disconnected = False

    async def watch() -> None:
        nonlocal disconnected
        while (await request.receive())["type"] != "http.disconnect":
            pass
        disconnected = True
        task.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if disconnected and not task.uncancel():  # it was cancelled only here
            raise ClientDisconnect from None
        raise
    finally:
        watching.cancel()
