"""One image, start to end, without HTTP."""

import asyncio
import logging
import threading
import time
from types import SimpleNamespace

import fakes
import numpy as np
import pytest

from app.errors import DeadlineExceeded, Overloaded, UndecodableImage
from app.model import ModelInfo
from app.serving.batcher import Batcher
from app.serving.predictor import EMA_WEIGHT, MAX_INLINE_BOXES, MAX_WAIT_RATIO, Predictor, random
from app.system.metrics import Metrics
from app.vision.postprocess import Thresholds
from app.vision.preprocess import Preprocessor


@pytest.fixture
async def make(device, second):
    made = []

    def start(
        *,
        static=False,
        rect=True,
        fast_decode=False,
        max_pending=2,
        rate=10.0,
        shadow=0.0,
        engines=("fake",),
        threads=2,
        shares_cores=True,
    ) -> Predictor:
        metrics = Metrics()
        batchers = {}
        for name, each in zip(engines, (device, second), strict=False):
            batchers[name] = Batcher(
                each,
                instances=1,
                profile=fakes.profile(4, device_s=4 / rate),
                one_device=not shares_cores,
                max_wait_s=0,
                metrics=metrics,
                model="pets",
                name=name,
            )
            batchers[name].start()
        model = ModelInfo("pets", "detect", fakes.NAMES, stride=32, imgsz=64, shapes=((64, 64),) if static else None)
        predictor = Predictor(
            model,
            Preprocessor(64, 32, None if rect and not static else ((64, 64),), fast_decode, 10**6),
            batchers,
            metrics,
            threads=threads,
            max_pending=max_pending,
            shares_cores=shares_cores,
            shadow=shadow,
        )
        made.append(predictor)
        return predictor

    yield start
    for each in (device, second):
        each.gate.set()
    for predictor in made:
        await predictor.close()


def soon() -> float:
    return asyncio.get_running_loop().time() + 10


async def test_predict_frame_infers_the_frame_unchanged_and_returns_rows_in_its_pixels(make, device):
    predictor, frame = make(), np.full((96, 64, 3), 7, np.uint8)
    found = await predictor.predict_frame(lambda: frame, Thresholds(), soon())
    np.testing.assert_array_equal(found.outputs[0], fakes.ROWS[:2])
    np.testing.assert_array_equal(device.frames[0], frame)
    with pytest.raises(DeadlineExceeded):
        await predictor.predict_frame(lambda: frame, Thresholds(), soon() - 20)


@pytest.mark.parametrize(
    ("static", "rect", "frame"),
    [(False, True, (48 + 16, 64)), (False, False, (64, 64)), (True, True, (64, 64))],
)
async def test_a_frame_is_a_rectangle_unless_a_square_is_configured_or_the_graph_is_static(
    make, device, sample, static, rect, frame
):
    await make(static=static, rect=rect).predict(sample, Thresholds(), soon(), ["fake"])  # 640x480 -> 64x48, padded
    assert device.shapes == [(1, *frame, 3)]


async def test_a_wide_image_gets_a_wide_frame(make, device):
    import cv2

    wide = cv2.imencode(".png", np.zeros((30, 100, 3), np.uint8))[1].tobytes()
    (prediction,) = await make().predict(wide, Thresholds(), soon(), ["fake"])
    assert device.shapes == [(1, 32, 64, 3)]
    assert prediction.transform.image == (30, 100)


async def test_a_prediction_holds_the_time_of_every_stage(make, sample):
    (prediction,) = await make().predict(sample, Thresholds(), soon(), ["fake"])
    timings = prediction.timings
    assert min(timings.decode, timings.infer, timings.postprocess) > 0
    assert timings.queue >= 0
    assert prediction.batch_size == 1


async def test_a_bad_image_does_not_reach_the_device(make, device):
    with pytest.raises(UndecodableImage):
        await make().predict(b"\xff\xd8\xffno", Thresholds(), soon(), ["fake"])
    assert device.batches == []


async def test_a_passed_deadline_raises_deadline_exceeded(make, sample):
    with pytest.raises(DeadlineExceeded):
        await make().predict(sample, Thresholds(), asyncio.get_running_loop().time(), ["fake"])


