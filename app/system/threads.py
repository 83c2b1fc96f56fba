"""Blocking work on threads, awaited in an event loop."""

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from app.errors import WorkStuck

T = TypeVar("T")

CLOSE_S = 2.0  # for which closing waits for threads that may be given up

_own = threading.local()


class Abandoned(Exception):
    """Nobody waits for this work any more."""


def checkpoint() -> None:
    """Called now and then by work that takes long: raises Abandoned where its caller was cancelled, by a deadline or a
    client that hung up.
    """
    done: asyncio.Future[Any] | None = getattr(_own, "done", None)
    if done is not None and done.cancelled():
        raise Abandoned


class _Worker:
    """A thread, and the work it is at: its future, and when it began."""

    thread: threading.Thread
    job: tuple[asyncio.Future[Any], float] | None = None
    stuck = False


class Threads:
    """So many threads that share one queue. Belongs to the event loop in which it is made.

    asyncio's `run_in_executor` goes by two futures for each call, with locks and callbacks of their own.
    """

    def __init__(
        self, count: int, name: str, begin: Callable[[], None] = lambda: None, patience_s: float | None = None
    ) -> None:
        """`begin` is called on each thread first. A thread whose work takes longer than `patience_s` is given up: the
        work fails with WorkStuck, and another thread takes its place.
        """
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._begin, self._patience_s = begin, patience_s
        self._timer: asyncio.TimerHandle | None = None
        self._given = False  # whether there was work since the timer went off
        self._stuck: set[_Worker] = set()
        self._names = (f"{name}-{i}" for i in itertools.count())
        self._workers = [self._start() for _ in range(count)]

    @property
    def stuck(self) -> int:
        """Threads that were given up and have not come back yet."""
        return len(self._stuck)

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises; WorkStuck if it does neither in time. Cancelled before it has begun, it never
        begins.
        """
        done: asyncio.Future[T] = self._loop.create_future()
        self._queue.put((done, work))
        self._given = True
        if self._timer is None and self._patience_s is not None:
            self._timer = self._loop.call_later(self._patience_s, self._look_for_stuck, self._patience_s)
        return await done

    def close(self) -> None:
        """Drop what has not begun, and wait for what has, though not for what is stuck."""
        if self._timer is not None:
            self._timer.cancel()
        with contextlib.suppress(Empty):
            while entry := self._queue.get_nowait():
                entry[0].cancel()
        for _ in self._workers:
            self._queue.put(None)
        until = None if self._patience_s is None else time.monotonic() + CLOSE_S
        for worker in self._workers:
            worker.thread.join(None if until is None else max(until - time.monotonic(), 0))

    def _start(self) -> _Worker:
        worker = _Worker()
        worker.thread = threading.Thread(target=self._serve, args=(worker,), name=next(self._names), daemon=True)
        worker.thread.start()
        return worker

    def _look_for_stuck(self, patience_s: float) -> None:
        """Runs in the event loop, once or twice for every `patience_s` in which there is work."""
        again, self._given, self._timer = self._given, False, None
        now = soonest = time.monotonic()
        for i, worker in enumerate(self._workers):
            job = worker.job  # the thread may change it at any time
            if job is None:
                continue
            again = True
            if now - job[1] < patience_s:
                soonest = min(soonest, job[1])
            else:
                self._give_up(worker, job[0], patience_s)
                self._workers[i] = self._start()
        if again or not self._queue.empty():
            self._timer = self._loop.call_later(soonest + patience_s - now, self._look_for_stuck, patience_s)

    def _give_up(self, worker: _Worker, done: asyncio.Future[Any], patience_s: float) -> None:
        worker.stuck = True
        self._stuck.add(worker)
        _fail(done, WorkStuck(f"the work on {worker.thread.name} did not come back in {patience_s:g} s"))

    def _serve(self, worker: _Worker) -> None:
        self._begin()
        while not worker.stuck and (entry := self._queue.get()):
            done, work = entry
            if not done.cancelled():
                worker.job = done, time.monotonic()
                _own.done = done
                self._answer(done, work)
                worker.job = _own.done = None
            del entry, done, work  # or an image would be kept until the next one comes
        if worker.stuck:
            self._tell(self._stuck.discard, worker)

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
