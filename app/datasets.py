"""The images that engines are judged and quantized on: a folder's, the demo model's own scenes, or the samples.

Labels are read as Ultralytics reads them (data.yaml, images/ and labels/, class cx cy w h or polygons, relative) or as
COCO writes them (a JSON with images, annotations and categories).
"""

import hashlib
import importlib.util
import json
import os
import runpy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml
from numpy.typing import NDArray

from app import images
from app.errors import RequestError, SettingsError
from app.images import Boxes, Pixels

MOST = 500  # images of a folder; of more, as many at even distances
SCENES = 48  # of the demo's generator, for the gate
DEMO = Path(__file__).parents[1] / "models" / "demo"

Rows = list[list[float]]

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
        make = runpy.run_path(str(DEMO / "scenes.py"))["scene"]
        for seed in self._seeds:
            scene = make(seed)
            yield Picture(scene.image, scene.boxes, scene.classes)


class Files:
    """Image files, and what labels them: rows of class x1 y1 x2 y2, in px or relative; None = they have no labels."""

    def __init__(self, name: str, paths: list[Path], labels: dict[Path, Rows] | None, *, px: bool) -> None:
        self.name, self.labelled = name, labels is not None
        self._paths, self._labels, self._px = paths, labels, px

    def __iter__(self) -> Iterator[Picture]:
        for path in self._paths:
            pixels = _read(path)
            if self._labels is None:
                yield Picture(pixels)
                continue
            height, width = pixels.shape[:2]
            rows = np.array(self._labels.get(path, []), float).reshape(-1, 5)
            boxes = rows[:, 1:] * (1 if self._px else [width, height] * 2)
            yield Picture(pixels, boxes.astype(np.float32), rows[:, 0].astype(np.int64))


def samples() -> Files:
    """The demo's samples and, where ultralytics is installed, its two photos."""
    paths = sorted((DEMO / "samples").glob("*.jpg"))
    if spec := importlib.util.find_spec("ultralytics"):
        paths += sorted(Path(str(spec.origin)).parent.glob("assets/*.jpg"))
    return Files(f"{len(paths)} sample images", paths, None, px=False)


def gate_scenes() -> Scenes:
    """What the demo model is judged on."""
    return Scenes("demo", _GATE_SEED, SCENES)


def calibration_scenes(count: int) -> Scenes:
    """What the demo model is calibrated on."""
    return Scenes("demo", _CALIBRATION_SEED, count)


def folder(path: Path, names: dict[int, str], setting: str, most: int | None = None, *, boxes: bool = True) -> Dataset:
    """The images of a folder, with labels if these are `boxes` and there are any.

    Raises SettingsError, which names the setting.
    """
    found = _images(path, setting)
    coco = _coco(path, found, names, setting) if boxes else {}
    found = list(coco) or found
    picked = [found[i] for i in np.linspace(0, len(found) - 1, min(most or MOST, len(found))).astype(int)]
    files = {image: file for image in picked if boxes and (file := _label_file(image)).is_file()}
    ids = _class_ids(path, names, setting) if files and not coco else {}
    labels = coco or {image: _yolo(file, ids) for image, file in files.items()}
    return Files(f"{len(picked)} images of {path}", picked, labels or None, px=bool(coco))


def digest(path: Path, setting: str) -> str:
    """Changes when images come, go or change in size, and with every byte of what labels them."""
    found = _images(path, setting)
    described = [*_yaml(path)[0], *_jsons(path), *(file for image in found if (file := _label_file(image)).is_file())]
    state = hashlib.sha256()
    for file in (*found, *described):
        state.update(f"{os.path.relpath(file, path)} {file.stat().st_size}\n".encode())
    for file in described:
        state.update(file.read_bytes())
    return state.hexdigest()[:16]


def _images(path: Path, setting: str) -> list[Path]:
    """All of them; of a data set in Ultralytics' layout those of `val`: folders, or text files that list images."""
    if not path.is_dir():
        raise SettingsError(f"{setting}={path}: no such folder")
    val = _yaml(path)[1].get("val") or "."
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
        return images.decode(path.read_bytes(), max_pixels=200_000_000)
    except (OSError, RequestError) as error:
        raise SettingsError(f"{path}: {error}") from error