async def test_admission_refuses_at_once_when_max_pending_is_reached(make):
    predictor = make(max_pending=2)
    with predictor.admission_slot(10), predictor.admission_slot(10):
        assert predictor.pending == 2
        with pytest.raises(Overloaded, match=r"^the server is already processing 2"), predictor.admission_slot(10):
            pass
        assert predictor.pending == 2
    assert predictor.pending == 0
    with predictor.admission_slot(10):
        pass


async def test_a_request_that_fails_releases_its_admission_slot(make):
    predictor = make()
    with pytest.raises(KeyError), predictor.admission_slot(10):
        raise KeyError
    assert predictor.pending == 0


# The expected duration of an answer: decoding on all cores plus the engine, for every admitted image.

DECODE_S = 6.0  # for an image on one core, so 3 s on two; the engine takes 2 s


async def admit_images(predictor: Predictor, device: fakes.Device, sample: bytes, count: int) -> list[asyncio.Task]:
    """Start `count` predictions: one is on the device and the others wait for it."""
    device.gate.clear()
    tasks = [asyncio.create_task(predictor.predict(sample, Thresholds(), soon(), ["fake"])) for _ in range(count)]
    await device.until_busy()
    (batcher,) = predictor._batchers.values()
    while batcher.depth() + len(batcher._flying) < count:  # noqa: ASYNC110
        await asyncio.sleep(0)
    predictor._decode_s = DECODE_S
    return tasks


@pytest.mark.parametrize(
    ("shares_cores", "count", "seconds"), [(True, 1, 5), (True, 3, 15), (False, 1, 3), (False, 3, 9)]
)
async def test_retry_after_is_the_time_that_the_admitted_images_take(
    make, device, sample, shares_cores, count, seconds
):
    """If decoding and the engine share the cores, their times add up; otherwise the longer one counts."""
    predictor = make(rate=0.5, shares_cores=shares_cores)
    assert predictor.retry_after_s == 1
    tasks = await admit_images(predictor, device, sample, count)
    assert predictor.retry_after_s == seconds
    device.gate.set()
    await asyncio.gather(*tasks)
    assert predictor.retry_after_s == 1


async def test_retry_after_follows_the_engine_if_it_is_slower_than_decoding(make, device, sample):
    predictor = make(rate=0.4, shares_cores=False)
    tasks = await admit_images(predictor, device, sample, 3)
    predictor._decode_s = 1.0
    assert predictor.retry_after_s == 8  # 7.5 s
    device.gate.set()
    await asyncio.gather(*tasks)


async def test_retry_after_divides_the_decoding_time_by_the_decoding_threads(make, device, sample):
    predictor = make(rate=1000, threads=4, shares_cores=False)
    tasks = await admit_images(predictor, device, sample, 2)
    assert predictor.retry_after_s == 3
    device.gate.set()
    await asyncio.gather(*tasks)


async def test_a_request_that_would_likely_miss_its_deadline_is_refused_and_others_are_unaffected(make, device, sample):
    predictor = make(rate=0.5, shares_cores=False, max_pending=10)
    tasks = await admit_images(predictor, device, sample, 2)  # 6 s
    with predictor.admission_slot(6 / MAX_WAIT_RATIO + 0.001):
        refused = pytest.raises(Overloaded, match=r"a response takes 6\.0 s at present, and the deadline is 7\.499 s")
        with refused, predictor.admission_slot(6 / MAX_WAIT_RATIO - 0.001):
            pass
        assert predictor.pending == 1
    device.gate.set()
    answers = await asyncio.gather(*tasks)
    assert [len(prediction.detections) for (prediction,) in answers] == [2, 2]
    with predictor.admission_slot(0.001):  # no image is pending any more
        pass


async def test_a_request_is_admitted_however_slow_the_engine_is_if_no_image_is_pending(make):
    predictor = make(rate=0.001)
    predictor._decode_s = 1000.0
    with predictor.admission_slot(0.001), predictor.admission_slot(0.001):
        assert predictor.retry_after_s == 1


