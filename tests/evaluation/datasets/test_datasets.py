"""Folders of images and labels in the layouts of Ultralytics and COCO, and the demo's scenes."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import scenes
from PIL import Image

from app.errors import SettingsError
from app.evaluation import datasets
from app.evaluation.datasets import Sample
from app.evaluation.datasets.annotations import Labels
from app.model import TASKS, ModelInfo
from app.vision import masks

PETS = ModelInfo("pets", "detect", {0: "cat", 1: "dog", 2: "cow"}, stride=32, imgsz=64, shapes=None)
WIDTH, HEIGHT = 40, 20
BOX = "0.5 0.5 0.5 0.5"
PX = [10, 5, 30, 15]  # BOX in pixels of a WIDTH x HEIGHT image
ORIENTATION = 0x0112


@pytest.fixture
def root(tmp_path) -> Path:
    (folder := tmp_path / "pets").mkdir()
    return folder


def draw(path: Path, *, orientation: int = 1, width: int = WIDTH) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.new("RGB", (width, HEIGHT), (200, 0, 0)).save(path, exif=exif)
    return path


def yolo(root: Path, labels: dict[str, str | None], data: str | None = None) -> Path:
    """Write images/ and labels/; None means that the image has no label file."""
    for name, text in labels.items():
        draw(root / "images" / f"{name}.png")
        if text is not None:
            write(root / "labels" / f"{name}.txt", text)
    if data is not None:
        (root / "data.yaml").write_text(data)
    return root


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(root: Path, model: ModelInfo = PETS) -> list[Sample]:
    return list(datasets.folder(root, model, "GATE_DIR"))


def boxes(root: Path, model: ModelInfo = PETS) -> list[list[list[float]]]:
    """Return [class, x1, y1, x2, y2] of every label of every image."""
    return [
        [[label, *box] for label, box in zip(labels.classes.tolist(), labels.boxes.tolist(), strict=True)]
        for labels in (seen.labels for seen in read(root, model))
    ]


# Ultralytics' layout


def test_images_and_labels_are_read_in_the_order_of_file_names(root):
    yolo(root, {"b": f"1 {BOX}\n0 0.25 0.25 0.5 0.5\n", "a": f"2 {BOX}"})
    dataset = datasets.folder(root, PETS, "GATE_DIR")
    assert (dataset.name, dataset.labelled) == (f"2 images of {root}", True)
    assert boxes(root) == [[[2, *PX]], [[1, *PX], [0, 0, 0, 20, 10]]]
    first = next(iter(dataset))
    assert (first.pixels.shape, first.pixels.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
    assert (first.labels.boxes.dtype, first.labels.classes.dtype) == (np.float32, np.int64)


def test_the_data_set_of_the_demos_generator_is_read_back(root):
    scenes.write_dataset(root, 2, seed=3, width=160, height=96)
    model = dataclasses.replace(PETS, names=dict(enumerate(scenes.NAMES)))
    for i, seen in enumerate(datasets.folder(root, model, "GATE_DIR")):
        scene = scenes.scene(3 + i, 160, 96)
        assert seen.labels.classes.tolist() == scene.classes.tolist()
        np.testing.assert_allclose(seen.labels.boxes, scene.boxes, atol=0.01)


def test_a_polygon_becomes_the_box_around_it(root):
    yolo(root, {"a": "1 0.5 0.25 0.75 0.5 0.5 0.75 0.25 0.5"})
    assert boxes(root) == [[[1, *PX]]]


def test_crlf_blank_lines_and_a_byte_order_mark_are_accepted(root):
    yolo(root, {"a": f"\ufeff1 {BOX}\r\n\r\n2 {BOX}\r\n"})
    assert boxes(root) == [[[1, *PX], [2, *PX]]]


def test_an_image_without_a_label_file_or_with_an_empty_one_is_background(root):
    yolo(root, {"a": f"1 {BOX}", "b": None, "c": ""})
    assert boxes(root) == [[[1, *PX]], [], []]
    assert read(root)[1].labels.boxes.shape == (0, 4)


def test_a_folder_without_any_label_file_is_unlabelled(root):
    yolo(root, {"a": None, "b": None})
    dataset = datasets.folder(root, PETS, "GATE_DIR")
    assert (dataset.name, dataset.labelled) == (f"2 images of {root}", False)
    assert [seen.labels for seen in dataset] == [None] * 2


def test_labels_may_be_next_to_their_images(root):
    draw(root / "a.png")
    write(root / "a.txt", f"1 {BOX}")
    assert boxes(root) == [[[1, *PX]]]


def test_a_relative_images_folder_finds_its_labels(root, monkeypatch):
    yolo(root, {"a": f"1 {BOX}"})
    monkeypatch.chdir(root)
    assert boxes(Path("images")) == [[[1, *PX]]]


def test_hidden_files_folders_named_like_images_and_other_files_are_ignored(root):
    yolo(root, {"a": f"1 {BOX}"})
    (root / "images" / "folder.jpg").mkdir()
    write(root / "images" / "._a.png", b"AppleDouble")
    write(root / "images" / ".thumbnails" / "a.png", b"small")
    write(root / "images" / "notes.md", "cats")
    assert len(read(root)) == 1


@pytest.mark.parametrize("names", ["[dog, bird, cat]", "{0: dog, 1: bird, 2: cat}"])
def test_classes_are_mapped_by_name_from_data_yaml_and_unknown_ones_are_ignored(root, names):
    yolo(root, {"a": f"0 {BOX}\n1 {BOX}\n2 {BOX}\n7 {BOX}"}, f"names: {names}")
    assert boxes(root) == [[[1, *PX], [0, *PX]]]


def test_classes_of_one_name_are_refused_if_their_number_differs_from_the_models(root):
    twins = dataclasses.replace(PETS, names={0: "cat", 1: "cat"})
    yolo(root, {"a": f"0 {BOX}\n1 {BOX}"}, "names: [cat, cat]")
    assert boxes(root, twins) == [[[0, *PX], [1, *PX]]]
    (root / "data.yaml").write_text("names: [cat]")
    with pytest.raises(SettingsError, match=r"GATE_DIR=.*pets: it has 1 class 'cat' and pets has 2, 0, 1"):
        read(root, twins)


def test_without_names_the_ids_are_those_of_the_model_and_others_are_ignored(root):
    yolo(root, {"a": f"2 {BOX}\n3 {BOX}\n-1 {BOX}"}, "nc: 4")
    assert boxes(root) == [[[2, *PX]]]


@pytest.mark.parametrize("names", ["[bird]", "{cat: 0}", "cat"])
def test_data_set_of_other_classes_is_refused(root, names):
    yolo(root, {"a": f"0 {BOX}"}, f"names: {names}")
    with pytest.raises(SettingsError, match=r"GATE_DIR=.*pets: data\.yaml names none of the model's classes"):
        read(root)


# data.yaml's val


def split(root: Path, data: str, name: str = "data.yaml") -> Path:
    """Write training images, which must not be used, and two folders of other images."""
    draw(root / "images" / "train" / "t.png")
    for i, folder in enumerate(("val", "more")):
        draw(root / "images" / folder / f"{folder}.png")
        write(root / "labels" / folder / f"{folder}.txt", f"{i} {BOX}")
    write(root / name, data)
    return root


@pytest.mark.parametrize(
    "data",
    [
        "val: images/val",
        "path: .\nval: images/val",
        "path: ../pets\nval: images/val",
        "path: /nowhere/pets\nval: images/val",
        "path: datasets/pets\nval: images/val",
        "val: ../images/val",
        "val: [images/val]",
    ],
)
def test_only_the_validation_images_are_used(root, data):
    assert boxes(split(root, data)) == [[[0, *PX]]]


def test_validation_images_may_be_in_several_folders(root):
    assert boxes(split(root, "val: [images/val, images/more]")) == [[[1, *PX]], [[0, *PX]]]


def test_validation_images_may_be_outside_the_folder_and_change_the_digest(root, tmp_path):
    split(tmp_path / "far", "")
    write(root / "data.yaml", f"path: {tmp_path / 'far'}\nval: images/val")
    assert boxes(root) == [[[0, *PX]]]
    before = datasets.digest(root, "GATE_DIR")
    write(tmp_path / "far" / "labels" / "val" / "val.txt", f"1 {BOX}")
    assert datasets.digest(root, "GATE_DIR") != before


@pytest.mark.parametrize("line", ["./images/val/val.png", "images/val/val.png", "{root}/images/val/val.png"])
def test_validation_images_may_be_listed_in_a_text_file(root, line):
    split(root, "val: val.txt")
    write(root / "val.txt", line.format(root=root) + "\r\n\r\n")
    assert boxes(root) == [[[0, *PX]]]


def test_a_missing_listed_image_is_named(root):
    split(root, "val: val.txt")
    write(root / "val.txt", "./images/val/gone.png")
    with pytest.raises(SettingsError, match=r"val\.txt lists .*gone\.png, which does not exist"):
        read(root)


def test_a_missing_validation_folder_is_an_error(root):
    with pytest.raises(SettingsError, match=r"GATE_DIR=.*pets: the val of its data\.yaml, images/test, does not exist"):
        read(split(root, "val: images/test"))


def test_data_yaml_is_preferred_and_may_have_another_name(root):
    split(root, "val: images/val")
    write(root / "args.yaml", "val: true")
    assert boxes(root) == [[[0, *PX]]]
    for file in root.glob("*.yaml"):
        file.unlink()
    assert boxes(split(root, "val: images/more", "coco8.yml")) == [[[1, *PX]]]


@pytest.mark.parametrize("data", [b"val: [", b"\xff\xfe\x00v"], ids=["cut", "no text"])
def test_broken_data_yaml_is_named(root, data):
    yolo(root, {"a": None})
    write(root / "data.yaml", data)
    with pytest.raises(SettingsError, match=r"data\.yaml "):
        read(root)


# COCO

CATEGORIES = ["dog", "bird", "cat"]  # the ids start at 1


def coco(images: Sequence[str], labels: Sequence[dict], categories: Sequence[str] = tuple(CATEGORIES)) -> str:
    """Return a COCO file as JSON; image ids start at 100."""
    return json.dumps(
        {
            "images": [{"id": 100 + i, "file_name": name} for i, name in enumerate(images)],
            "annotations": [{"id": i} | label for i, label in enumerate(labels)],
            "categories": [{"id": 1 + i, "name": name} for i, name in enumerate(categories)],
        }
    )


def label(image: int, category: int = 1, **more: object) -> dict:
    return {"image_id": 100 + image, "category_id": category, "bbox": [10, 5, 20, 10]} | more


def test_coco_categories_are_mapped_by_name_and_crowds_and_unknown_ones_are_ignored(root):
    for name in "abc":
        draw(root / f"{name}.png")
    labels = [label(0), label(0, 3), label(0, 2), label(1, iscrowd=1), label(1, 3, iscrowd=0), label(9)]
    write(root / "labels.json", coco(["a.png", "b.png", "c.png"], labels))
    assert boxes(root) == [[[1, *PX], [0, *PX]], [[0, *PX]], []]
    assert datasets.folder(root, PETS, "GATE_DIR").labelled


def test_images_that_the_coco_file_does_not_list_are_not_used(root):
    for name in "abc":
        draw(root / f"{name}.png")
    write(root / "labels.json", coco(["b.png"], [label(0)]))
    assert boxes(root) == [[[1, *PX]]]
    assert datasets.folder(root, PETS, "GATE_DIR").name == f"1 images of {root}"


def test_coco_files_for_other_images_or_of_another_kind_are_skipped(root):
    draw(root / "val2017" / "a.png")
    write(root / "annotations" / "captions.json", '{"images": [], "annotations": []}')
    write(root / "annotations" / "instances_train.json", coco(["z.png"], [label(0, 3)]))
    write(root / "annotations" / "instances_val.json", coco(["a.png"], [label(0)]))
    write(root / "results.json", "[1, 2]")
    assert boxes(root) == [[[1, *PX]]]


def test_images_of_the_same_name_in_several_folders_are_distinguished(root):
    names = ["one/a.png", "two/a.png", "a.png"]
    for name in names:
        draw(root / "images" / name)
    write(root / "labels.json", coco(names, [label(0), label(1, 3), label(2), label(2, 3)]))
    assert boxes(root) == [[[1, *PX], [0, *PX]], [[1, *PX]], [[0, *PX]]]


def test_images_of_the_same_name_are_refused_if_the_coco_file_has_no_folders(root):
    for folder in ("one", "two"):
        draw(root / folder / "a.png")
    write(root / "labels.json", coco(["a.png"], [label(0)]))
    with pytest.raises(SettingsError, match=r"labels\.json .* does not distinguish images of the same name"):
        read(root)


@pytest.mark.parametrize("name", ["./a.png", "train2017/a.png", "/data/upload/a.png"])
def test_an_image_whose_folder_has_changed_is_found_by_its_name(root, name):
    draw(root / "a.png")
    write(root / "labels.json", coco([name], [label(0)]))
    assert boxes(root) == [[[1, *PX]]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (coco(["z.png"], []), "lists none of its images"),
        (coco(["a.png"], [], ["bird"]), "none of its categories is a class of the model"),
        (coco(["a.png"], [label(0)])[:-30], "JSONDecodeError"),
        (coco(["a.png"], [label(0)]).encode().replace(b"bird", b"b\xe9rd"), "UnicodeDecodeError"),
        (b"", "JSONDecodeError"),
        (coco(["a.png"], [label(0, bbox=[1, 2, 3])]), "ValueError"),
        (coco(["a.png"], [{"image_id": 100, "category_id": 1}]), "bbox"),
        ('{"images": 1, "annotations": [], "categories": []}', "TypeError"),
    ],
)
def test_unusable_coco_file_is_named_with_the_setting(root, text, message):
    draw(root / "a.png")
    write(root / "labels.json", text)
    with pytest.raises(SettingsError, match=rf"GATE_DIR.*labels\.json.*{message}"):
        read(root)


# Images


@pytest.mark.parametrize("labels", ["yolo", "coco"])
def test_labels_of_images_with_exif_orientation_are_those_of_the_upright_image(root, labels):
    draw(root / "images" / "a.jpg", orientation=6)
    if labels == "yolo":
        write(root / "labels" / "a.txt", f"1 {BOX}")
    else:
        write(root / "labels.json", coco(["a.jpg"], [label(0, bbox=[5, 10, 10, 20])]))
    (seen,) = read(root)
    assert seen.pixels.shape == (WIDTH, HEIGHT, 3)
    assert seen.labels.boxes.tolist() == [[5, 10, 15, 30]]


@pytest.mark.parametrize("count", [3, 4, 5, 8, 13])
def test_more_images_than_the_maximum_are_sampled_evenly(root, monkeypatch, count):
    monkeypatch.setattr(datasets, "MAX_IMAGES", 4)
    yolo(root, {f"{i:02}": f"1 {BOX}" for i in range(count)})
    for i in range(count):
        draw(root / "images" / f"{i:02}.png", width=WIDTH + i)
    dataset = datasets.folder(root, PETS, "GATE_DIR")
    taken = [seen.pixels.shape[1] - WIDTH for seen in dataset]
    assert dataset.name == f"{min(count, 4)} images of {root}"
    assert taken == sorted(set(taken))
    assert (taken[0], taken[-1]) == (0, count - 1)
    assert np.ptp(np.diff(taken)) <= 1
    assert len(taken) == min(count, 4)


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x89PNG\r\n\x1a\n cut"], ids=["empty", "garbage", "cut"])
def test_broken_image_is_named(root, data):
    write(yolo(root, {"a": None}) / "images" / "b.png", data)
    with pytest.raises(SettingsError, match=r"images/b\.png: "):
        read(root)


@pytest.mark.parametrize(
    "line",
    [
        "cat 0.5 0.5 0.5 0.5",
        "1",
        "1 0.5 0.5 0.5",
        "1 0.5 0.5 0.5 0.5 0.9",
        "1 0.5 0.5 0.5 0.5 0.5 0.5 0.5",
        "1 nan 0.5 0.5 0.5",
        "1 inf 0.5 0.5 0.5",
        "nan",
        "1 20 10 20 10",
        "1 -0.2 0.5 0.5 0.5",
        "99 0.5",
    ],
)
def test_broken_label_is_named_with_its_line(root, line):
    yolo(root, {"a": f"1 {BOX}\n\n{line}\n"})
    with pytest.raises(SettingsError, match=r"labels/a\.txt, line 3: not 'class cx cy w h' nor a polygon"):
        read(root)


@pytest.mark.parametrize("odd", ["0.5", "nan", "inf"])
def test_a_label_whose_class_is_no_id_of_the_model_is_ignored(root, odd):
    yolo(root, {"a": f"{odd} {BOX}\n1 {BOX}"})
    assert boxes(root) == [[[1, *PX]]]


def test_a_label_file_that_is_not_text_is_named(root):
    yolo(root, {"a": None})
    write(root / "labels" / "a.txt", b"1 \xff\xfe")
    with pytest.raises(SettingsError, match=r"labels/a\.txt cannot be read as text"):
        read(root)


@pytest.mark.parametrize("use", [lambda path: datasets.folder(path, PETS, "CALIBRATION_DIR"), None])
def test_a_missing_or_empty_folder_is_named_with_the_setting(root, use):
    use = use or (lambda path: datasets.digest(path, "CALIBRATION_DIR"))
    with pytest.raises(SettingsError, match=r"CALIBRATION_DIR=.*nowhere: no such folder"):
        use(root / "nowhere")
    with pytest.raises(SettingsError, match=r"CALIBRATION_DIR=.*pets: there are no images in "):
        use(root)


# Classes of whole images

CLASSIFY = dataclasses.replace(PETS, task="classify")


def classes(root: Path, model: ModelInfo = CLASSIFY) -> list[int | None]:
    return [None if seen.labels is None else int(seen.labels.classes[0]) for seen in read(root, model)]


def test_an_images_class_is_the_name_of_its_folder(root):
    for name in ("cow/a", "cat/b", "dog/c", "bird/d"):
        draw(root / f"{name}.png")
    assert classes(root) == [None, 0, 2, 1]  # in the order of the paths


@pytest.mark.parametrize("split", ["val", "test"])
def test_training_images_are_not_used(root, split):
    for name in ("train/cat/a", f"{split}/dog/b"):
        draw(root / f"{name}.png")
    assert classes(root) == [1]


def test_folders_of_other_names_are_numbered_in_order_if_their_number_fits(root):
    for name in ("n03", "n01", "n02"):
        draw(root / name / "a.png")
    assert classes(root) == [0, 1, 2]


def test_folders_that_match_the_classes_neither_by_name_nor_number_are_refused(root):
    for name in ("one", "two"):
        draw(root / name / "a.png")
    with pytest.raises(SettingsError, match=r"GATE_DIR=.*pets: no folder is named after a class of the model"):
        read(root, CLASSIFY)


def test_a_folder_whose_name_two_classes_share_is_refused(root):
    draw(root / "cat" / "a.png")
    with pytest.raises(SettingsError, match=r"GATE_DIR=.*pets: it has 1 class 'cat' and pets has 2"):
        read(root, dataclasses.replace(CLASSIFY, names={0: "cat", 1: "cat"}))


def test_one_folder_of_images_has_no_classes(root):
    draw(root / "images" / "a.png")
    dataset = datasets.folder(root, CLASSIFY, "GATE_DIR")
    assert (dataset.labelled, [seen.labels for seen in dataset]) == (False, [None])


# Labels of other tasks


@pytest.mark.parametrize("task", ["detect", "segment", "obb"])
def test_a_pose_data_set_is_refused_for_other_tasks(root, task):
    yolo(root, {"a": "0 .5 .5 .2 .2 .4 .4 .6 .6"}, "kpt_shape: [2, 2]")
    with pytest.raises(SettingsError, match=rf"GATE_DIR=.*pets: data\.yaml has kpt_shape, .* pets is for {task}"):
        read(root, dataclasses.replace(PETS, task=task))


def test_labels_are_not_read_if_not_requested(root):
    yolo(root, {"a": "of another kind"})
    (sample,) = datasets.folder(root, PETS, "CALIBRATION_DIR", labelled=False)
    assert sample.labels is None


# The digest


@pytest.fixture
def whole(root) -> Path:
    return yolo(root, {"a": f"1 {BOX}", "b": None}, "names: [cat, dog]")


CHANGES: dict[str, Callable[[Path], object]] = {
    "a label's byte": lambda root: write(root / "labels" / "a.txt", f"2 {BOX}"),
    "a label more": lambda root: write(root / "labels" / "b.txt", ""),
    "a label less": lambda root: (root / "labels" / "a.txt").unlink(),
    "the classes": lambda root: write(root / "data.yaml", "names: [dog, cat]"),
    "an image's size": lambda root: write(root / "images" / "a.png", (root / "images" / "a.png").read_bytes() + b"."),
    "an image more": lambda root: draw(root / "images" / "c.png"),
    "an image less": lambda root: (root / "images" / "b.png").unlink(),
    "an image's name": lambda root: (root / "images" / "b.png").rename(root / "images" / "c.png"),
    "a COCO file": lambda root: write(root / "annotations" / "all.json", coco(["a.png"], [])),
}


@pytest.mark.parametrize("change", CHANGES)
def test_digest_changes_with_the_images_and_their_labels(whole, change):
    before = datasets.digest(whole, "GATE_DIR")
    CHANGES[change](whole)
    assert datasets.digest(whole, "GATE_DIR") != before


def test_digest_does_not_change_with_other_files_mtimes_or_the_location(whole, tmp_path, monkeypatch):
    before = datasets.digest(whole, "GATE_DIR")
    assert len(before) == 16
    write(whole / "labels.cache", b"by Ultralytics")
    write(whole / "images" / ".DS_Store", b"by a Mac")
    write(whole / "README.txt", "cats and dogs")
    (whole / "images" / "a.png").touch()
    moved = whole.rename(tmp_path / "moved")
    assert datasets.digest(moved, "GATE_DIR") == before
    monkeypatch.chdir(tmp_path)
    assert datasets.digest(Path("moved"), "GATE_DIR") == before


# The demo's scenes and samples


def of_task(task: str, imgsz: int = 160) -> ModelInfo:
    kpt_shape = (5, 3) if task == "pose" else None
    names = dict(enumerate(scenes.KINDS[task].classes))
    return dataclasses.replace(PETS, task=task, names=names, imgsz=imgsz, kpt_shape=kpt_shape)


def seeds(monkeypatch, dataset: datasets.Dataset) -> set[int]:
    """Return the seeds of the scenes that the data set generates."""
    made: list[int] = []
    any_scene, any_crop = scenes.scene(0, 32, 32), scenes.crop(0)
    generator = {
        "scene": lambda seed, *_: (made.append(seed), any_scene)[1],
        "crop": lambda seed, *_: (made.append(seed), any_crop)[1],
    }
    monkeypatch.setattr(datasets.runpy, "run_path", lambda _: generator)
    assert len(list(dataset)) == len(made)
    return set(made)


@pytest.mark.parametrize("task", TASKS)
def test_gate_calibration_evaluation_and_training_use_different_scenes(monkeypatch, task):
    gate = seeds(monkeypatch, datasets.gate_scenes(of_task(task)))
    calibration = seeds(monkeypatch, datasets.calibration_scenes(of_task(task), 1000))
    assert (len(gate), len(calibration)) == (datasets.SCENES[task], 1000)
    assert not gate & calibration
    assert min(gate | calibration) >= 500  # models/demo/evaluate.py uses those below
    assert max(gate | calibration) < 1_000_000  # models/demo/train.py uses those from there on


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("make", [datasets.gate_scenes, lambda model: datasets.calibration_scenes(model, 2)])
def test_scenes_are_labelled_and_reproducible(monkeypatch, make, task):
    monkeypatch.setitem(datasets.SCENES, task, 2)
    dataset = make(of_task(task))
    assert (dataset.name, dataset.labelled) == ("2 demo scenes", True)
    first, again = list(dataset), list(make(of_task(task)))
    assert len(first) == len(again) == 2
    for one, other in zip(first, again, strict=True):
        assert len(one.labels.boxes) == len(one.labels.classes) > 0
        assert one.pixels.shape == (datasets.SIDES[task], datasets.SIDES[task], 3)
        np.testing.assert_array_equal(one.pixels, other.pixels)
        assert_same(one.labels, other.labels, px=0)


def assert_same(labels: Labels, expected: Labels, *, px: float) -> None:
    assert labels.classes.tolist() == expected.classes.tolist()
    np.testing.assert_allclose(labels.boxes, expected.boxes, atol=px)
    assert (labels.keypoints is None, labels.masks is None) == (expected.keypoints is None, expected.masks is None)
    if expected.keypoints is not None:
        np.testing.assert_allclose(labels.keypoints, expected.keypoints, atol=px)
    for mask, wanted in zip(labels.masks or [], expected.masks or [], strict=True):
        assert masks.iou(mask, wanted) > 0.95  # fillPoly also draws the lines to holes


@pytest.mark.parametrize("task", TASKS)
def test_the_written_data_set_of_a_task_is_read_back_as_the_scenes(root, task):
    """Write and read Ultralytics' layout: polygons, keypoints, corners, and folders by class."""
    side = datasets.SIDES[task]
    scenes.write_dataset(root, 12, 500_000, side, side, task)
    model = of_task(task)
    dataset = datasets.folder(root, model, "GATE_DIR")
    assert dataset.labelled
    found = list(dataset)
    expected = list(datasets.Scenes(task, 500_000, 12))
    if task == "classify":  # its files are ordered by class
        assert sorted(int(seen.labels.classes[0]) for seen in found) == sorted(
            int(seen.labels.classes[0]) for seen in expected
        )
        return
    for seen, wanted in zip(found, expected, strict=True):
        assert_same(seen.labels, wanted.labels, px=0.51 if task == "segment" else 0.01)  # polygons have whole pixels


def test_samples_are_those_of_the_demo_and_of_ultralytics_and_have_no_labels(monkeypatch):
    dataset = datasets.samples()
    found = list(dataset)
    assert (dataset.name, dataset.labelled) == ("7 sample images", False)
    assert len(found) == 7
    assert all(seen.labels is None for seen in found)
    monkeypatch.setattr(datasets.importlib.util, "find_spec", lambda _: None)
    assert datasets.samples().name == "5 sample images"
