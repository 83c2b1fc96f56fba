"""Parsing the lines of label files for each task, and refusing invalid ones."""

import dataclasses
from pathlib import Path

import fakes
import numpy as np
import pytest
from ultralytics.utils.ops import xyxyxyxy2xywhr

from app.errors import SettingsError
from app.evaluation.datasets import annotations
from app.evaluation.datasets.annotations import Labels
from app.model import ModelInfo

SIZE = (20, 40)  # height, width
IDS = {0: 0, 1: 1, 5: 2}

BOX = "1 0.5 0.5 0.5 0.5"
SQUARE = "1 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75"
POSE = f"{BOX} 0.25 0.25 2 0.75 0.75 0"
POSE_OF_TWO = f"{BOX} 0.25 0.25 0.75 -0.005"


def of_task(task: str) -> ModelInfo:
    return dataclasses.replace(fakes.MODEL, task=task, kpt_shape=(2, 3) if task == "pose" else None)


def read(text: str, task: str) -> Labels:
    model = of_task(task)
    return annotations.at(annotations.read(Path("a.txt"), text, IDS, model), model, SIZE, px=False)


TWINS = dataclasses.replace(fakes.MODEL, names={0: "car", 1: "dog", 2: "car"})


def test_classes_are_mapped_to_the_models_classes_of_the_same_name():
    assert annotations.class_ids({"a": "dog", "b": "cat", "c": "bird", "d": "cat"}, fakes.MODEL) == {
        "a": 1,
        "b": 0,
        "d": 0,
    }
    assert annotations.class_ids({0: 7}, dataclasses.replace(fakes.MODEL, names={0: "7"})) == {0: 0}


def test_classes_of_one_name_are_mapped_in_order():
    """Earlier all labels got the last id of the name."""
    assert annotations.class_ids({5: "car", 6: "dog", 9: "car"}, TWINS) == {5: 0, 6: 1, 9: 2}


@pytest.mark.parametrize("listed", [{5: "car"}, {5: "car", 6: "car", 7: "car"}], ids=["one", "three"])
def test_a_name_with_another_number_of_classes_than_in_the_model_is_refused(listed):
    with pytest.raises(ValueError, match=rf"it has {len(listed)} class 'car' and pets has 2, 0, 2: give it the same"):
        annotations.class_ids(listed, TWINS)


def test_polygons_become_masks_in_the_image():
    found = read(f"{SQUARE}\n5 0 0 1 0 1 0.5 0 0.5", "segment")
    assert found.classes.tolist() == [1, 2]
    assert found.boxes.tolist() == [[10, 5, 30, 15], [0, 0, 40, 10]]
    assert [(mask.left, mask.top, mask.pixels.shape) for mask in found.masks] == [(10, 5, (11, 21)), (0, 0, (11, 40))]
    assert all(mask.pixels.all() for mask in found.masks)


def test_keypoints_are_in_pixels_and_have_visibility_0_if_not_labelled():
    assert read(POSE, "pose").keypoints.tolist() == [[[10, 5, 2], [30, 15, 0]]]
    assert read(POSE, "pose").boxes.tolist() == [[10, 5, 30, 15]]


def test_keypoints_without_visibility_are_unlabelled_if_outside_the_image():
    np.testing.assert_allclose(read(POSE_OF_TWO, "pose").keypoints, [[[10, 5, 1], [30, -0.1, 0]]], atol=1e-5)


def test_corners_become_the_rotated_boxes_of_ultralytics():
    rng = np.random.default_rng(0)
    corners = np.float32([[[5, 5], [25, 10], [23, 18], [3, 13]], [[2, 2], [9, 2], [9, 19], [2, 19]]])
    corners = np.concatenate([corners, rng.uniform(0, 20, (3, 4, 2)).astype(np.float32)])
    text = "\n".join(f"0 {' '.join(str(value) for value in (each / [40, 20]).ravel())}" for each in corners)
    np.testing.assert_allclose(
        read(text, "obb").boxes, xyxyxyxy2xywhr(corners.reshape(-1, 8)).reshape(-1, 5), atol=1e-3
    )


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb"])
def test_a_file_without_lines_has_no_labels(task):
    found = read("\n", task)
    assert len(found.classes) == len(found.boxes) == 0
    assert found.boxes.shape == (0, 5 if task == "obb" else 4)


WRONG = {
    "a box for segment": ("segment", BOX),
    "a pose for segment": ("segment", f"{BOX} 0.5 0.5 2"),
    "two corners for segment": ("segment", "1 0.1 0.1 0.2 0.2"),
    "a polygon for pose": ("pose", SQUARE + " 0.2 0.2"),
    "a box for pose": ("pose", BOX),
    "three keypoints for two": ("pose", f"{POSE} 0.5 0.5 2"),
    "a keypoint outside": ("pose", f"{BOX} 0.25 1.2 2 0.5 0.5 0"),
    "a box for obb": ("obb", BOX),
    "five corners for obb": ("obb", f"{SQUARE} 0.1 0.1"),
    "a box and its angle for obb": ("obb", f"{BOX} 0.3"),
    "a corner outside": ("obb", "1 0.25 0.25 0.75 0.25 0.75 1.75 0.25 0.75"),
    "px for segment": ("segment", "1 10 10 20 10 20 20"),
}
RIGHT = {"segment": SQUARE, "pose": POSE, "obb": SQUARE}


@pytest.mark.parametrize("what", WRONG)
def test_labels_of_another_kind_are_refused_with_file_line_and_expected_format(what):
    task, line = WRONG[what]
    wanted = {"segment": "x1 y1 x2 y2 x3 y3 ...", "pose": "cx cy w h' and 'x y'", "obb": "x1 y1 x2 y2 x3 y3 x4 y4"}
    with pytest.raises(SettingsError) as refusal:
        read(f"{RIGHT[task]}\n\n{line}\n", task)
    assert str(refusal.value).startswith(f"a.txt, line 3: not 'class {wanted[task]}")
    assert "remove all labels" in str(refusal.value)
