"""The images that engines are judged and quantized on: a folder's, the demo model's own scenes, or the samples.

Labels are read as Ultralytics reads them (data.yaml, images/ and labels/, class cx cy w h or polygons, relative) or as
COCO writes them (a JSON with images, annotations and categories).
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from app import images
from app.errors import RequestError, SettingsError
from app.images import Boxes, Pixels

MOST = 500  # images of a folder; of more, as many at even distances
SCENES = 48  # of the demo's generator, for the gate
DEMO = Path(__file__).parents[1] / "models" / "demo"

_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif"))
_GATE_SEED, _CALIBRATION_SEED = 500_000, 600_000  # evaluation has the seeds from 0, training those from a million


@dataclass(frozen=True, slots=True)
class Picture:
    """One image and, if it is labelled, what is on it."""

    pixels: Pixels
    boxes: Boxes | None = None  # px
    classes: NDArray[np.int64] | None = None


class Dataset(Protocol):
    """Images in a fixed order."""

    name: str
    labelled: bool

    def __iter__(self) -> Iterator[Picture]: ...


class Scenes:
    """Generated scenes, for the demo model."""

    def __init__(self, name: str, first: int, count: int) -> None:
        self.name = f"{count} {name} scenes"
        self.labelled = True
        self._seeds = range(first, first + count)

    def __iter__(self) -> Iterator[Picture]:
        spec = importlib.util.spec_from_file_location("scenes", DEMO / "scenes.py")
        assert spec is not None
        assert spec.loader is not None
        scenes = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(scenes)
        for seed in self._seeds:
            scene = scenes.scene(seed)
            yield Picture(scene.image, scene.boxes, scene.classes)


class Files:
    """Image files without labels."""

    labelled = False

    def __init__(self, name: str, paths: list[Path]) -> None:
        self.name, self._paths = name, paths

    def __iter__(self) -> Iterator[Picture]:
        for path in self._paths:
            yield Picture(_read(path))


class Folder:
    """Image files with labels. `classes` are the model's, by id; labels of classes it has not are left out."""

    labelled = True

    def __init__(self, name: str, labels: dict[Path, NDArray[np.float64]], *, relative: bool) -> None:
        self.name, self._labels, self._relative = name, labels, relative

    def __iter__(self) -> Iterator[Picture]:
        for path, rows in self._labels.items():
            pixels = _read(path)
            height, width = pixels.shape[:2]
            boxes = rows[:, 1:] * ([width, height] * 2 if self._relative else 1)
            yield Picture(pixels, boxes.astype(np.float32), rows[:, 0].astype(np.int64))


def samples() -> Files:
    """The demo's samples and, where ultralytics is installed, its two photos."""
    paths = sorted((DEMO / "samples").glob("*.jpg"))
    if spec := importlib.util.find_spec("ultralytics"):
        paths += sorted(Path(str(spec.origin)).parent.glob("assets/*.jpg"))
    return Files(f"{len(paths)} sample images", paths)


def gate_scenes() -> Scenes:
    """What the demo model is judged on."""
    return Scenes("demo", _GATE_SEED, SCENES)


def calibration_scenes(count: int) -> Scenes:
    """What the demo model is calibrated on."""
    return Scenes("demo", _CALIBRATION_SEED, count)


def folder(path: Path, names: dict[int, str], setting: str) -> Dataset:
    """The images of a folder, with labels where it has them. Raises SettingsError, which names the setting."""
    found = _images(path, setting)
    name = f"{len(found)} images of {path}"
    if annotations := _coco(path):
        boxes = _coco_labels(annotations, names, setting)
        return Folder(name, {image: boxes.get(image.name, _none()) for image in found}, relative=False)
    labels = {image: label for image in found if (label := _label_file(image)).is_file()}
    if not labels:
        return Files(name, found)
    ids = _class_ids(path, names, setting)
    return Folder(name, {i: _yolo_labels(labels[i], ids) if i in labels else _none() for i in found}, relative=True)


def digest(path: Path, setting: str) -> str:
    """Changes when images come, go or change in size, and with every byte of their labels."""
    _images(path, setting)
    state = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        state.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode())
        if file.suffix in (".txt", ".json", ".yaml"):
            state.update(file.read_bytes())
    return state.hexdigest()[:16]


