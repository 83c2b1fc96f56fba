"""Generated scenes are reproducible and their labels are correct."""

import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import scenes
from scene_facts import TASKS, side_of
from ultralytics.data.utils import polygons2masks_overlap, verify_image_label

from app.settings import DEMO

SIZES = [(640, 640), (320, 200), (97, 333)]  # width, height
SAMPLES = {1: (500011, 640, 480), 2: (500022, 480, 640), 3: (500031, 640, 640), 4: (500041, 800, 600)}


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("task", ["detect", *TASKS])
def test_a_scene_is_determined_by_its_seed(width, height, task):
    first, again, other = (scenes.scene(seed, width, height, task) for seed in (7, 7, 8))
    for field in scenes.Scene.__slots__:
        assert np.array_equal(getattr(first, field), getattr(again, field)), field
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize(("number", "seed"), SAMPLES.items())
def test_the_sample_images_are_reproduced_from_their_seeds(number, seed):
    sample = cv2.imread(str(DEMO / f"samples/scene-{number}.jpg"), cv2.IMREAD_COLOR_RGB)
    assert np.abs(sample.astype(int) - scenes.scene(*seed).image).mean() < 4


def test_the_labels_of_detect_scenes_have_not_changed_since_the_training():
    labels = [scenes.scene(*seed) for seed in SAMPLES.values()]
    digests = [zlib.crc32(item.boxes.tobytes() + item.classes.tobytes()) for item in labels]
    assert digests == [1841347322, 2488233875, 2577321257, 2356863684]


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
def test_boxes_are_inside_the_image_and_each_has_a_class(seed, width, height):
    scene = scenes.scene(seed, width, height)
    assert (scene.image.shape, scene.image.dtype) == ((height, width, 3), np.uint8)
    assert (scene.boxes.dtype, scene.boxes.shape) == (np.float32, (len(scene.classes), 4))
    assert (scene.boxes >= 0).all()
    assert (scene.boxes <= [width, height, width, height]).all()
    assert (scene.boxes[:, 2:] - scene.boxes[:, :2] >= 6).all()
    assert np.isin(scene.classes, range(len(scenes.NAMES))).all()


def test_all_classes_and_many_sizes_occur():
    many = [scenes.scene(seed) for seed in range(30)]
    counts = np.bincount(np.concatenate([scene.classes for scene in many]), minlength=len(scenes.NAMES))
    boxes = np.concatenate([scene.boxes for scene in many])
    sides = (boxes[:, 2:] - boxes[:, :2]).max(1)
    assert counts.min() >= 5
    assert sides.min() < 25
    assert sides.max() > 250


def test_a_box_contains_the_colour_of_its_class():
    """The hue of the class is much more frequent inside the box than outside all boxes."""
    inside, outside = [], []
    for seed in range(6):
        scene = scenes.scene(seed)
        hsv = cv2.cvtColor(scene.image, cv2.COLOR_RGB2HSV).astype(int)
        background = np.ones(hsv.shape[:2], bool)
        for x1, y1, x2, y2 in scene.boxes.astype(int):
            background[y1:y2, x1:x2] = False
        for (x1, y1, x2, y2), label in zip(scene.boxes.astype(int), scene.classes, strict=True):
            hue = scenes.CLASSES[scenes.NAMES[label]][1] / 2
            matching = (np.abs((hsv[..., 0] - hue + 90) % 180 - 90) < 10) & (hsv[..., 1] > 120)
            inside.append(matching[y1:y2, x1:x2].mean())
            outside.append(matching[background].mean())
    assert np.median(inside) > 0.3 > 10 * np.median(outside)


def test_the_written_data_set_has_the_images_and_boxes_of_the_scenes(tmp_path):
    scenes.write_dataset(tmp_path, 3, seed=11, width=320, height=200)
    for i in range(3):
        scene = scenes.scene(11 + i, 320, 200)
        image = cv2.imread(str(tmp_path / f"images/{i:05}.jpg"), cv2.IMREAD_COLOR_RGB)
        assert np.abs(image.astype(int) - scene.image).mean() < 4
        lines = (tmp_path / f"labels/{i:05}.txt").read_text().splitlines()
        rows = np.array([line.split() for line in lines], float).reshape(-1, 5)
        centre, half = rows[:, 1:3] * [320, 200], rows[:, 3:] * [160, 100]
        assert rows[:, 0].tolist() == scene.classes.tolist()
        assert np.abs(np.hstack([centre - half, centre + half]) - scene.boxes).max(initial=0) < 0.01
    assert len(list(tmp_path.rglob("*.*"))) == 7


@pytest.mark.parametrize("task", ["detect", *TASKS])
def test_every_mask_has_a_box_and_fills_it(task):
    for seed in range(20):
        item = scenes.scene(seed, 160, 160, task)
        assert (item.masks.shape, item.masks.dtype) == ((160, 160), np.uint8)
        assert item.masks.max() == len(item.boxes)
        for i, box in enumerate(item.boxes):
            x, y, w, h = cv2.boundingRect((item.masks == i + 1).astype(np.uint8))
            assert box.tolist() == [x, y, x + w, y + h]


