"""The two models, and the demo model asked by Ultralytics' own client."""

import cv2
import numpy as np
import pytest
from test_exactness import CONF, by_ultralytics
from ultralytics import YOLO

from app import export
from app.api.kserve.models import TensorModel, to_frame
from app.datasets import DEMO
from app.model import ModelInfo
from app.results import Detections, Thresholds
from app.settings import DEMO_WEIGHTS

SAMPLES = sorted((DEMO / "samples").glob("*.jpg"))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_level_of_every_channel_comes_back_exactly(dtype):
    levels = np.random.default_rng(0).permutation(np.arange(768) % 256).reshape(3, 16, 16).astype(np.uint8)
    frame = to_frame((levels / np.float32(255)).astype(dtype))
    assert frame.flags.c_contiguous
    np.testing.assert_array_equal(frame, levels.transpose(1, 2, 0))
    np.testing.assert_array_equal(to_frame(levels), frame)


def test_rows_have_the_place_that_max_det_says():
    model = TensorModel(ModelInfo("pets", "detect", {0: "cat"}, stride=32, imgsz=64, shapes=None), most_images=4)
    found = Detections(np.ones((1, 4), np.float32), np.array([0.5], np.float32), np.array([2]))
    nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    (output,) = model.tensors([found, nothing], Thresholds(max_det=3))
    assert output.shape == (2, 3, 6)
    assert output.numbers[0, 0].tolist() == [1, 1, 1, 1, 0.5, 2]
    assert np.count_nonzero(output.numbers) == 6


@pytest.fixture(scope="module")
def remote(demo):
    """Ultralytics' own model of a URL."""
    return YOLO(f"{demo.url}/{demo.service.predictor.model.name}", task="detect")


@pytest.fixture(scope="module")
def local() -> list[np.ndarray]:
    """What its own forward pass and NMS give for each sample."""
    module = export.load_module(DEMO_WEIGHTS)
    return [by_ultralytics(module, path.read_bytes()) for path in SAMPLES]


def test_ultralytics_predicts_by_url_what_it_predicts_by_file(remote, local):
    for path, expected in zip(SAMPLES, local, strict=True):  # each of another shape, as rectangles
        (found,) = remote.predict(path, conf=CONF, verbose=False)
        assert len(expected) > 3
        np.testing.assert_allclose(found.boxes.data.numpy(), expected, atol=0.01)
    assert remote.names[0] == "red circle"


def test_ultralytics_applies_its_own_thresholds_to_a_batch(remote, local):
    frames = [cv2.imread(str(SAMPLES[0]))] * 3
    wanted = [row for row in local[0] if row[5] in (0, 6) and row[4] > 0.5][:2]
    for found in remote.predict(frames, conf=0.5, classes=[0, 6], max_det=2, verbose=False):
        np.testing.assert_allclose(found.boxes.data.numpy(), wanted, atol=0.01)
