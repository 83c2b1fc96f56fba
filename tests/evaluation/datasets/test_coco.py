"""COCO's polygons, run lengths and keypoints. Boxes and files: test_datasets.py."""

import dataclasses
import json
from pathlib import Path

import fakes
import numpy as np
import pytest
from mask_arrays import spots

from app.errors import SettingsError
from app.evaluation.datasets import annotations, coco
from app.evaluation.datasets.annotations import Labels
from app.model import ModelInfo
from app.vision import masks, preprocess
from app.vision.masks import Mask

SIZE = (20, 40)  # height, width
SEGMENT = dataclasses.replace(fakes.MODEL, task="segment")
POSE = dataclasses.replace(fakes.MODEL, task="pose", kpt_shape=(2, 3))


def write(path: Path, *annotations: dict) -> None:
    """Write a COCO file with one image; the category of cats is 3."""
    listed = [
        {"id": i, "image_id": 7, "category_id": 3, "bbox": [10, 5, 20, 10]} | each for i, each in enumerate(annotations)
    ]
    content = {"images": [{"id": 7, "file_name": "a.png"}], "annotations": listed}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content | {"categories": [{"id": 3, "name": "cat"}]}))


def read(root: Path, model: ModelInfo, size: tuple[int, int] = SIZE) -> Labels:
    found = coco.read(root, [root / "a.png"], model, "GATE_DIR")
    return annotations.at(found[root / "a.png"], model, size, px=True)


def whole(mask: Mask, size: tuple[int, int]) -> np.ndarray:
    pixels = np.zeros(size, np.uint8)
    pixels[mask.top : mask.top + mask.pixels.shape[0], mask.left : mask.left + mask.pixels.shape[1]] = mask.pixels
    return pixels


def test_the_polygons_of_an_object_form_one_mask(tmp_path):
    write(tmp_path / "a.json", {"segmentation": [[0, 0, 4, 0, 4, 4, 0, 4], [10, 5, 20, 5, 20, 15, 10, 15]]})
    expected = np.zeros(SIZE, np.uint8)
    expected[:5, :5] = expected[5:16, 10:21] = 1
    found = read(tmp_path, SEGMENT)
    np.testing.assert_array_equal(whole(found.masks[0], SIZE), expected)
    assert found.boxes.tolist() == [[10, 5, 30, 15]]


def test_run_lengths_run_down_the_columns(tmp_path):
    write(tmp_path / "a.json", {"segmentation": {"size": list(SIZE), "counts": [22, 3, 17, 5, 753]}})
    expected = np.zeros(SIZE, np.uint8)
    expected[2:5, 1] = expected[2:7, 2] = 1
    np.testing.assert_array_equal(whole(read(tmp_path, SEGMENT).masks[0], SIZE), expected)


@pytest.mark.parametrize("seed", range(4))
def test_compressed_run_lengths_are_read_as_the_server_writes_them(tmp_path, seed):
    """tests/vision/test_masks.py compares those with COCO's."""
    size = (96, 160)
    pixels = spots(seed, size, 0.4)
    transform = preprocess.whole(pixels)
    write(
        tmp_path / "a.json",
        {"segmentation": {"size": list(size), "counts": masks.run_lengths(Mask(pixels, 0, 0), transform)}},
    )
    np.testing.assert_array_equal(whole(read(tmp_path, SEGMENT, size).masks[0], size), pixels)


def test_keypoints_are_in_pixels_with_their_visibility(tmp_path):
    write(tmp_path / "a.json", {"keypoints": [12, 6, 2, 0, 0, 0]})
    assert read(tmp_path, POSE).keypoints.tolist() == [[[12, 6, 2], [0, 0, 0]]]


def test_a_file_without_keypoints_is_skipped_if_another_has_them(tmp_path):
    """In COCO's annotations/ the instances files sort before person_keypoints."""
    write(tmp_path / "annotations" / "instances_val.json", {"segmentation": [[0, 0, 9, 0, 9, 9]]})
    write(tmp_path / "annotations" / "person_keypoints_val.json", {"keypoints": [12, 6, 2, 0, 0, 0]})
    assert len(read(tmp_path, POSE).keypoints) == 1


@pytest.mark.parametrize(
    ("model", "annotation", "message"),
    [
        (SEGMENT, {}, r"a\.json has no segmentation, which the evaluation of segment needs"),
        (SEGMENT, {"segmentation": []}, r"a\.json has no segmentation"),
        (SEGMENT, {"segmentation": [[1, 2, 3]]}, r"a\.json cannot be used: ValueError"),
        (SEGMENT, {"segmentation": {"size": [20, 40], "counts": [3, 4]}}, r"a\.json cannot be used: ValueError"),
        (SEGMENT, {"segmentation": {"size": [20, 40], "counts": "\u20ac"}}, r"a\.json cannot be used: ValueError"),
        (POSE, {"segmentation": [[1, 1, 2, 2, 3, 1]]}, r"a\.json has no keypoints, which the evaluation of pose needs"),
        (POSE, {"keypoints": [1, 2, 2]}, r"a\.json cannot be used: .*annotation 0 does not have the model's 2 key"),
        (dataclasses.replace(SEGMENT, task="obb"), {}, r"a\.json has no rotated boxes"),
    ],
)
def test_labels_of_another_kind_are_refused_with_the_setting_and_the_file(tmp_path, model, annotation, message):
    write(tmp_path / "a.json", annotation)
    with pytest.raises(SettingsError, match=rf"GATE_DIR.*{message}"):
        read(tmp_path, model)


def test_an_object_without_keypoints_is_named_if_others_have_them(tmp_path):
    write(tmp_path / "a.json", {"keypoints": [12, 6, 2, 0, 0, 0]}, {})
    with pytest.raises(SettingsError, match="annotation 1 has no keypoints"):
        read(tmp_path, POSE)


def test_categories_of_one_name_are_mapped_in_the_order_of_their_ids(tmp_path):
    model = dataclasses.replace(fakes.MODEL, names={0: "cat", 1: "cat"})
    write(tmp_path / "a.json", {"category_id": 3}, {"category_id": 2})
    content = json.loads((tmp_path / "a.json").read_text())
    with pytest.raises(SettingsError, match=r"a\.json cannot be used: .*it has 1 class 'cat' and pets has 2"):
        read(tmp_path, model)
    content["categories"] = [{"id": 3, "name": "cat"}, {"id": 2, "name": "cat"}]
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert read(tmp_path, model).classes.tolist() == [1, 0]
