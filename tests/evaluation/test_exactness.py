"""/v1/detect returns the detections of Ultralytics: its letterbox, forward pass and NMS, in PyTorch FP32."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import scenes
import torch
import ultralytics
from reference import CONF, by_ultralytics

from app.graphs import export
from app.settings import DEMO_WEIGHTS

pytestmark = pytest.mark.usefixtures("needs_engine")

PHOTOS = sorted((Path(ultralytics.__file__).parent / "assets").glob("*.jpg"))
SIZES = [(640, 640), (640, 480), (480, 640), (1280, 720), (333, 517), (801, 600), (320, 320), (200, 900)]


@pytest.fixture(scope="module")
def model():
    return export.load_module(DEMO_WEIGHTS)


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """100 generated images of eight shapes, and the two photos."""
    generated = []
    for i in range(100):
        image = scenes.scene(700_000 + i, *SIZES[i % len(SIZES)]).image
        generated.append(cv2.imencode(".jpg", image[..., ::-1])[1].tobytes())
    return generated + [path.read_bytes() for path in PHOTOS]


@pytest.fixture(scope="module")
def expected(model, pictures) -> list[np.ndarray]:
    """For each image float32 [N, 6]: x1 y1 x2 y2 score class, highest score first."""
    torch.set_num_threads(2)
    return [by_ultralytics(model, data) for data in pictures]


def assert_equal(image: dict, expected: np.ndarray) -> None:
    """Assert the same detections in any order: boxes within 0.5 px, scores within 0.005."""
    found = image["results"]
    assert len(found) == len(expected)
    rows = np.array([[*result["box"].values(), result["confidence"], result["class"]] for result in found])
    unmatched = list(range(len(rows)))
    for row in expected:
        match = min(unmatched, key=lambda i: np.abs(rows[i, :4] - row[:4]).max() + 1e6 * (rows[i, 5] != row[5]))
        unmatched.remove(match)
        assert rows[match, 5] == row[5]
        assert np.abs(rows[match, :4] - row[:4]).max() <= 0.5
        assert abs(rows[match, 4] - row[4]) <= 0.005


def test_ultralytics_installs_its_two_photos():
    assert [path.name for path in PHOTOS] == ["bus.jpg", "zidane.jpg"]


def test_reference_finds_enough_boxes_to_compare(expected):
    assert sum(len(rows) for rows in expected) > 500


def test_detect_equals_ultralytics_for_single_images(demo, pictures, expected):
    for data, rows in zip(pictures, expected, strict=True):
        body = demo.client.post(f"/v1/detect?conf={CONF}", content=data).json()
        assert_equal(body["images"][0], rows)


def test_detect_equals_ultralytics_for_requests_with_many_files(demo, pictures, expected):
    for start in range(0, len(pictures), 34):
        files = [("file", data) for data in pictures[start : start + 34]]
        body = demo.client.post(f"/v1/detect?conf={CONF}", files=files).json()
        for image, rows in zip(body["images"], expected[start : start + 34], strict=True):
            assert_equal(image, rows)


def test_detect_equals_ultralytics_in_batches(batching_demo, pictures, expected):
    for start in range(0, len(pictures), 17):
        files = [("file", data) for data in pictures[start : start + 17]]
        body = batching_demo.client.post(f"/v1/detect?conf={CONF}", files=files).json()
        for image, rows in zip(body["images"], expected[start : start + 17], strict=True):
            assert_equal(image, rows)
    images, batches = batching_demo.value("batch_size_sum"), batching_demo.value("batch_size_count")
    assert images == len(pictures)
    assert images / batches > 1.2  # there were real batches
