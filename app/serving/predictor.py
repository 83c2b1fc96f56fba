"""Predicts one image: decode and letterbox -> batch -> engine -> detections in the image's own pixels.

Decoding with letterboxing, NMS of many boxes, and drawing each have a thread pool; their C code releases the GIL. The
engine runs on the batcher's instances. The event loop only passes work on.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

from app.errors import DeadlineExceeded, Overloaded
from app.model import ModelInfo
from app.serving.batcher import Answer, Batcher
from app.serving.prediction import FramePrediction, Prediction, Timings, detections_of, difference_of
from app.system.gather import together
from app.system.metrics import Metrics
from app.system.threads import Threads, checkpoint
from app.vision import draw, masks, postprocess, preprocess
from app.vision.postprocess import Detections, Outputs, Thresholds
from app.vision.preprocess import LetterboxTransform, Pixels, Preprocessor

T = TypeVar("T")
Turns = AbstractAsyncContextManager[Any]
NO_TURNS: Turns = nullcontext()  # a request with one image does not limit its own decoding

log = logging.getLogger("yolopard.predictor")

SHADOW_DEADLINE_S = 60.0
MAX_WAIT_RATIO = 0.8  # of the time to the deadline that the wait for earlier images may take
EMA_WEIGHT = 0.05  # of the newest image in the moving average of decoding time
DECODE_STUCK_S = 10.0  # then a decoder counts as stuck: app.vision.formats limits the worst image to a few seconds
DRAW_STUCK_S = 60.0  # the same for drawing and encoding
MAX_INLINE_BOXES = 32  # above the threshold; their NMS takes 0.1 ms, which the event loop runs itself


class Predictor:
    """Admits requests and runs their images through the thread pools and batchers. Belongs to one event loop."""

    def __init__(
        self,
        model: ModelInfo,
        preprocessor: Preprocessor,
        batchers: dict[str, Batcher],  # by engine: first the serving engine, then the one it is compared with
        metrics: Metrics,
        *,
        threads: int,
        max_pending: int,
        shares_cores: bool,  # True: the engine runs on the cores that also decode
        shadow: float,  # fraction of the images that the second engine also runs on
    ) -> None:
        self.model = model
        self.engines = list(batchers)
        self._batchers = batchers
        self._shadow_share = shadow if len(batchers) > 1 else 0
        self._shadow: asyncio.Task[None] | None = None
        self._metrics = metrics
        # One more than cores: it works while another waits for the GIL. 14 % more images (loadtest/RESULTS.md).
        self._decoders = Threads(threads + 1, "decode", patience_s=DECODE_STUCK_S)
        self._finishers = Threads(threads, "finish")  # a pool of its own, not queued behind decoding
        self._drawers = Threads(max(1, threads // 2), "draw", patience_s=DRAW_STUCK_S)  # an image takes seconds
        self._preprocessor = preprocessor
        self._max_pending = max_pending
        self._threads, self._shares_cores = threads, shares_cores
        self._decode_s = 0.0  # recent CPU seconds per image, on one core
        self._pending = 0
        self._images = 0  # that `_predict` is working on
        metrics.pending.labels(model.name).set_function(lambda: self._pending)

    @property
    def alive(self) -> bool:
        """False if the serving engine no longer works."""
        return self._batchers[self.engines[0]].alive

    @property
    def stuck(self) -> int:
        """Number of threads that have decoded one image for DECODE_STUCK_S, or drawn one for DRAW_STUCK_S."""
        return self._decoders.stuck + self._drawers.stuck

    @property
    def pending(self) -> int:
        """Number of requests that have been read and have no response yet."""
        return self._pending

    @property
    def retry_after_s(self) -> int:
        """Seconds until a refused client should retry: the time for the pending images, at least 1 s."""
        return max(1, math.ceil(self._wait_s()))

    def _wait_s(self) -> float:
        """Return the estimated seconds for the images in progress, at the recent pace."""
        decode_s, engine_s = self._decode_s / self._threads, self._batchers[self.engines[0]].pace_s
        return self._images * (decode_s + engine_s if self._shares_cores else max(decode_s, engine_s))

    def require_room(self, deadline_s: float) -> None:
        """Raise Overloaded if no slot is free, or if the estimated wait is above MAX_WAIT_RATIO of `deadline_s`.

        Such a request would take the slot and the decoding time of one that can meet its deadline.
        """
        if self._pending >= self._max_pending:
            raise Overloaded(f"the server is already processing {self._pending} requests, the maximum")
        if (wait_s := self._wait_s()) > deadline_s * MAX_WAIT_RATIO:
            raise Overloaded(f"a response takes {wait_s:.1f} s at present, and the deadline is {deadline_s:.4g} s")

    @contextmanager
    def admission_slot(self, deadline_s: float) -> Iterator[None]:
        """Hold a slot from when the request has been read until its response is written.

        Raises Overloaded as `require_room` does.
        """
        self.require_room(deadline_s)
        self._pending += 1
        try:
            yield
        finally:
            self._pending -= 1

    def turns(self, images: int) -> Turns:
        """Return the `turns` of `predict` for a request with this number of images.

        They limit how many of its images are decoded at a time, so that other requests are not delayed.
        """
        return NO_TURNS if images == 1 else asyncio.Semaphore(self._threads)

    async def predict(
        self,
        image: bytes | Pixels,
        thresholds: Thresholds,
        deadline: float,
        engines: Sequence[str],
        *,
        turns: Turns = NO_TURNS,
        shadowed: bool = False,
    ) -> list[Prediction]:
        """Return one prediction per engine for an image, encoded or as uint8 [H, W, 3] RGB.

        `deadline` is a loop time; if `shadowed`, the second engine may also run on the frame afterwards. Raises a
        RequestError for the image and a ServiceError for the engine.
        """

        def finish(outputs: Outputs, transform: LetterboxTransform) -> Detections:
            return detections_of(outputs, transform, thresholds, self.model)

        prepare = partial(self._preprocessor, image)
        transform, found = await self._predict(prepare, finish, thresholds, deadline, engines, turns, shadowed)
        return [Prediction(transform, *each) for each in found]

    async def predict_frame(
        self,
        make: Callable[[], Pixels],
        thresholds: Thresholds,
        deadline: float,
        turns: Turns = NO_TURNS,
    ) -> FramePrediction:
        """Like `predict`, with the serving engine only, for an image that the client has letterboxed.

        `make` returns the frame, uint8 [H, W, 3] of a shape that the model takes; it is called on a decoding thread.
        """

        def prepare() -> tuple[LetterboxTransform, Pixels]:
            frame = make()
            return preprocess.whole(frame), frame

        def finish(outputs: Outputs, _: LetterboxTransform) -> Outputs:
            return postprocess.keep(outputs, thresholds, self.model)

        _, found = await self._predict(prepare, finish, thresholds, deadline, self.engines[:1], turns, shadowed=True)
        return FramePrediction(*found[0])

    async def _predict(
        self,
        prepare: Callable[[], tuple[LetterboxTransform, Pixels]],
        finish: Callable[[Outputs, LetterboxTransform], T],
        thresholds: Thresholds,
        deadline: float,
        engines: Sequence[str],
        turns: Turns,
        shadowed: bool,
    ) -> tuple[LetterboxTransform, list[tuple[T, Timings, int, str]]]:
        """Return the letterbox transform and, per engine, (result of `finish`, timings, batch size, engine)."""
        self._images += 1
        try:
            async with asyncio.timeout_at(deadline):
                async with turns:
                    (transform, frame), decode_s = await _on(self._decoders, lambda: self._timed(prepare))
                answers = await self._infer(engines, frame, deadline)
                found = [await self._finish(answer, transform, thresholds, finish) for answer in answers]
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the image was processed") from None
        finally:
            self._images -= 1
        if shadowed and random.random() < self._shadow_share:  # noqa: S311
            self._begin_shadow(frame, answers[0])
        results = []
        for engine, answer, (result, postprocess_s) in zip(engines, answers, found, strict=True):
            timings = Timings(decode_s, answer.queue_s, answer.infer_s, postprocess_s)
            for stage in Timings.__slots__:
                self._metrics.stage_seconds.labels(self.model.name, engine, stage).observe(getattr(timings, stage))
            results.append((result, timings, answer.batch_size, engine))
        return transform, results

    async def _infer(self, engines: Sequence[str], frame: Pixels, deadline: float) -> list[Answer]:
        """Run the engines at the same time. The first failure cancels the others."""
        if len(engines) == 1:
            return [await self._batchers[engines[0]].submit(frame, deadline)]
        return await together(self._batchers[engine].submit(frame, deadline) for engine in engines)

    def _begin_shadow(self, frame: Pixels, answer: Answer) -> None:
        """Start the second engine on the frame if it is idle. No request waits for it."""
        second = self._batchers[self.engines[1]]
        if not second.idle or (self._shadow is not None and not self._shadow.done()):
            self._metrics.shadow_images.labels(self.model.name, "skipped").inc()
        else:
            self._shadow = asyncio.create_task(self._run_shadow(frame, answer, second), name="shadow")

    async def _run_shadow(self, frame: Pixels, answer: Answer, second: Batcher) -> None:
        deadline = asyncio.get_running_loop().time() + SHADOW_DEADLINE_S
        try:
            other = await second.submit(frame, deadline)
            compare = partial(difference_of, answer.outputs, other.outputs, self.model)
            both, ours, theirs = (await _on(self._finishers, compare))[0]
        except Exception as error:  # no caller awaits this task, so the error is logged here
            log.warning("a shadow image was not compared: %s: %s", type(error).__name__, error)
            self._metrics.shadow_images.labels(self.model.name, "failed").inc()
            return
        self._metrics.shadow_images.labels(self.model.name, "seen").inc()
        for found_by, count in (("both", both), ("first", ours), ("second", theirs)):
            self._metrics.shadow.labels(self.model.name, self.engines[0], found_by).inc(count)

    async def draw(self, data: bytes, prediction: Prediction, kind: str) -> bytes:
        """Return the image with its detections drawn, as "jpeg" or "png" by `kind`."""

        def work() -> bytes:
            pixels = preprocess.decode(data, self._preprocessor.max_pixels, self._preprocessor.max_side)
            found, transform = prediction.detections, prediction.transform
            outlines = []
            for mask in found.masks or ():
                checkpoint()
                outlines.append(masks.polygon(mask, transform))
            drawn = draw.draw(pixels, found, self.model.names, outlines)
            checkpoint()
            return draw.encode(drawn, kind)

        encoded, _ = await _on(self._drawers, work)
        return encoded

    async def finish(self, work: Callable[[], T]) -> T:
        """Run the last work for a response on a thread and return its result."""
        return (await _on(self._finishers, work))[0]

    async def close(self) -> None:
        """Finish the admitted images, then end the threads."""
        self._shadow_share = 0
        await asyncio.gather(*(batcher.close() for batcher in self._batchers.values()))
        if self._shadow is not None:
            await asyncio.gather(self._shadow, return_exceptions=True)
        for pool in (self._decoders, self._drawers, self._finishers):
            pool.close()

    async def _finish(
        self,
        answer: Answer,
        transform: LetterboxTransform,
        thresholds: Thresholds,
        finish: Callable[[Outputs, LetterboxTransform], T],
    ) -> tuple[T, float]:
        """Return the result of `finish` and its seconds. Runs here if that is faster than passing it to a thread."""
        work = partial(finish, answer.outputs, transform)
        if _takes_long(answer.outputs, thresholds, self.model):
            return await _on(self._finishers, work)
        started = time.perf_counter()
        return work(), time.perf_counter() - started

    def _timed(self, prepare: Callable[[], tuple[LetterboxTransform, Pixels]]) -> tuple[LetterboxTransform, Pixels]:
        started = time.thread_time()
        transform, frame = prepare()
        self._decode_s += EMA_WEIGHT * (time.thread_time() - started - self._decode_s)
        return transform, frame


async def _on(pool: Threads, work: Callable[[], T]) -> tuple[T, float]:
    """Return the result of `work` and its seconds, including the wait for a thread."""
    started = time.perf_counter()
    result = await pool.run(work)
    return result, time.perf_counter() - started


def _takes_long(outputs: Outputs, thresholds: Thresholds, model: ModelInfo) -> bool:
    """Return True for masks and for more than MAX_INLINE_BOXES candidates."""
    if model.task in ("classify", "segment"):
        return model.task == "segment"
    return postprocess.candidates(outputs[0], thresholds.conf) > MAX_INLINE_BOXES
