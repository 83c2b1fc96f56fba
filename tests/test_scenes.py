"""Generated scenes: the same seed the same scene, and boxes that are true."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import scenes

SIZES = [(640, 640), (320, 200), (97, 333)]  # width, height


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_same_seed_gives_the_same_scene_and_another_seed_another(width, height):
    first, again, other = (scenes.scene(seed, width, height) for seed in (7, 7, 8))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.boxes, again.boxes)
    assert np.array_equal(first.classes, again.classes)
    assert not np.array_equal(first.image, other.image)


def test_a_scene_is_the_same_in_another_process():
    code = (
        "import scenes, zlib; s = scenes.scene(5, 200, 160); print(zlib.crc32(s.image.tobytes() + s.boxes.tobytes()))"
    )
    folder = Path(scenes.__file__).parent
    one, other = (
        subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, check=True).stdout
        for _ in range(2)
    )
    assert one == other != b""


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("seed", range(5))
def test_boxes_lie_in_the_image_and_have_a_class_each(seed, width, height):
    scene = scenes.scene(seed, width, height)
    assert (scene.image.shape, scene.image.dtype) == ((height, width, 3), np.uint8)
    assert (scene.boxes.dtype, scene.boxes.shape) == (np.float32, (len(scene.classes), 4))
    assert (scene.boxes >= 0).all()
    assert (scene.boxes <= [width, height, width, height]).all()
    assert (scene.boxes[:, 2:] - scene.boxes[:, :2] >= 6).all()
    assert np.isin(scene.classes, range(len(scenes.NAMES))).all()


def test_all_classes_and_many_sizes_come_up():
    many = [scenes.scene(seed) for seed in range(30)]
    counts = np.bincount(np.concatenate([scene.classes for scene in many]), minlength=len(scenes.NAMES))
    boxes = np.concatenate([scene.boxes for scene in many])
    sides = (boxes[:, 2:] - boxes[:, :2]).max(1)
    assert counts.min() >= 5
    assert sides.min() < 25
    assert sides.max() > 250


def test_a_box_holds_its_class_colour():
    """The one check of truth: the class's hue is found inside the box far more than outside of all boxes."""
    inside, outside = [], []
    for seed in range(6):
        scene = scenes.scene(seed)
        hsv = cv2.cvtColor(scene.image, cv2.COLOR_RGB2HSV).astype(int)
        free = np.ones(hsv.shape[:2], bool)
        for x1, y1, x2, y2 in scene.boxes.astype(int):
            free[y1:y2, x1:x2] = False
        for (x1, y1, x2, y2), label in zip(scene.boxes.astype(int), scene.classes, strict=True):
            hue = scenes.CLASSES[scenes.NAMES[label]][1] / 2
            like = (np.abs((hsv[..., 0] - hue + 90) % 180 - 90) < 10) & (hsv[..., 1] > 120)
            inside.append(like[y1:y2, x1:x2].mean())
            outside.append(like[free].mean())
    assert np.median(inside) > 0.3 > 10 * np.median(outside)


def test_the_dataset_gives_the_boxes_back(tmp_path):
    scenes.write_dataset(tmp_path, 3, seed=11, width=320, height=200)
    for i in range(3):
        scene = scenes.scene(11 + i, 320, 200)
        picture = cv2.imread(str(tmp_path / f"images/{i:05}.jpg"), cv2.IMREAD_COLOR_RGB)
        assert np.abs(picture.astype(int) - scene.image).mean() < 4
        lines = (tmp_path / f"labels/{i:05}.txt").read_text().splitlines()
        rows = np.array([line.split() for line in lines], float).reshape(-1, 5)
        centre, half = rows[:, 1:3] * [320, 200], rows[:, 3:] * [160, 100]
        assert rows[:, 0].tolist() == scene.classes.tolist()
        assert np.abs(np.hstack([centre - half, centre + half]) - scene.boxes).max(initial=0) < 0.01
    assert len(list(tmp_path.rglob("*.*"))) == 6


def test_the_command_writes_a_dataset(tmp_path):
    command = [
        sys.executable,
        scenes.__file__,
        "2",
        str(tmp_path / "out"),
        "--seed",
        "3",
        "--width",
        "96",
        "--height",
        "64",
    ]
    subprocess.run(command, check=True)
    assert cv2.imread(str(tmp_path / "out/images/00001.jpg")).shape == (64, 96, 3)
