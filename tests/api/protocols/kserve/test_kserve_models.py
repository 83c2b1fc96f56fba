"""The tensor model and the image model, and the demo model called by Ultralytics' own client."""

import json

import cv2
import numpy as np
import pytest
from mask_arrays import decoded
from reference import CONF, by_ultralytics
from ultralytics import YOLO

from app.api.protocols.kserve.models import ImageModel, TensorModel, to_frame
from app.graphs import export
from app.model import ModelInfo
from app.serving.prediction import FramePrediction, Prediction, Timings
from app.settings import DEMO, DEMO_WEIGHTS
from app.vision import preprocess
from app.vision.masks import Mask
from app.vision.postprocess import Detections, Thresholds

SAMPLES = sorted((DEMO / "samples").glob("*.jpg"))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_every_level_of_every_channel_is_converted_exactly(dtype):
    levels = np.random.default_rng(0).permutation(np.arange(768) % 256).reshape(3, 16, 16).astype(np.uint8)
    frame = to_frame((levels / np.float32(255)).astype(dtype))
    assert frame.flags.c_contiguous
    np.testing.assert_array_equal(frame, levels.transpose(1, 2, 0))
    np.testing.assert_array_equal(to_frame(levels), frame)


def info(task: str = "detect", **facts) -> ModelInfo:
    return ModelInfo("pets", task, {0: "cat", 1: "dog"}, stride=32, imgsz=64, shapes=None, **facts)


def frame(*outputs: np.ndarray) -> FramePrediction:
    return FramePrediction(outputs, Timings(0, 0, 0, 0), 1, "fake")


def test_rows_are_padded_to_max_det():
    row, empty = np.array([[1, 1, 1, 1, 0.5, 2]], np.float32), np.zeros((0, 6), np.float32)
    (output,) = TensorModel(info(), 4).tensors([frame(row), frame(empty)], Thresholds(max_det=3), ["output0"])
    assert output.shape == (2, 3, 6)
    assert output.numbers[0, 0].tolist() == [1, 1, 1, 1, 0.5, 2]
    assert np.count_nonzero(output.numbers) == 6


def test_prototypes_are_a_separate_output_and_only_requested_outputs_are_made():
    protos = np.arange(32, dtype=np.float32).reshape(2, 4, 4)
    found = [frame(np.zeros((0, 8), np.float32), protos)] * 2
    (output,) = TensorModel(info("segment"), 4).tensors(found, Thresholds(), ["output1"])
    assert (output.name, output.shape) == ("output1", (2, 2, 4, 4))
    np.testing.assert_array_equal(output.numbers[1], protos)


def test_images_are_padded_to_the_largest_number_of_detections():
    transform = preprocess.whole(np.zeros((8, 6, 3), np.uint8))
    masks = [Mask(np.ones((size, 1), np.uint8), 0, 0) for size in (8, 3)]

    def found(count: int) -> Prediction:
        many = Detections(np.ones((2, 4), np.float32), np.full(2, 0.5), np.array([1, 1]), masks=masks).first(count)
        return Prediction(transform, many, Timings(0, 0, 0, 0), 1, "fake")

    model = ImageModel(info("segment"), 4)
    counts, boxes, coded = model.tensors([found(1), found(2)], Thresholds(), ["num_detections", "boxes", "masks"])
    assert counts.numbers.tolist() == [1, 2]
    assert boxes.numbers[:, :, 0].tolist() == [[1, 0], [1, 1]]
    assert (coded.datatype, coded.shape, coded.elements[1]) == ("BYTES", (2, 2), b"")
    reported = [json.loads(each) for each in (coded.elements[0], *coded.elements[2:])]
    assert [each["size"] for each in reported] == [[8, 6]] * 3
    assert [decoded(each["counts"], 8, 6).sum() for each in reported] == [8, 8, 3]


@pytest.fixture(scope="module")
def remote(demo):
    """The demo model as an Ultralytics model with a URL."""
    return YOLO(f"{demo.url}/{demo.service.predictor.model.name}", task="detect")


@pytest.fixture(scope="module")
def local() -> list[np.ndarray]:
    """The rows of Ultralytics' own forward pass and NMS for each sample."""
    module = export.load_module(DEMO_WEIGHTS)
    return [by_ultralytics(module, path.read_bytes()) for path in SAMPLES]


def test_ultralytics_predicts_by_url_the_same_as_by_file(remote, local):
    for path, expected in zip(SAMPLES, local, strict=True):  # each has a different rectangular shape
        (found,) = remote.predict(path, conf=CONF, verbose=False)
        assert len(expected) > 3
        np.testing.assert_allclose(found.boxes.data.numpy(), expected, atol=0.01)
    assert remote.names[0] == "red circle"


def test_ultralytics_applies_its_own_thresholds_to_a_batch(remote, local):
    frames = [cv2.imread(str(SAMPLES[0]))] * 3
    expected = [row for row in local[0] if row[5] in (0, 6) and row[4] > 0.5][:2]
    for found in remote.predict(frames, conf=0.5, classes=[0, 6], max_det=2, verbose=False):
        np.testing.assert_allclose(found.boxes.data.numpy(), expected, atol=0.01)
