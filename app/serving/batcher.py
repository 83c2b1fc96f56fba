"""Jobs -> batches -> the engine's instances.

A batch starts when an instance is free and the batch is full or its oldest job has waited `max_wait`. If all instances
share one device, a batch that is not full also waits until the device is nearly free: starting sooner gains nothing.

All jobs of a batch have the same frame shape. The shape whose oldest job has waited longest goes first. If a batch
fails, each of its jobs gets its own error. Call all methods on one event loop; only `infer` runs on other threads.
"""

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from functools import partial

from app.backends import Engine
from app.errors import DeadlineExceeded, InferenceFailed, Stopping
from app.serving.profile import HANDLING_S, EngineProfile
from app.system.metrics import Metrics
from app.system.threads import Threads
from app.vision.postprocess import Outputs
from app.vision.preprocess import Pixels

log = logging.getLogger("yolopard.batcher")

MAX_FAILURES = 3  # in a row; then the server is not ready until a batch succeeds
EMA_WEIGHT = 0.05  # of the newest batch in the moving average of the device's slowdown

_DEAD = "the engine has stopped working: restart the server"


@dataclass(frozen=True, slots=True)
class Answer:
    """The engine's outputs for one frame, the size of its batch, and seconds in the queue and in the engine."""

    outputs: Outputs
    batch_size: int
    queue_s: float
    infer_s: float


@dataclass(slots=True, eq=False)
class _Job:
    frame: Pixels
    answer: asyncio.Future[Answer]
    enqueued_at: float  # loop time
    deadline: float  # loop time
    enqueued: float  # perf_counter, for `queue_s`: the clock of uvloop only has whole milliseconds


@dataclass(frozen=True, slots=True)
class _Batch:
    jobs: list[_Job]
    reason: str