def test_a_mask_covers_the_colour_of_its_class():
    share = []
    for seed in range(20):
        item = scenes.scene(seed, 160, 160, "segment")
        hue = cv2.cvtColor(item.image, cv2.COLOR_RGB2HSV)[..., 0].astype(int)
        for i, label in enumerate(item.classes):
            wanted = scenes.CLASSES[scenes.NAMES[label]][1] / 2
            share.append((np.abs((hue[item.masks == i + 1] - wanted + 90) % 180 - 90) < 10).mean())
    assert np.median(share) > 0.9


def test_keypoints_are_on_the_edge_of_their_arrow_or_marked_as_hidden_or_outside():
    seen = np.zeros(3, int)
    for seed in range(60):
        item = scenes.scene(seed, 160, 160, "pose")
        assert item.keypoints.shape == (len(item.boxes), 5, 3)
        for i, points in enumerate(item.keypoints):
            mask = (item.masks == i + 1).astype(np.uint8)
            distance = cv2.distanceTransform(1 - mask, cv2.DIST_L2, 3)
            depth = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
            for x, y, visible in points:
                seen[int(visible)] += 1
                if visible == 0:
                    assert (x, y) == (0, 0)
                else:
                    assert (distance[int(y), int(x)] < 2.5) >= (visible == 2)
                    assert depth[int(y), int(x)] < 3
            if points[:3, 2].all():
                assert side_of(item, i) > 0
    assert (seen > 10).all()


def test_an_oriented_box_contains_its_mask_and_is_tight_unless_occluded():
    tight, count = 0, 0
    for seed in range(40):
        item = scenes.scene(seed, 160, 160, "obb")
        for i, corners in enumerate(item.corners):
            y, x = np.nonzero(item.masks == i + 1)
            pixels = np.stack([x, y], 1) + 0.5
            origin, along, across = corners[0], corners[1] - corners[0], corners[3] - corners[0]
            sides = np.array([np.linalg.norm(along), np.linalg.norm(across)])
            assert abs(along @ across) < 1e-2 * sides.prod()
            assert sides[0] > 1.5 * sides[1]  # so that its angle is well defined
            coordinates = (pixels - origin) @ np.stack([along, across], 1) / sides
            assert (coordinates.min(0) > -1.5).all()
            assert (coordinates.max(0) < sides + 1.5).all()
            tight += bool((coordinates.min(0) < 2).all() and (coordinates.max(0) > sides - 2).all())
            count += 1
    assert count > 80
    assert tight > 0.6 * count


def read(folder: Path, task: str, i: int) -> tuple[np.ndarray, list[np.ndarray], np.ndarray | None]:
    """Return the rows, polygons and keypoints that Ultralytics' loader reads from a label file."""
    count = len(scenes.KINDS["pose"].keypoints) if task == "pose" else 0
    paths = str(folder / f"images/{i:05}.jpg"), str(folder / f"labels/{i:05}.txt")
    classes = len(scenes.KINDS[task].classes)
    found = verify_image_label((*paths, "", task == "pose", classes, count, 3, False))
    assert found[-1] == ""  # no complaint
    return found[1], found[3], found[4]


@pytest.mark.parametrize("task", TASKS)
def test_ultralytics_reads_the_labels_of_every_task(tmp_path, task):
    side = 160
    scenes.write_dataset(tmp_path, 6, seed=20, width=side, height=side, task=task)
    for i in range(6):
        item = scenes.scene(20 + i, side, side, task)
        rows, polygons, keypoints = read(tmp_path, task, i)
        assert rows[:, 0].tolist() == item.classes.tolist()
        if task == "segment":
            masks, order = polygons2masks_overlap((side, side), [p.reshape(-1) * side for p in polygons])
            wanted = np.concatenate([[0], 1 + np.argsort(order)])[item.masks]
            assert (masks != wanted).mean() < 0.005
        elif task == "pose":
            np.testing.assert_allclose(keypoints * [side, side, 1], item.keypoints, atol=0.01)
        else:
            np.testing.assert_allclose(np.array(polygons) * side, item.corners.clip(0, side), atol=0.01)


def test_a_classify_data_set_has_a_folder_for_each_class_in_the_order_of_names(tmp_path):
    scenes.write_dataset(tmp_path, 12, seed=5, width=64, task="classify")
    names = list(scenes.KINDS["classify"].classes)
    assert names == sorted(names)
    for i in range(12):
        image, label = scenes.crop(5 + i, 64)
        written = cv2.imread(str(tmp_path / names[label] / f"{i:05}.jpg"), cv2.IMREAD_COLOR_RGB)
        assert np.abs(written.astype(int) - image).mean() < 8


def test_the_command_writes_a_data_set(tmp_path):
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
