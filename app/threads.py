"""Blocking work on threads, awaited in an event loop."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    """So many threads that share one queue. Belongs to the event loop in which it is made.

    asyncio's `run_in_executor` goes by two futures for each call, with locks and callbacks of their own.
    """

    def __init__(self, count: int, name: str, begin: Callable[[], None] = lambda: None) -> None:
        """`begin` is called on each thread first."""
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._begin = begin
        self._threads = [threading.Thread(target=self._serve, name=f"{name}-{i}", daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises. Cancelled before it has begun, it never begins."""
        done: asyncio.Future[T] = self._loop.create_future()
        self._queue.put((done, work))
        return await done

    def close(self) -> None:
        """Drop what has not begun, and wait for what has."""
        with contextlib.suppress(Empty):
            while entry := self._queue.get_nowait():
                entry[0].cancel()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        self._begin()
        while entry := self._queue.get():
            done, work = entry
            if not done.cancelled():
                self._answer(done, work)
            del entry, done, work  # or an image would be kept until the next one comes

    def _answer(self, done: asyncio.Future[T], work: Callable[[], T]) -> None:
        try:
            result = work()
        except BaseException as error:  # whoever waits must hear of it
            self._tell(_fail, done, error)
        else:
            self._tell(_succeed, done, result)

    def _tell(self, settle: Callable[..., None], *outcome: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(settle, *outcome)


def _succeed(done: asyncio.Future[T], result: T) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: asyncio.Future[Any], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)
