"""Labels as COCO writes them: a JSON with images, annotations and categories; polygons, run lengths, keypoints."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import SettingsError
from app.evaluation.datasets import annotations
from app.evaluation.datasets.annotations import Annotation
from app.model import ModelInfo
from app.vision.masks import Mask, Points

_NEEDED = {"detect": "bbox", "segment": "segmentation", "pose": "keypoints"}  # of an annotation, by task


def files(path: Path) -> list[Path]:
    """Where COCO files may lie in a data set."""
    return [*sorted(path.glob("*.json")), *sorted(path.glob("annotations/*.json"))]


def read(path: Path, found: list[Path], model: ModelInfo, setting: str) -> dict[Path, list[Annotation]]:
    """The images that the first fitting COCO file lists, with their objects in px; none if there is no COCO file.

    Raises SettingsError, which names the file.
    """
    unfit = ""
    for file in files(path):
        try:
            content = json.loads(file.read_bytes())
            if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
                continue
            if listed := _listed(found, {entry["file_name"]: entry["id"] for entry in content["images"]}):
                needed = _NEEDED.get(model.task, "turned boxes, or classes of whole images: COCO has none")
                if not content["annotations"] or any(entry.get(needed) for entry in content["annotations"]):
                    annotated = _things(content, model, needed)
                    return {image: annotated[i] for image, i in listed.items()}
                unfit = f"{file} has no {needed}, which {model.task} is evaluated by"
            else:
                unfit = unfit or f"{file} lists none of its images"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SettingsError(f"{setting}: {file} cannot be used: {type(error).__name__}: {error}") from error
    if unfit:
        raise SettingsError(f"{setting}={path}: {unfit}")
    return {}


def _listed(found: list[Path], entries: dict[str, Any]) -> dict[Path, Any]:
    """Image -> its id in a COCO file: by the longest tail of its path that is listed, or by its name alone."""
    names = Counter(file.rpartition("/")[2] for file in entries)
    ids = {name: i for file, i in entries.items() if names[name := file.rpartition("/")[2]] == 1} | entries
    tails = {image: ["/".join(image.parts[-count:]) for count in range(1, len(image.parts) + 1)] for image in found}
    listed = {image: ids[tail] for image in found for tail in tails[image] if tail in ids}  # the longest comes last
    if len(set(listed.values())) < len(listed):
        raise ValueError("it does not tell images of the same name in several folders apart")
    return listed


def _things(content: dict[str, Any], model: ModelInfo, needed: str) -> dict[Any, list[Annotation]]:
    """Image id -> its objects; crowds are left out."""
    categories = sorted(content["categories"], key=lambda entry: entry["id"])
    ids = annotations.class_ids({entry["id"]: entry["name"] for entry in categories}, model)
    if not ids:
        raise ValueError("its categories are none of the model's classes")
    annotated: dict[Any, list[Annotation]] = {entry["id"]: [] for entry in content["images"]}
    for entry in content["annotations"]:
        if entry["category_id"] in ids and not entry.get("iscrowd") and entry["image_id"] in annotated:
            if needed not in entry:
                raise ValueError(f"annotation {entry['id']} has no {needed}")
            annotated[entry["image_id"]].append(_thing(entry, ids[entry["category_id"]], model))
    return annotated


def _thing(entry: dict[str, Any], label: int, model: ModelInfo) -> Annotation:
    x, y, width, height = map(float, entry["bbox"])
    corners = np.array([[x, y], [x + width, y + height]], np.float32)
    if model.kpt_shape:
        count = model.kpt_shape[0]
        if len(entry["keypoints"]) != 3 * count:
            raise ValueError(f"annotation {entry['id']} has not the model's {count} keypoints")
        return Annotation(label, corners, np.array(entry["keypoints"], np.float32).reshape(count, 3))
    return Annotation(label, corners, shape=_shape(entry["segmentation"]) if model.task == "segment" else ())


def _shape(segmentation: Any) -> Mask | tuple[Points, ...]:
    """Polygons, or run lengths, compressed (text) or not."""
    if not isinstance(segmentation, dict):
        return tuple(np.array(polygon, np.float32).reshape(-1, 2) for polygon in segmentation)
    counts, (height, width) = segmentation["counts"], segmentation["size"]
    runs = _uncompressed(counts) if isinstance(counts, str) else counts
    pixels = np.repeat(np.arange(len(runs), dtype=np.uint8) % 2, runs).reshape(width, height).T
    return annotations.whole(np.ascontiguousarray(pixels))


def _uncompressed(text: str) -> NDArray[np.int64]:
    """What app/vision/masks.py, `run_lengths`, writes."""
    counts, value, shift = list[int](), 0, 0
    for group in (ord(letter) - 48 for letter in text):
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            sign = -1 << shift if group & 16 else 0
            counts.append((value | sign) + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return np.array(counts, np.int64)