async def test_failed_and_cancelled_images_no_longer_count_for_retry_after(make, device, sample):
    predictor = make(rate=0.1)
    with pytest.raises(UndecodableImage):
        await predictor.predict(b"\xff\xd8\xffno", Thresholds(), soon(), ["fake"])
    with pytest.raises(DeadlineExceeded):
        await predictor.predict(sample, Thresholds(), asyncio.get_running_loop().time(), ["fake"])
    device.gate.clear()
    held = asyncio.create_task(predictor.predict(sample, Thresholds(), soon(), ["fake"]))
    await device.until_busy()
    assert predictor.retry_after_s > 1
    held.cancel()
    await asyncio.gather(held, return_exceptions=True)
    assert predictor.retry_after_s == 1


async def test_the_decoding_time_is_averaged_over_every_image(make, sample, monkeypatch):
    """CPU time is used, because a thread that waits for a core does not slow the others."""
    times = iter([0.0, 2.0, 10.0, 14.0])
    clock = SimpleNamespace(thread_time=lambda: next(times), perf_counter=time.perf_counter)
    monkeypatch.setattr("app.serving.predictor.time", clock)
    predictor = make()
    await predictor.predict(sample, Thresholds(), soon(), ["fake"])
    assert predictor._decode_s == pytest.approx(2 * EMA_WEIGHT)
    await predictor.predict(sample, Thresholds(), soon(), ["fake"])
    assert predictor._decode_s == pytest.approx(2 * EMA_WEIGHT * (1 - EMA_WEIGHT) + 4 * EMA_WEIGHT)


# Postprocessing: few candidates run in the event loop, many on separate threads


def candidates(count: int) -> np.ndarray:
    """Return rows of `count` boxes that do not overlap, and ten more with a confidence of 0.25."""
    rows = np.zeros((count + 10, 6), np.float32)
    left = np.arange(count + 10) * 10
    rows[:, 0], rows[:, 2], rows[:, 3] = left, left + 5, 5
    rows[:count, 4], rows[count:, 4] = np.linspace(0.9, 0.5, count), 0.25
    return rows


@pytest.fixture
def new_threads():
    """Return a function that lists the kinds of threads started by this test, without those of other servers."""
    before = set(threading.enumerate())
    return lambda: {thread.name.partition("-")[0] for thread in threading.enumerate() if thread not in before}


@pytest.fixture
def handed_over(monkeypatch):
    """Return a function that records the work given to a predictor's postprocessing threads."""
    given = []

    def spy(predictor: Predictor) -> list:
        run = predictor._finishers.run
        monkeypatch.setattr(predictor._finishers, "run", lambda work: (given.append(work), run(work))[1])
        return given

    return spy


@pytest.mark.parametrize(("count", "threads"), [(0, 0), (MAX_INLINE_BOXES, 0), (MAX_INLINE_BOXES + 1, 1), (300, 1)])
async def test_postprocessing_uses_a_thread_only_for_more_than_max_inline_boxes(
    make, device, sample, handed_over, count, threads
):
    device.rows, predictor = candidates(count), make()
    given = handed_over(predictor)
    (prediction,) = await predictor.predict(sample, Thresholds(max_det=1000), soon(), ["fake"])
    assert len(prediction.detections) == count
    assert prediction.detections.scores == pytest.approx(device.rows[:count, 4])
    assert prediction.timings.postprocess > 0
    assert len(given) == threads


async def test_candidates_are_counted_with_the_threshold_of_the_request(make, device, sample, handed_over):
    device.rows = candidates(MAX_INLINE_BOXES)
    predictor = make()
    given = handed_over(predictor)
    await predictor.predict(sample, Thresholds(conf=0.3), soon(), ["fake"])
    assert len(given) == 0
    await predictor.predict(sample, Thresholds(conf=0.2), soon(), ["fake"])
    assert len(given) == 1


