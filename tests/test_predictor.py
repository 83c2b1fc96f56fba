"""One image, start to end, without HTTP."""

import asyncio

import fakes
import numpy as np
import pytest

from app.batcher import Batcher
from app.errors import DeadlineExceeded, Overloaded, UndecodableImage
from app.metrics import Metrics
from app.model import ModelInfo
from app.predictor import Predictor
from app.results import Thresholds


@pytest.fixture
async def make(device):
    made = []

    def start(*, static=False, rect=True, max_pending=2, rate=10.0) -> Predictor:
        metrics = Metrics()
        batcher = Batcher(device, lanes=1, max_batch=4, max_wait_s=0, metrics=metrics, model="pets", name="fake")
        batcher.start()
        model = ModelInfo("pets", "detect", fakes.NAMES, stride=32, imgsz=64, static_shape=static)
        predictor = Predictor(
            model,
            {"fake": batcher},
            metrics,
            threads=2,
            rect=rect,
            max_pixels=10**6,
            max_pending=max_pending,
            images_per_second=rate,
            shadow=0,
        )
        made.append(predictor)
        return predictor

    yield start
    device.gate.set()
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
