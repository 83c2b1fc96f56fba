"""The images that engines are evaluated and quantized on: a folder's, the demo models' own scenes, or the samples.

Labels are read as Ultralytics has them (data.yaml, images/ and labels/; of classify a folder for each class) or as COCO
writes them.
"""

import hashlib
import importlib.util
import os
import runpy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml

from app.errors import RequestError, SettingsError
from app.evaluation.datasets import annotations, coco
from app.evaluation.datasets.annotations import Annotation, Labels
from app.model import ModelInfo
from app.settings import DEMO
from app.store.manifest import sha256
from app.vision import preprocess
from app.vision.preprocess import Pixels

MAX_IMAGES = 500  # images of a folder; of more, as many at even distances
SCENES = {
    "detect": 48,
    "segment": 240,
    "pose": 240,
    "obb": 240,
    "classify": 480,
}  # of the demo's generator, for the gate
SIDES = {"detect": 640, "segment": 160, "pose": 160, "obb": 160, "classify": 96}  # px, as the demo models were trained

_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif"))
_GATE_SEED, _CALIBRATION_SEED = 500_000, 600_000  # evaluation has the seeds from 0, training those from a million


@dataclass(frozen=True, slots=True)
class Sample:
    """One image and, if it is labelled, what is on it."""

    pixels: Pixels
    labels: Labels | None = None


Label = Callable[[Path, tuple[int, int]], Labels | None]  # an image's file, height and width -> its labels


class Dataset(Protocol):
    """Images in a fixed order."""

    name: str
    labelled: bool

    def __iter__(self) -> Iterator[Sample]: ...


class Scenes:
    """Generated scenes, for the demo model of a task, square."""

    def __init__(self, task: str, first: int, count: int) -> None:
        self.name = f"{count} demo scenes"
        self.labelled = True
        self._task, self._side, self._seeds = task, SIDES[task], range(first, first + count)

    def __iter__(self) -> Iterator[Sample]:
        make = runpy.run_path(str(DEMO / "scenes.py"))
        for seed in self._seeds:
            if self._task == "classify":
                pixels, label = make["crop"](seed, self._side)
                yield Sample(pixels, Labels(np.array([label]), np.zeros((1, 0), np.float32)))
            else:
                scene = make["scene"](seed, self._side, self._side, self._task)
                yield Sample(scene.image, _of_scene(scene, self._task))


def _of_scene(scene: Any, task: str) -> Labels:
    match task:
        case "segment":
            masks = [annotations.whole((scene.masks == 1 + i).astype(np.uint8)) for i in range(len(scene.classes))]
            return Labels(scene.classes, scene.boxes, masks=masks)
        case "pose":
            return Labels(scene.classes, scene.boxes, scene.keypoints)
        case "obb":
            return Labels(scene.classes, annotations.rotated(scene.corners))
    return Labels(scene.classes, scene.boxes)


class Files:
    """Image files, and what tells the labels of one of a height and width; None = they have none."""

    def __init__(self, name: str, paths: list[Path], label: Label | None = None) -> None:
        self.name, self.labelled = name, label is not None
        self._paths, self._label = paths, label

    def __iter__(self) -> Iterator[Sample]:
        for path in self._paths:
            pixels = _read(path)
            yield Sample(pixels, self._label(path, pixels.shape[:2]) if self._label else None)


def samples() -> Files:
    """The demo's samples and, where ultralytics is installed, its two photos."""
    paths = sorted((DEMO / "samples").glob("*.jpg"))
    if spec := importlib.util.find_spec("ultralytics"):
        paths += sorted(Path(str(spec.origin)).parent.glob("assets/*.jpg"))
    return Files(f"{len(paths)} sample images", paths)


def gate_scenes(model: ModelInfo) -> Scenes:
    """What the demo model of this task is evaluated on."""
    return Scenes(model.task, _GATE_SEED, SCENES[model.task])


def calibration_scenes(model: ModelInfo, count: int) -> Scenes:
    """What it is calibrated on."""
    return Scenes(model.task, _CALIBRATION_SEED, count)


def is_demo(weights_sha256: str) -> bool:
    """Whether these are the weights of a demo model, which is evaluated and calibrated on scenes."""
    return any(sha256(demo) == weights_sha256 for demo in DEMO.glob("*.pt"))


def folder(path: Path, model: ModelInfo, setting: str, most: int | None = None, *, labelled: bool = True) -> Dataset:
    """The images of a folder, with labels if they are to be `labelled` and there are any.

    Raises SettingsError, which names the setting, and the file and line of a label that is none of the model's task.
    """
    found = _images(path, setting)
    of_coco = coco.read(path, found, model, setting) if labelled and model.task != "classify" else {}
    found = list(of_coco) or found
    picked = [found[i] for i in np.linspace(0, len(found) - 1, min(most or MAX_IMAGES, len(found))).astype(int)]
    annotated = of_coco
    if labelled and not of_coco:
        annotated = (
            _by_folder(path, found, model, setting)
            if model.task == "classify"
            else _by_file(path, picked, model, setting)
        )

    def label(image: Path, size: tuple[int, int]) -> Labels | None:
        return annotations.at(annotated[image], model, size, px=bool(of_coco)) if image in annotated else None

    return Files(f"{len(picked)} images of {path}", picked, label if annotated else None)


