"""The tensor specs of the inputs and outputs of both models."""

import pytest

from app.api.protocols.kserve import specs
from app.model import ModelInfo


def info(task: str, shapes=None, kpt_shape=None) -> ModelInfo:
    return ModelInfo("pets", task, {0: "cat", 1: "dog"}, stride=32, imgsz=64, shapes=shapes, kpt_shape=kpt_shape)


ROWS = [
    (info("detect"), (-1, -1, 6), "x1 y1 x2 y2 score class;"),
    (info("segment"), (-1, -1, -1), "score class and a coefficient for each prototype;"),
    (info("pose", kpt_shape=(17, 3)), (-1, -1, 57), "score class and x y visible of each keypoint;"),
    (info("pose", kpt_shape=(5, 2)), (-1, -1, 16), "score class and x y of each keypoint;"),
    (info("obb"), (-1, -1, 7), "cx cy w h score class angle;"),
    (info("classify"), (-1, 2), "probability of each class"),
]


@pytest.mark.parametrize(("model", "shape", "layout"), ROWS)
def test_the_row_length_and_layout_depend_on_the_task(model, shape, layout):
    spec = specs.of_frames(model)[0]
    assert (spec.name, spec.shape) == ("output0", shape)
    assert layout in spec.layout


def test_a_frame_has_fixed_sides_only_if_the_engine_has_one_shape():
    assert specs.frames(info("detect")).shape == (-1, 3, -1, -1)
    assert specs.frames(info("detect", shapes=((32, 64),))).shape == (-1, 3, 32, 64)
    assert specs.frames(info("detect", shapes=((32, 64), (64, 64)))).shape == (-1, 3, -1, -1)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (info("detect"), ["num_detections", "boxes", "scores", "classes"]),
        (info("segment"), ["num_detections", "boxes", "scores", "classes", "masks"]),
        (info("pose", kpt_shape=(5, 2)), ["num_detections", "boxes", "scores", "classes", "keypoints"]),
        (info("obb"), ["num_detections", "boxes", "scores", "classes", "corners"]),
        (info("classify"), ["scores", "classes"]),
    ],
)
def test_the_outputs_of_an_image_depend_on_the_task(model, names):
    assert [spec.name for spec in specs.of_images(model)] == names