def _images(path: Path, setting: str) -> list[Path]:
    if not path.is_dir():
        raise SettingsError(f"{setting}={path}: no such folder")
    root = _validation_root(path)
    found = sorted(file for file in root.rglob("*") if file.suffix.lower() in _SUFFIXES)
    if not found:
        raise SettingsError(f"{setting}={path}: there are no images in {root}")
    picked = np.linspace(0, len(found) - 1, min(MOST, len(found))).astype(int)
    return [found[i] for i in picked]


def _validation_root(path: Path) -> Path:
    """Of a data set in Ultralytics' layout its `val` images; otherwise the folder itself."""
    val = _yaml(path).get("val")
    return path / str(val) if isinstance(val, str) and (path / val).is_dir() else path


def _yaml(path: Path) -> dict[str, Any]:
    files = sorted(path.glob("*.yaml"))
    if not files:
        return {}
    import yaml

    content = yaml.safe_load(files[0].read_text())
    return content if isinstance(content, dict) else {}


def _read(path: Path) -> Pixels:
    try:
        return images.decode(path.read_bytes(), max_pixels=200_000_000)
    except RequestError as error:
        raise SettingsError(f"{path}: {error}") from error


def _none() -> NDArray[np.float64]:
    return np.zeros((0, 5))


def _label_file(image: Path) -> Path:
    """Ultralytics' rule: the last `images` of the path becomes `labels`."""
    head, found, tail = str(image).rpartition("/images/")
    return (Path(f"{head}/labels/{tail}") if found else image).with_suffix(".txt")


def _class_ids(path: Path, names: dict[int, str], setting: str) -> dict[int, int]:
    """The label files' class ids -> the model's: by name where data.yaml has names, else they are the same."""
    listed = _yaml(path).get("names")
    if not listed:
        return {i: i for i in names}
    entries = listed.items() if isinstance(listed, dict) else enumerate(listed)
    by_name = {name: i for i, name in names.items()}
    ids = {int(i): by_name[name] for i, name in entries if name in by_name}
    if not ids:
        raise SettingsError(f"{setting}={path}: data.yaml names none of the model's classes")
    return ids


def _yolo_labels(path: Path, ids: dict[int, int]) -> NDArray[np.float64]:
    """[N, 5]: class x1 y1 x2 y2, relative."""
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            label, *values = (float(value) for value in line.split()) if line.strip() else (-1.0,)
            if int(label) in ids:
                rows.append([ids[int(label)], *_corners(values)])
        except ValueError as error:
            raise SettingsError(f"{path}, line {number}: not 'class cx cy w h' nor a polygon") from error
    return np.array(rows, float).reshape(-1, 5)


def _corners(values: list[float]) -> tuple[float, float, float, float]:
    if len(values) == 4:
        x, y, width, height = values
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if len(values) < 6 or len(values) % 2:
        raise ValueError(values)
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


def _coco(path: Path) -> dict[str, Any] | None:
    """The first JSON of the folder, or of its annotations/, that is in COCO's format."""
    for file in [*sorted(path.glob("*.json")), *sorted(path.glob("annotations/*.json"))]:
        content = json.loads(file.read_bytes())
        if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
            return content
    return None


def _coco_labels(content: dict[str, Any], names: dict[int, str], setting: str) -> dict[str, NDArray[np.float64]]:
    """File name -> [N, 5]: class x1 y1 x2 y2 in px; crowds are left out."""
    by_name = {name: i for i, name in names.items()}
    ids = {entry["id"]: by_name[entry["name"]] for entry in content["categories"] if entry["name"] in by_name}
    if not ids:
        raise SettingsError(f"{setting}: the categories of the COCO file are none of the model's classes")
    rows: dict[int, list[list[float]]] = {entry["id"]: [] for entry in content["images"]}
    for entry in content["annotations"]:
        if entry["category_id"] in ids and not entry.get("iscrowd") and entry["image_id"] in rows:
            x, y, width, height = entry["bbox"]
            rows[entry["image_id"]].append([ids[entry["category_id"]], x, y, x + width, y + height])
    files = {entry["id"]: Path(entry["file_name"]).name for entry in content["images"]}
    return {files[i]: np.array(found, float).reshape(-1, 5) for i, found in rows.items()}