def _label_file(image: Path) -> Path:
    """Ultralytics' rule: the last `images` of the path becomes `labels`."""
    head, found, tail = str(image.absolute()).rpartition("/images/")
    return (Path(f"{head}/labels/{tail}") if found else image).with_suffix(".txt")


def _class_ids(path: Path, names: dict[int, str], setting: str) -> dict[int, int]:
    """The label files' class ids -> the model's: by name where data.yaml has names, else they are the same."""
    listed = _yaml(path)[1].get("names")
    if not listed:
        return {i: i for i in names}
    by_name = {name: i for i, name in names.items()}
    entries = listed.items() if isinstance(listed, dict) else enumerate(listed)
    ids = {i: by_name[name] for i, name in entries if name in by_name}
    if not ids:
        raise SettingsError(f"{setting}={path}: data.yaml names none of the model's classes")
    return ids


def _yolo(path: Path, ids: dict[int, int]) -> Rows:
    """A label file's rows, relative."""
    rows: Rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        try:
            if line.strip():
                label, *values = map(float, line.split())
                corners = _corners(values)
                rows += [[ids[int(label)], *corners]] if label in ids else []
        except ValueError as error:
            raise SettingsError(f"{path}, line {number}: not 'class cx cy w h' nor a polygon, 0 to 1") from error
    return rows


def _corners(values: list[float]) -> tuple[float, float, float, float]:
    """Raises ValueError for what is no box. Ultralytics, too, lets 1 % be outside of the image."""
    if len(values) < 4 or len(values) % 2 or not all(-0.01 <= value <= 1.01 for value in values):
        raise ValueError(values)
    if len(values) == 4:
        x, y, width, height = values
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])


def _jsons(path: Path) -> list[Path]:
    return [*sorted(path.glob("*.json")), *sorted(path.glob("annotations/*.json"))]


def _coco(path: Path, found: list[Path], names: dict[int, str], setting: str) -> dict[Path, Rows]:
    """The images that the first fitting COCO file lists, with their rows in px; none if there is no COCO file."""
    unfit = None
    for file in _jsons(path):
        try:
            content = json.loads(file.read_bytes())
            if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
                continue
            if listed := _listed(found, {entry["file_name"]: entry["id"] for entry in content["images"]}):
                rows = _coco_rows(content, names)
                return {image: rows[i] for image, i in listed.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SettingsError(f"{setting}: {file} cannot be used: {type(error).__name__}: {error}") from error
        unfit = file
    if unfit:
        raise SettingsError(f"{setting}={path}: {unfit} lists none of its images")
    return {}


def _listed(found: list[Path], files: dict[str, Any]) -> dict[Path, Any]:
    """Image -> its id in a COCO file: by the longest tail of its path that is listed, or by its name alone."""
    names = Counter(file.rpartition("/")[2] for file in files)
    ids = {name: i for file, i in files.items() if names[name := file.rpartition("/")[2]] == 1} | files
    tails = {image: ["/".join(image.parts[-count:]) for count in range(1, len(image.parts) + 1)] for image in found}
    listed = {image: ids[tail] for image in found for tail in tails[image] if tail in ids}  # the longest comes last
    if len(set(listed.values())) < len(listed):
        raise ValueError("it does not tell images of the same name in several folders apart")
    return listed


def _coco_rows(content: dict[str, Any], names: dict[int, str]) -> dict[Any, Rows]:
    """Image id -> its rows; crowds are left out."""
    by_name = {name: i for i, name in names.items()}
    ids = {entry["id"]: by_name[entry["name"]] for entry in content["categories"] if entry["name"] in by_name}
    if not ids:
        raise ValueError("its categories are none of the model's classes")
    rows: dict[Any, Rows] = {entry["id"]: [] for entry in content["images"]}
    for entry in content["annotations"]:
        if entry["category_id"] in ids and not entry.get("iscrowd") and entry["image_id"] in rows:
            x, y, width, height = map(float, entry["bbox"])
            rows[entry["image_id"]].append([ids[entry["category_id"]], x, y, x + width, y + height])
    return rows