def digest(path: Path, setting: str) -> str:
    """Changes when images come, go or change in size, and with every byte of what labels them."""
    found = _images(path, setting)
    described = [
        *_yaml(path)[0],
        *coco.files(path),
        *(file for image in found if (file := _label_file(image)).is_file()),
    ]
    state = hashlib.sha256()
    for file in (*found, *described):
        state.update(f"{os.path.relpath(file, path)} {file.stat().st_size}\n".encode())
    for file in described:
        state.update(file.read_bytes())
    return state.hexdigest()[:16]


def _images(path: Path, setting: str) -> list[Path]:
    """All of them; of a data set in Ultralytics' layout those of `val`: folders, or text files that list images; where
    no data.yaml says what that is, those of the folder val, or else test.
    """
    if not path.is_dir():
        raise SettingsError(f"{setting}={path}: no such folder")
    split = next((name for name in ("val", "test") if (path / name).is_dir()), ".")
    val = _yaml(path)[1].get("val") or split
    places = [_place(path, str(entry), setting) for entry in (val if isinstance(val, list) else [val])]
    found = sorted({image for place in places for image in _images_at(place)})
    if not found:
        raise SettingsError(f"{setting}={path}: there are no images in {' or '.join(map(str, places))}")
    return found


def _place(path: Path, val: str, setting: str) -> Path:
    """Where `val` is: the `path` of data.yaml may be another machine's, and Ultralytics tries it without ../ too."""
    root = path / str(_yaml(path)[1].get("path") or ".")
    for place in (root / val, path / val, path / val.removeprefix("../")):
        if place.exists():
            return place
    raise SettingsError(f"{setting}={path}: the val of its data.yaml, {val}, is not there")


def _images_at(place: Path) -> list[Path]:
    if place.is_dir():
        files = (file for file in place.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
        return [file for file in files if "/." not in f"/{file.relative_to(place)}"]
    found = [place.parent / line.strip() for line in _text(place).splitlines() if line.strip()]
    for file in found:
        if not file.is_file():
            raise SettingsError(f"{place} lists {file}, which is not there")
    return found


def _yaml(path: Path) -> tuple[list[Path], dict[str, Any]]:
    """data.yaml, or whatever its name is, and what it says; nothing if there is none."""
    files = sorted((*path.glob("*.yaml"), *path.glob("*.yml")), key=lambda file: (file.stem != "data", file.name))[:1]
    if not files:
        return [], {}
    try:
        content = yaml.safe_load(_text(files[0]))
    except yaml.YAMLError as error:
        raise SettingsError(f"{files[0]} is no YAML: {str(error).splitlines()[0]}") from error
    return files, content if isinstance(content, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read as text: {error}") from error


def _read(path: Path) -> Pixels:
    try:
        return preprocess.decode(path.read_bytes(), max_pixels=200_000_000)
    except (OSError, RequestError) as error:
        raise SettingsError(f"{path}: {error}") from error


def _label_file(image: Path) -> Path:
    """Ultralytics' rule: the last `images` of the path becomes `labels`."""
    head, found, tail = str(image.absolute()).rpartition("/images/")
    return (Path(f"{head}/labels/{tail}") if found else image).with_suffix(".txt")


def _by_file(path: Path, picked: list[Path], model: ModelInfo, setting: str) -> dict[Path, list[Annotation]]:
    """Of each image the objects in its label file; none of any if no image has one."""
    files = {image: file for image in picked if (file := _label_file(image)).is_file()}
    if not files:
        return {}
    about = _yaml(path)[1]
    if about.get("kpt_shape") and model.task != "pose":
        raise SettingsError(
            f"{setting}={path}: by data.yaml's kpt_shape it labels poses, and {model.name} is for {model.task}"
        )
    ids = _class_ids(about.get("names"), model, path, setting)
    if not ids:
        raise SettingsError(f"{setting}={path}: data.yaml names none of the model's classes")
    return {
        image: annotations.read(files[image], _text(files[image]), ids, model) if image in files else []
        for image in picked
    }


def _class_ids(listed: Any, model: ModelInfo, path: Path, setting: str) -> dict[Any, int]:
    """The data set's classes -> the model's: by name where it has names, else the ids are the same."""
    if not listed:
        return {i: i for i in model.names}
    try:
        return annotations.class_ids(listed if isinstance(listed, dict) else dict(enumerate(listed)), model)
    except ValueError as error:
        raise SettingsError(f"{setting}={path}: {error}") from error


def _by_folder(path: Path, found: list[Path], model: ModelInfo, setting: str) -> dict[Path, list[Annotation]]:
    """Of each image the class that its folder is named after; else as Ultralytics numbers folders, in their order."""
    folders = sorted({image.parent.name for image in found})
    ids = _class_ids({name: name for name in folders}, model, path, setting)
    if not ids:
        if len(folders) == 1:
            return {}
        if len(folders) != len(model.names):
            raise SettingsError(
                f"{setting}={path}: its folders are named after none of the model's classes, nor are there "
                f"{len(model.names)}. Name them so, or put all images into one to be evaluated without labels"
            )
        ids = dict(zip(folders, sorted(model.names), strict=True))
    nowhere = np.zeros((0, 2), np.float32)
    return {image: [Annotation(ids[name], nowhere)] for image in found if (name := image.parent.name) in ids}
