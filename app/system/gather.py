"""Runs coroutines at the same time and stops all of them at the first error."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from app.errors import YolopardError, forget

T = TypeVar("T")


async def together(works: Iterable[Coroutine[Any, Any, T]], what: str = "") -> list[T]:
    """Return the results in the order of `works`. Raises the first error and cancels the others.

    With `what`, a YolopardError says which one failed: "file 2 of 3: ...".
    """
    tasks = [asyncio.create_task(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    except YolopardError as error:
        if not what or len(tasks) == 1:
            raise
        failed = next(i for i, task in enumerate(tasks, 1) if task.done() and task.exception() is error)
        raise type(error)(f"{what} {failed} of {len(tasks)}: {error}") from error
    finally:
        for task in tasks:
            task.cancel()
            task.add_done_callback(_forget_error)


def _forget_error(task: asyncio.Task[Any]) -> None:
    """Mark the task's error as retrieved, or asyncio would log it, and drop its tracebacks."""
    if not task.cancelled():
        forget(task.exception())
