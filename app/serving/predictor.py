"""One image, start to end: decode and letterbox -> batch -> engine -> detections in the image's own pixels.

Decoding, letterboxing and drawing run on a pool of CPU threads, where the C code lets go of the GIL, and so does NMS of
many boxes, on threads of its own; the engine runs on the batcher's instances; the event loop only passes work on.
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
ALONE: Turns = nullcontext()  # of a request with one image

log = logging.getLogger("yolopard.predictor")

SHADOW_DEADLINE_S = 60.0
MAX_WAIT_RATIO = 0.8  # share of the deadline that the wait for the images before may take
LEARN = 0.05  # weight of the newest image in what is known of decoding
PATIENCE_S = 10.0  # with a decoder: the limits of app.vision.formats keep the worst image to a few seconds
DRAW_PATIENCE_S = 60.0  # with drawing and encoding
MAX_INLINE_BOXES = 32  # boxes over the threshold; their NMS takes 0.1 ms


class Predictor:
    """Admission, the thread pools, and an image's way through them. Belongs to one event loop."""

    def __init__(
        self,
        model: ModelInfo,
        preprocessor: Preprocessor,
        batchers: dict[str, Batcher],  # by engine: the one that serves, then the one it is compared with
        metrics: Metrics,
        *,
        threads: int,
        max_pending: int,
        shares_cores: bool,  # the engine works on the cores that decode
        shadow: float,  # share of the images that the second engine looks at as well
    ) -> None:
        self.model = model
        self.engines = list(batchers)
        self._batchers = batchers
        self._shadow_share = shadow if len(batchers) > 1 else 0
        self._shadow: asyncio.Task[None] | None = None
        self._metrics = metrics
        # One more than cores, to work while another waits for the interpreter: 14 % more images (loadtest/RESULTS.md).
        self._decoders = Threads(threads + 1, "decode", patience_s=PATIENCE_S)
        self._finishers = Threads(threads, "finish")  # not behind images yet to decode
        self._drawers = Threads(max(1, threads // 2), "draw", patience_s=DRAW_PATIENCE_S)  # pictures take seconds
        self._preprocessor = preprocessor
        self._max_pending = max_pending
        self._threads, self._shares_cores = threads, shares_cores
        self._decode_s = 0.0  # of an image, on one core, of late
        self._pending = 0
        self._images = 0  # on their way through `predict`
        metrics.pending.labels(model.name).set_function(lambda: self._pending)

    @property
    def alive(self) -> bool:
        """False when the engine that serves is not able to answer."""
        return self._batchers[self.engines[0]].alive

    @property
    def stuck(self) -> int:
        """Decoders that have not come back from an image in PATIENCE_S."""
        return self._decoders.stuck + self._drawers.stuck

    @property
    def pending(self) -> int:
        """Requests that have been read and are not answered yet."""
        return self._pending

    @property
    def retry_after_s(self) -> int:
        """When a refused client may come again: the time the pending ones take, at least 1 s."""
        return max(1, math.ceil(self._wait_s()))

    def _wait_s(self) -> float:
        """What the images on their way will take, at the pace of late."""
        decode_s, engine_s = self._decode_s / self._threads, self._batchers[self.engines[0]].pace_s
        return self._images * (decode_s + engine_s if self._shares_cores else max(decode_s, engine_s))

    def require_room(self, deadline_s: float) -> None:
        """Raises Overloaded where a request would find no place, or would hardly be answered in `deadline_s` from now:
        it would take the place, and the decoding, of one that can be.
        """
        if self._pending >= self._max_pending:
            raise Overloaded(f"{self._pending} requests are being answered already, as many as the server takes")
        if (wait_s := self._wait_s()) > deadline_s * MAX_WAIT_RATIO:
            raise Overloaded(f"an answer takes {wait_s:.1f} s at present, and the deadline is {deadline_s:.4g} s")

    @contextmanager
    def admission_slot(self, deadline_s: float) -> Iterator[None]:
        """Hold a place, from when a request has been read until its answer is written. Raises what `require_room`
        raises.
        """
        self.require_room(deadline_s)
        self._pending += 1
        try:
            yield
        finally:
            self._pending -= 1

    def turns(self, images: int) -> Turns:
        """For `predict`: a request of so many images has them decoded a few at a time, so that those of others come in
        between.
        """
        return ALONE if images == 1 else asyncio.Semaphore(self._threads)

    async def predict(
        self,
        image: bytes | Pixels,
        thresholds: Thresholds,
        deadline: float,
        engines: Sequence[str],
        *,
        turns: Turns = ALONE,
        shadowed: bool = False,
    ) -> list[Prediction]:
        """Everything between an image, encoded or as uint8 [H, W, 3] RGB, and its detections by each of the engines.

        `deadline` is a loop time; if `shadowed`, the second engine may look at the frame afterwards. Raises a
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
        turns: Turns = ALONE,
    ) -> FramePrediction:
        """As `predict`, by the engine that serves, for an image that the client has letterboxed.

        `make` gives the frame, uint8 [H, W, 3] of sides that the model takes; it is called where others are decoded.
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
        """Where the image lies in its frame, and of each engine what it found, how long it took, in which batch."""
        self._images += 1
        try:
            async with asyncio.timeout_at(deadline):
                async with turns:
                    (transform, frame), decode_s = await _on(self._decoders, lambda: self._timed(prepare))
                answers = await self._ask(engines, frame, deadline)
                found = [await self._finish(answer, transform, thresholds, finish) for answer in answers]
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the image was answered") from None
        finally:
            self._images -= 1
        if shadowed and random.random() < self._shadow_share:  # noqa: S311
            self._begin_shadow(frame, answers[0])
        seen = []
        for engine, answer, (what, postprocess_s) in zip(engines, answers, found, strict=True):
            timings = Timings(decode_s, answer.queue_s, answer.infer_s, postprocess_s)
            for stage in Timings.__slots__:
                self._metrics.stage_seconds.labels(self.model.name, engine, stage).observe(getattr(timings, stage))
            seen.append((what, timings, answer.batch_size, engine))
        return transform, seen

    async def _ask(self, engines: Sequence[str], frame: Pixels, deadline: float) -> list[Answer]:
        """At the same time. The first failure ends it, and the frame leaves the queues of the others."""
        if len(engines) == 1:
            return [await self._batchers[engines[0]].submit(frame, deadline)]
        return await together(self._batchers[engine].submit(frame, deadline) for engine in engines)

    def _begin_shadow(self, frame: Pixels, answer: Answer) -> None:
        """Let the second engine look at the frame too, if it has nothing else to do: nobody ever waits for it."""
        second = self._batchers[self.engines[1]]
        if not second.idle or (self._shadow is not None and not self._shadow.done()):
            self._metrics.shadow_images.labels(self.model.name, "skipped").inc()
        else:
            self._shadow = asyncio.create_task(self._look_again(frame, answer, second), name="shadow")

    async def _look_again(self, frame: Pixels, answer: Answer, second: Batcher) -> None:
        deadline = asyncio.get_running_loop().time() + SHADOW_DEADLINE_S
        try:
            other = await second.submit(frame, deadline)
            compare = partial(difference_of, answer.outputs, other.outputs, self.model)
            both, ours, theirs = (await _on(self._finishers, compare))[0]
        except Exception as error:  # nobody waits for it, so nobody else would tell
            log.warning("a shadow image was not compared: %s: %s", type(error).__name__, error)
            self._metrics.shadow_images.labels(self.model.name, "failed").inc()
            return
        self._metrics.shadow_images.labels(self.model.name, "seen").inc()
        for found_by, count in (("both", both), ("first", ours), ("second", theirs)):
            self._metrics.shadow.labels(self.model.name, self.engines[0], found_by).inc(count)

    async def draw(self, data: bytes, prediction: Prediction, kind: str) -> bytes:
        """The image with its detections drawn, as "jpeg" or "png"."""

        def work() -> bytes:
            pixels = preprocess.decode(data, self._preprocessor.max_pixels, self._preprocessor.max_side)
            found, transform = prediction.detections, prediction.transform
            outlines = []
            for mask in found.masks or ():
                checkpoint()
                outlines.append(masks.polygon(mask, transform))
            picture = draw.draw(pixels, found, self.model.names, outlines)
            checkpoint()
            return draw.encode(picture, kind)

        picture, _ = await _on(self._drawers, work)
        return picture

    async def finish(self, work: Callable[[], T]) -> T:
        """What is left to do for an answer, on a thread."""
        return (await _on(self._finishers, work))[0]

    async def close(self) -> None:
        """Answer what was admitted, then let the threads go."""
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
        """What came out and the seconds it took. Few candidates take less time than handing them to another thread."""
        work = partial(finish, answer.outputs, transform)
        if _takes_long(answer.outputs, thresholds, self.model):
            return await _on(self._finishers, work)
        started = time.perf_counter()
        return work(), time.perf_counter() - started

    def _timed(self, prepare: Callable[[], tuple[LetterboxTransform, Pixels]]) -> tuple[LetterboxTransform, Pixels]:
        started = time.thread_time()
        transform, frame = prepare()
        self._decode_s += LEARN * (time.thread_time() - started - self._decode_s)
        return transform, frame


async def _on(pool: Threads, work: Callable[[], T]) -> tuple[T, float]:
    """The work's result and the seconds it took, waiting for a thread included."""
    started = time.perf_counter()
    result = await pool.run(work)
    return result, time.perf_counter() - started


def _takes_long(outputs: Outputs, thresholds: Thresholds, model: ModelInfo) -> bool:
    """Masks and many boxes do."""
    if model.task in ("classify", "segment"):
        return model.task == "segment"
    return postprocess.candidates(outputs[0], thresholds.conf) > MAX_INLINE_BOXES
