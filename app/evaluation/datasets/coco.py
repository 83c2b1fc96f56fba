"""Reads labels in COCO's format: JSON with images, annotations, categories; polygons, run lengths, keypoints."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from app.errors import SettingsError
from app.evaluation.datasets import annotations
from app.evaluation.datasets.annotations import Annotation
from app.model import ModelInfo
from app.vision import rle
from app.vision.masks import Mask, Points

_NEEDED = {"detect": "bbox", "segment": "segmentation", "pose": "keypoints"}  # key of an annotation, by task


def files(path: Path) -> list[Path]:
    """Return the files of a data set that may be COCO files."""
    return [*sorted(path.glob("*.json")), *sorted(path.glob("annotations/*.json"))]


def read(path: Path, found: list[Path], model: ModelInfo, setting: str) -> dict[Path, list[Annotation]]:
    """Return the images in the first usable COCO file, with their objects in px; empty if there is no COCO file.

    Raises SettingsError with the file if no COCO file is usable.
    """
    unfit = ""
    for file in files(path):
        try:
            content = json.loads(file.read_bytes())
            if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
                continue
            if listed := _listed(found, {entry["file_name"]: entry["id"] for entry in content["images"]}):
                needed = _NEEDED.get(model.task, "rotated boxes or classes of whole images (COCO has none)")
                if not content["annotations"] or any(entry.get(needed) for entry in content["annotations"]):
                    annotated = _annotations(content, model, needed)
                    return {image: annotated[i] for image, i in listed.items()}
                unfit = f"{file} has no {needed}, which the evaluation of {model.task} needs"
            else:
                unfit = unfit or f"{file} lists none of its images"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SettingsError(f"{setting}: {file} cannot be used: {type(error).__name__}: {error}") from error
    if unfit:
        raise SettingsError(f"{setting}={path}: {unfit}")
    return {}


def _listed(found: list[Path], entries: dict[str, Any]) -> dict[Path, Any]:
    """Map images to their ids in a COCO file: by the longest listed end of the path, or only by the name."""
    names = Counter(file.rpartition("/")[2] for file in entries)
    ids = {name: i for file, i in entries.items() if names[name := file.rpartition("/")[2]] == 1} | entries
    tails = {image: ["/".join(image.parts[-count:]) for count in range(1, len(image.parts) + 1)] for image in found}
    listed = {image: ids[tail] for image in found for tail in tails[image] if tail in ids}  # the longest comes last
    if len(set(listed.values())) < len(listed):
        raise ValueError("it does not distinguish images of the same name in several folders")
    return listed


def _annotations(content: dict[str, Any], model: ModelInfo, needed: str) -> dict[Any, list[Annotation]]:
    """Map image ids to their objects, without crowds."""
    categories = sorted(content["categories"], key=lambda entry: entry["id"])
    ids = annotations.class_ids({entry["id"]: entry["name"] for entry in categories}, model)
    if not ids:
        raise ValueError("none of its categories is a class of the model")
    annotated: dict[Any, list[Annotation]] = {entry["id"]: [] for entry in content["images"]}
    for entry in content["annotations"]:
        if entry["category_id"] in ids and not entry.get("iscrowd") and entry["image_id"] in annotated:
            if needed not in entry:
                raise ValueError(f"annotation {entry['id']} has no {needed}")
            annotated[entry["image_id"]].append(_annotation(entry, ids[entry["category_id"]], model))
    return annotated


def _annotation(entry: dict[str, Any], label: int, model: ModelInfo) -> Annotation:
    x, y, width, height = map(float, entry["bbox"])
    corners = np.array([[x, y], [x + width, y + height]], np.float32)
    if model.kpt_shape:
        count = model.kpt_shape[0]
        if len(entry["keypoints"]) != 3 * count:
            raise ValueError(f"annotation {entry['id']} does not have the model's {count} keypoints")
        return Annotation(label, corners, np.array(entry["keypoints"], np.float32).reshape(count, 3))
    return Annotation(label, corners, shape=_shape(entry["segmentation"]) if model.task == "segment" else ())


def _shape(segmentation: Any) -> Mask | tuple[Points, ...]:
    """Return the mask or polygons, from polygons or run lengths (compressed text or numbers)."""
    if not isinstance(segmentation, dict):
        return tuple(np.array(polygon, np.float32).reshape(-1, 2) for polygon in segmentation)
    counts, (height, width) = segmentation["counts"], segmentation["size"]
    runs = rle.decompress(counts) if isinstance(counts, str) else counts
    return annotations.whole(rle.decode(runs, height, width))
