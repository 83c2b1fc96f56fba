"""One image, start to end, without HTTP."""

import asyncio
import logging

import fakes
import numpy as np
import pytest

from app.batcher import Batcher
from app.errors import DeadlineExceeded, Overloaded, UndecodableImage
from app.metrics import Metrics
from app.model import ModelInfo
from app.predictor import Predictor, random
from app.results import Thresholds


@pytest.fixture
async def make(device, second):
    made = []

    def start(*, static=False, rect=True, max_pending=2, rate=10.0, shadow=0.0, engines=("fake",)) -> Predictor:
        metrics = Metrics()
        batchers = {}
        for name, each in zip(engines, (device, second), strict=False):
            batchers[name] = Batcher(each, lanes=1, max_batch=4, max_wait_s=0, metrics=metrics, model="pets", name=name)
            batchers[name].start()
        model = ModelInfo("pets", "detect", fakes.NAMES, stride=32, imgsz=64, static_shape=static)
        predictor = Predictor(
            model,
            batchers,
            metrics,
            threads=2,
            rect=rect,
            max_pixels=10**6,
            max_pending=max_pending,
            images_per_second=rate,
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


@pytest.mark.parametrize(
    ("static", "rect", "frame"),
    [(False, True, (48 + 16, 64)), (False, False, (64, 64)), (True, True, (64, 64))],
)
async def test_frame_is_a_rectangle_unless_square_is_asked_for_or_all_that_the_graph_takes(
    make, device, sample, static, rect, frame
):
    await make(static=static, rect=rect).predict(sample, Thresholds(), soon(), ["fake"])  # 640x480 -> 64x48, padded
    assert device.shapes == [(1, *frame, 3)]


async def test_wide_image_gets_a_wide_frame(make, device):
    import cv2

    wide = cv2.imencode(".png", np.zeros((30, 100, 3), np.uint8))[1].tobytes()
    (prediction,) = await make().predict(wide, Thresholds(), soon(), ["fake"])
    assert device.shapes == [(1, 32, 64, 3)]
    assert prediction.shape == (30, 100)


async def test_prediction_times_every_stage(make, sample):
    (prediction,) = await make().predict(sample, Thresholds(), soon(), ["fake"])
    timings = prediction.timings
    assert min(timings.decode, timings.infer, timings.postprocess) > 0
    assert timings.queue >= 0
    assert prediction.batch_size == 1


async def test_bad_image_does_not_reach_the_device(make, device):
    with pytest.raises(UndecodableImage):
        await make().predict(b"\xff\xd8\xffno", Thresholds(), soon(), ["fake"])
    assert device.batches == []


async def test_passed_deadline_is_an_error_of_its_own(make, sample):
    with pytest.raises(DeadlineExceeded):
        await make().predict(sample, Thresholds(), asyncio.get_running_loop().time(), ["fake"])


async def test_overload_is_refused_at_once_at_the_door(make):
    predictor = make(max_pending=2)
    with predictor.admitted(), predictor.admitted():
        assert predictor.pending == 2
        with pytest.raises(Overloaded), predictor.admitted():
            pass
    assert predictor.pending == 0
    with predictor.admitted():
        pass


async def test_retry_after_is_the_time_that_the_pending_ones_take(make):
    predictor = make(max_pending=100, rate=0.5)
    assert predictor.retry_after_s == 1
    with predictor.admitted(), predictor.admitted():
        assert predictor.retry_after_s == 4


BOTH = ("fake", "pytorch")


def shadows(predictor: Predictor) -> dict[str, float]:
    """Live images by what the second engine did."""
    samples = predictor._metrics.shadow_images.collect()[0].samples
    return {sample.labels["outcome"]: sample.value for sample in samples}


async def test_each_engine_gives_a_prediction_of_the_same_frame_with_its_own_times(make, device, second, sample):
    first, other = await make(engines=BOTH).predict(sample, Thresholds(), soon(), BOTH)
    assert (first.engine, other.engine) == BOTH
    assert device.frames[0] is second.frames[0]
    assert first.timings.decode == other.timings.decode
    assert first.timings.infer != other.timings.infer
    assert first.timings.postprocess != other.timings.postprocess


async def test_cancelled_prediction_leaves_the_queues_of_both_engines(make, device, second, sample):
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


@pytest.mark.parametrize(("drawn", "looked"), [(0.24, 1), (0.25, 0), (0.9, 0)])
async def test_shadow_takes_its_share_of_the_images(make, second, sample, monkeypatch, drawn, looked):
    monkeypatch.setattr(random, "random", lambda: drawn)
    predictor = make(engines=BOTH, shadow=0.25)
    await predictor.predict(sample, Thresholds(), soon(), ["fake"], shadowed=True)
    await predictor.close()
    assert len(second.batches) == looked
    assert shadows(predictor) == ({"seen": 1} if looked else {})


async def test_nothing_is_shadowed_that_is_not_offered_or_where_there_is_no_second_engine(make, second, sample):
    await make(engines=BOTH, shadow=1).predict(sample, Thresholds(), soon(), ["fake"])
    await make(shadow=1).predict(sample, Thresholds(), soon(), ["fake"], shadowed=True)
    assert second.batches == []


async def test_shadow_of_rows_that_cannot_be_compared_is_a_line_in_the_log(make, second, sample, caplog):
    second.rows = np.zeros((3, 2), np.float32)
    predictor = make(engines=BOTH, shadow=1)
    await predictor.predict(sample, Thresholds(), soon(), ["fake"], shadowed=True)
    await predictor._shadow
    assert shadows(predictor) == {"failed": 1}
    (line,) = caplog.messages
    assert line.startswith("a shadow image was not compared: IndexError")


async def test_close_waits_for_the_shadow_that_is_at_work_and_begins_no_other(make, second, sample, caplog):
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