async def test_postprocessing_does_not_wait_for_images_in_the_decoding_queue(make, device, sample):
    device.rows = candidates(100)
    predictor, decoded = make(threads=2), threading.Event()
    (task,) = await admit_images(predictor, device, sample, 1)
    waiting = [asyncio.create_task(predictor._decoders.run(lambda: decoded.wait(30))) for _ in range(10)]
    device.gate.set()
    try:
        (prediction,) = await asyncio.wait_for(task, 10)
    finally:
        decoded.set()
    await asyncio.gather(*waiting)
    assert len(prediction.detections) == 100


async def test_close_ends_the_threads(make, device, sample, new_threads):
    device.rows = candidates(100)
    predictor = make()
    await predictor.predict(sample, Thresholds(), soon(), ["fake"])
    assert new_threads() >= {"decode", "finish"}
    await predictor.close()
    assert new_threads().isdisjoint({"decode", "finish"})


BOTH = ("fake", "pytorch")


def shadows(predictor: Predictor) -> dict[str, float]:
    """Return the number of shadow images by outcome."""
    samples = predictor._metrics.shadow_images.collect()[0].samples
    return {sample.labels["outcome"]: sample.value for sample in samples}


async def test_each_engine_predicts_the_same_frame_and_reports_its_own_times(make, device, second, sample):
    first, other = await make(engines=BOTH).predict(sample, Thresholds(), soon(), BOTH)
    assert (first.engine, other.engine) == BOTH
    assert device.frames[0] is second.frames[0]
    assert first.timings.decode == other.timings.decode
    assert first.timings.infer != other.timings.infer
    assert first.timings.postprocess != other.timings.postprocess


async def test_a_cancelled_prediction_leaves_the_queues_of_both_engines(make, device, second, sample):
    predictor = make(engines=BOTH)
    for each in (device, second):
        each.gate.clear()
    held = asyncio.create_task(predictor.predict(sample, Thresholds(), soon(), BOTH))
    for each in (device, second):
        await each.until_busy()
    waiting = asyncio.create_task(predictor.predict(sample, Thresholds(), soon(), BOTH))
    while [batcher.depth() for batcher in predictor._batchers.values()] != [1, 1]:  # noqa: ASYNC110
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert [batcher.depth() for batcher in predictor._batchers.values()] == [0, 0]
    for each in (device, second):
        each.gate.set()
    assert len(await held) == 2


@pytest.mark.parametrize(("drawn", "count"), [(0.24, 1), (0.25, 0), (0.9, 0)])
async def test_shadow_processes_the_configured_share_of_images(make, second, sample, monkeypatch, drawn, count):
    monkeypatch.setattr(random, "random", lambda: drawn)
    predictor = make(engines=BOTH, shadow=0.25)
    await predictor.predict(sample, Thresholds(), soon(), ["fake"], shadowed=True)
    await predictor.close()
    assert len(second.batches) == count
    assert shadows(predictor) == ({"seen": 1} if count else {})


async def test_an_image_is_shadowed_only_if_the_caller_allows_it_and_there_is_a_second_engine(make, second, sample):
    await make(engines=BOTH, shadow=1).predict(sample, Thresholds(), soon(), ["fake"])
    await make(shadow=1).predict(sample, Thresholds(), soon(), ["fake"], shadowed=True)
    assert second.batches == []


async def test_a_shadow_image_that_cannot_be_compared_is_logged_and_counted(make, second, sample, caplog):
    second.rows = np.zeros((3, 2), np.float32)
    predictor = make(engines=BOTH, shadow=1)
    await predictor.predict(sample, Thresholds(), soon(), ["fake"], shadowed=True)
    await predictor._shadow
    assert shadows(predictor) == {"failed": 1}
    (line,) = caplog.messages
    assert line.startswith("a shadow image was not compared: IndexError")


async def test_close_waits_for_the_running_shadow_image_and_starts_no_other(make, second, sample, caplog):
    predictor = make(engines=BOTH, shadow=1)
    second.gate.clear()
    await predictor.predict(sample, Thresholds(), soon(), ["fake"], shadowed=True)
    await second.until_busy()
    closing = asyncio.create_task(predictor.close())
    await asyncio.sleep(0)
    assert not closing.done()
    second.gate.set()
    await closing
    assert predictor._shadow.done()
    assert shadows(predictor) == {"seen": 1}
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