class Batcher:
    """Owns the queue, one task per instance, and the device threads."""

    def __init__(
        self,
        engine: Engine,
        *,
        instances: int,
        profile: EngineProfile,
        one_device: bool,  # True: the instances share one device; False: each has its own cores
        max_wait_s: float,
        metrics: Metrics,
        model: str,
        name: str,
        nice: int = 0,  # of the device threads, and of threads that they start
    ) -> None:
        self._engine = engine
        self._instances = instances
        self._busy_s = [profile.busy_s(size) for size in range(profile.batch + 1)]
        self._lead_s = [profile.lead_s(size) for size in range(profile.batch + 1)]
        self._full_s = 1 / profile.images_per_second
        self._one_device = one_device
        self._max_batch = profile.batch
        self._max_wait_s = max_wait_s
        self._metrics = metrics
        self._labels = (model, name)
        self._slowdown = 1.0  # of the device, relative to warm-up
        self._device_free = 0.0  # loop time at which the device is expected to finish its batches
        self._nice = nice
        self._waiting: dict[tuple[int, ...], deque[_Job]] = {}  # by frame shape; never holds an empty queue
        self._flying: set[_Job] = set()
        self._changed = asyncio.Event()
        self._stopping = False
        self._failures = 0  # batches in a row
        self._tasks: list[asyncio.Task[None]] = []
        self._loop = asyncio.get_running_loop()
        self._depth = metrics.queue_depth.labels(model, name)
        self._depth.set_function(self.depth)

    def start(self) -> None:
        """Start one task per instance."""
        for instance in range(self._instances):
            task = asyncio.create_task(self._serve(instance), name=f"instance-{instance}")
            task.add_done_callback(self._instance_ended)
            self._tasks.append(task)

    @property
    def alive(self) -> bool:
        """False if an instance has ended, or if the last MAX_FAILURES batches failed."""
        return self._instances_run() and self._failures < MAX_FAILURES

    def _instances_run(self) -> bool:
        return bool(self._tasks) and not any(task.done() for task in self._tasks)

    @property
    def idle(self) -> bool:
        """True if no job waits and none is on the device."""
        return not self._waiting and not self._flying

    @property
    def pace_s(self) -> float:
        """Recent seconds of device time per image, in full batches."""
        return self._slowdown * self._full_s

    def depth(self) -> int:
        """Number of frames that wait for an instance."""
        return sum(len(jobs) for jobs in self._waiting.values())

    async def submit(self, frame: Pixels, deadline: float) -> Answer:
        """Return the engine's outputs for a frame, uint8 [H, W, 3]. `deadline` is a loop time.

        Raises Stopping, DeadlineExceeded or InferenceFailed. If cancelled, removes the frame from the queue.
        """
        if self._stopping:
            raise Stopping("the server is shutting down: send the request to another one")
        if not self._instances_run():
            raise InferenceFailed(_DEAD)
        job = _Job(frame, self._loop.create_future(), self._loop.time(), deadline, time.perf_counter())
        self._waiting.setdefault(frame.shape, deque()).append(job)
        self._changed.set()
        try:
            return await job.answer
        except asyncio.CancelledError:
            self._forget(job)
            raise

    def _forget(self, job: _Job) -> None:
        """Remove a cancelled job, if it is still in the queue."""
        jobs = self._waiting.get(job.frame.shape, deque())
        if job in jobs:
            jobs.remove(job)
            if not jobs:
                del self._waiting[job.frame.shape]

    async def close(self) -> None:
        """Run all queued jobs without waiting for fuller batches, then end the instances."""
        self._stopping = True
        self._changed.set()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, instance: int) -> None:
        device = Threads(1, f"instance-{instance}", partial(_be_nice, self._nice))
        try:
            while (batch := await self._next_batch()).jobs:
                await self._run(instance, device, batch)
        finally:
            device.close()

    async def _next_batch(self) -> _Batch:
        """Wait for the next batch and return it; an empty batch means the batcher stops."""
        while True:
            if (batch := self._take()).jobs:
                return batch
            if self._stopping and not self._waiting:
                return batch
            due = min(map(self._due, self._waiting.values()), default=None)
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._changed.wait()

    def _take(self) -> _Batch:
        """Return a batch that may start now, or an empty one. Fails jobs whose deadline has passed."""
        now = self._loop.time()
        while ready := [(jobs, reason) for jobs in self._waiting.values() if (reason := self._reason(jobs, now))]:
            jobs, reason = min(ready, key=lambda entry: entry[0][0].enqueued_at)
            batch: list[_Job] = []
            while jobs and len(batch) < self._max_batch:
                job = jobs.popleft()
                if job.deadline > now:
                    batch.append(job)
                else:
                    _fail(job, DeadlineExceeded("the deadline passed while the image waited for the engine"))
            if not jobs:
                del self._waiting[job.frame.shape]
            if batch:
                return _Batch(batch, reason)
        return _Batch([], "")

    def _reason(self, jobs: deque[_Job], now: float) -> str | None:
        """Return why a batch of these jobs may start now; None if it must wait."""
        if len(jobs) >= self._max_batch:
            return "full"
        if self._stopping:
            return "drain"
        if now < self._due(jobs):
            return None
        return "timeout" if self._max_wait_s else "idle"

    def _due(self, jobs: deque[_Job]) -> float:
        """Return the loop time at which a batch of these jobs starts even if it is not full."""
        due = jobs[0].enqueued_at + self._max_wait_s
        if not self._one_device or not self._flying:
            return due
        return max(due, self._device_free - self._lead_s[len(jobs)])

    async def _run(self, instance: int, device: Threads, batch: _Batch) -> None:
        jobs = batch.jobs
        low_latency, now = not self._flying and not self._waiting, self._loop.time()
        begins = max(now, self._device_free) if self._flying else now
        self._device_free = begins + self._busy_s[len(jobs)] * self._slowdown
        self._flying.update(jobs)
        started = time.perf_counter()
        try:
            found = await device.run(partial(self._infer_jobs, instance, jobs, low_latency))
        except _InstanceDied:
            raise
        except Exception as error:
            self._failures += 1
            log.exception("a batch of %d failed on %s", len(jobs), self._labels[1])
            for job in jobs:
                failure = InferenceFailed("the engine failed on this batch")
                failure.__cause__ = error
                _fail(job, failure)
        else:
            self._failures = 0
            infer_s = time.perf_counter() - started
            reported = self._engine.device_seconds(instance)
            device_s = infer_s if reported is None else reported
            self._count(batch, device_s)
            if self._one_device or not low_latency:
                self._update_slowdown(len(jobs), device_s)
            for job, outputs in zip(jobs, found, strict=True):
                if not job.answer.done():
                    job.answer.set_result(Answer(outputs, len(jobs), started - job.enqueued, infer_s))
        self._flying.difference_update(jobs)

    def _update_slowdown(self, size: int, device_s: float) -> None:
        expected = self._busy_s[size] * (1 if self._one_device else self._instances)
        self._slowdown += EMA_WEIGHT * (device_s / max(expected, HANDLING_S) - self._slowdown)

    def _infer_jobs(self, instance: int, jobs: list[_Job], low_latency: bool) -> list[Outputs]:
        """Run the batch on the engine; called on a device thread."""
        try:
            found = self._engine.infer(instance, [job.frame for job in jobs], low_latency=low_latency)
        except Exception:
            raise
        except BaseException as error:  # the executor would pass it on, and it would end the event loop
            raise _InstanceDied from error
        if len(found) != len(jobs):
            raise InferenceFailed(f"the engine returned {len(found)} results for {len(jobs)} images")
        return found

    def _count(self, batch: _Batch, device_s: float) -> None:
        size = len(batch.jobs)
        self._metrics.images.labels(*self._labels).inc(size)
        self._metrics.batch_size.labels(*self._labels).observe(size)
        self._metrics.batches.labels(*self._labels, batch.reason).inc()
        self._metrics.device_seconds.labels(*self._labels).inc(device_s)

    def _instance_ended(self, task: "asyncio.Task[None]") -> None:
        """Fail all jobs if an instance ends before the batcher stops: the device no longer works."""
        cause = None if task.cancelled() else task.exception()
        if self._stopping and not task.cancelled() and cause is None:
            return
        name = self._labels[1]
        log.critical("%s of %s ended unexpectedly; all further images fail", task.get_name(), name, exc_info=cause)
        for job in [*self._flying, *(job for jobs in self._waiting.values() for job in jobs)]:
            failure = InferenceFailed(_DEAD)
            failure.__cause__ = cause
            _fail(job, failure)
        self._waiting.clear()


def _be_nice(nice: int) -> None:
    if nice:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)  # on Linux this affects only this thread


class _InstanceDied(Exception):
    """The device thread got an exception that is not an Exception, such as SystemExit."""


def _fail(job: _Job, error: Exception) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)
