"""Coroutines that run at the same time, of which the first failure ends all."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from app.errors import YolopardError, forget

T = TypeVar("T")


async def together(works: Iterable[Coroutine[Any, Any, T]], what: str = "") -> list[T]:
    """The results, in the order of the works. The first error ends the others.

    With `what` a YolopardError says which of several it was: "file 2 of 3: ...".
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
            task.add_done_callback(_let_go)


def _let_go(task: asyncio.Task[Any]) -> None:
    """Only one error is raised, others are nobody's."""
    if not task.cancelled():
        forget(task.exception())
