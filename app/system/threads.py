"""A thread pool for blocking work, awaited in an event loop."""

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

CLOSE_S = 2.0  # maximum wait of `close` if `patience_s` is set

_current = threading.local()


class Abandoned(Exception):
    """The caller of this work was cancelled."""


def checkpoint() -> None:
    """Raise Abandoned if the caller was cancelled, by a deadline or a disconnected client. Long work calls this
    regularly.
    """
    done: asyncio.Future[Any] | None = getattr(_current, "done", None)
    if done is not None and done.cancelled():
        raise Abandoned


class _Worker:
    """A thread and its current job: its future, and its start by time.monotonic()."""

    thread: threading.Thread
    job: tuple[asyncio.Future[Any], float] | None = None
    stuck = False


class Threads:
    """`count` threads that share one queue. Belongs to the event loop in which it is created.

    Cheaper than asyncio's `run_in_executor`, which needs two futures per call, each with locks and callbacks.
    """

    def __init__(
        self, count: int, name: str, begin: Callable[[], None] = lambda: None, patience_s: float | None = None
    ) -> None:
        """Start the threads, named `name`-0 and so on; each calls `begin` first.

        If work takes longer than `patience_s`, it fails with WorkStuck, and a new thread replaces its thread.
        """
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._begin, self._patience_s = begin, patience_s
        self._timer: asyncio.TimerHandle | None = None
        self._had_work = False  # work was queued since the timer last fired
        self._stuck: set[_Worker] = set()
        self._names = (f"{name}-{i}" for i in itertools.count())
        self._workers = [self._start() for _ in range(count)]

    @property
    def stuck(self) -> int:
        """Number of replaced threads that are still in their work."""
        return len(self._stuck)

    async def run(self, work: Callable[[], T]) -> T:
        """Return or raise what `work` does. Raises WorkStuck if it exceeds `patience_s`. If cancelled before it begins,
        `work` is not run.
        """
        done: asyncio.Future[T] = self._loop.create_future()
        self._queue.put((done, work))
        self._had_work = True
        if self._timer is None and self._patience_s is not None:
            self._timer = self._loop.call_later(self._patience_s, self._look_for_stuck, self._patience_s)
        return await done

    def close(self) -> None:
        """Cancel the queued work and wait for the running work, except for stuck threads."""
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
        """Replace threads whose job exceeds `patience_s`. Runs in the event loop while there is work."""
        again, self._had_work, self._timer = self._had_work, False, None
        now = soonest = time.monotonic()
        for i, worker in enumerate(self._workers):
            job = worker.job  # read once: the thread may change it at any time
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
        _fail(done, WorkStuck(f"the work on {worker.thread.name} did not finish in {patience_s:g} s"))

    def _serve(self, worker: _Worker) -> None:
        self._begin()
        while not worker.stuck and (entry := self._queue.get()):
            done, work = entry
            if not done.cancelled():
                worker.job = done, time.monotonic()
                _current.done = done
                self._answer(done, work)
                worker.job = _current.done = None
            del entry, done, work  # or they would keep an image until the next one arrives
        if worker.stuck:
            self._post(self._stuck.discard, worker)

    def _answer(self, done: asyncio.Future[T], work: Callable[[], T]) -> None:
        try:
            result = work()
        except BaseException as error:  # passed on to the caller of `run`
            self._post(_fail, done, error)
        else:
            self._post(_succeed, done, result)

    def _post(self, settle: Callable[..., None], *outcome: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(settle, *outcome)


def _succeed(done: asyncio.Future[T], result: T) -> None:
    if not done.done():
        done.set_result(result)


def _fail(done: asyncio.Future[Any], error: BaseException) -> None:
    if not done.done():
        done.set_exception(error)
