"""What is on an image, by those who labelled it: the lines of Ultralytics' label files -> px of the image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from app.errors import SettingsError
from app.model import ModelInfo
from app.vision.masks import Mask, Points

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Labels:
    """The N objects of an image, in its px."""

    classes: NDArray[np.int64]  # [N]
    boxes: NDArray[np.float32]  # [N, 4] x1 y1 x2 y2; of obb [N, 5] cx cy w h angle; of classify [N, 0]
    keypoints: NDArray[np.float32] | None = None  # of pose: [N, keypoints, 3] x y, and 0 where it is not labelled
    masks: list[Mask] | None = None  # of segment: N


@dataclass(frozen=True, slots=True)
class Annotation:
    """One object as a file describes it, in px or relative to the image's sides."""

    label: int  # of the model's classes
    corners: Points  # [2, 2] of its box; of obb all [4, 2]; of classify [0, 2]
    keypoints: Points | None = None  # [keypoints, 3]
    shape: Mask | tuple[Points, ...] = ()  # of segment: the mask in px, or polygons that make it up


def class_ids(listed: Mapping[Key, str], model: ModelInfo) -> dict[Key, int]:
    """A data set's classes, by its own keys -> the model's classes of the same name; others are left out.

    Where the model has several classes of one name, so must the data set: they are taken in their order. Raises
    ValueError where it has not, as nothing tells then which of them is meant.
    """
    ours, theirs = _by_name(model.names), _by_name(listed)
    found: dict[Key, int] = {}
    for name, keys in theirs.items():
        ids = ours.get(name, [])
        if len(ids) > 1 and len(ids) != len(keys):
            raise ValueError(
                f"it has {len(keys)} class {name!r} and {model.name} has {len(ids)}, {', '.join(map(str, ids))}: give "
                "it as many, in the model's order, or leave all labels away"
            )
        found |= zip(keys, ids if len(ids) > 1 else ids * len(keys), strict=bool(ids))
    return found


def _by_name(names: Mapping[Key, str]) -> dict[str, list[Key]]:
    found: dict[str, list[Key]] = {}
    for key, name in names.items():
        found.setdefault(str(name), []).append(key)
    return found


def at(annotated: Sequence[Annotation], model: ModelInfo, size: tuple[int, int], *, px: bool) -> Labels:
    """The labels of an image of this height and width; what things say is in `px` or relative."""
    height, width = size
    unit = np.array([1, 1] if px else [width, height], np.float32)
    classes = np.array([annotation.label for annotation in annotated], np.int64)
    corners = [annotation.corners * unit for annotation in annotated]
    if model.task == "obb":
        return Labels(classes, rotated(corners))
    boxes = np.array(corners, np.float32).reshape(len(annotated), 0 if model.task == "classify" else 4)
    if model.kpt_shape:
        points = np.array([annotation.keypoints for annotation in annotated], np.float32).reshape(
            -1, model.kpt_shape[0], 3
        )
        return Labels(classes, boxes, points * np.array([*unit, 1], np.float32))
    masks = [_mask(annotation.shape, unit, size) for annotation in annotated] if model.task == "segment" else None
    return Labels(classes, boxes, masks=masks)


def rotated(corners: Sequence[Points] | NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, 5] cx cy w h angle of N boxes of corners [4, 2]; as `ultralytics.utils.ops.xyxyxyxy2xywhr`."""
    found = [(*centre, *sides, np.deg2rad(angle)) for centre, sides, angle in map(cv2.minAreaRect, corners)]
    boxes = np.array(found, np.float32).reshape(-1, 5)
    upright = boxes[:, 2] < boxes[:, 3]
    boxes[upright, 2:4] = boxes[upright, 3:1:-1]
    boxes[:, 4] = (boxes[:, 4] + np.pi * np.where(upright, 0.75, 0.25)) % np.pi - np.pi / 4
    return boxes


def _mask(shape: Mask | tuple[Points, ...], unit: NDArray[np.float32], size: tuple[int, int]) -> Mask:
    """Polygons are filled as `ultralytics.data.utils.polygon2mask` fills them."""
    if isinstance(shape, Mask):
        return shape
    pixels = np.zeros(size, np.uint8)
    for polygon in shape:
        cv2.fillPoly(pixels, [(polygon * unit).astype(np.int32)], 1)
    return whole(pixels)


def whole(pixels: NDArray[np.uint8]) -> Mask:
    """The mask of all that is not 0, without the empty rows and columns around it."""
    x, y, width, height = cv2.boundingRect(pixels)
    return Mask(pixels[y : y + height, x : x + width].copy(), x, y)


_LINES = {  # what a line says after the class, by task
    "detect": "cx cy w h' nor a polygon",
    "segment": "x1 y1 x2 y2 x3 y3 ...' (a polygon)",
    "pose": "cx cy w h' and 'x y' or 'x y visible' for each of the model's keypoints",
    "obb": "x1 y1 x2 y2 x3 y3 x4 y4' (the corners)",
}


def read(path: Path, text: str, ids: Mapping[int, int], model: ModelInfo) -> list[Annotation]:
    """The objects of a label file, relative; `ids` maps its classes to the model's, and others are left out.

    Raises SettingsError, which names the line.
    """
    annotated = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            if line.strip():
                label, *values = map(float, line.split())
                annotation = _thing(ids.get(label, -1), values, model)  # type: ignore[call-overload]
                annotated += [annotation] if annotation.label >= 0 else []
        except ValueError as error:
            raise SettingsError(
                f"{path}, line {number}: not 'class {_LINES[model.task]}, 0 to 1, as labels for {model.task} are. "
                "Write it so, or leave all labels away: without them the gate compares with PyTorch alone"
            ) from error
    return annotated


def _thing(label: int, values: list[float], model: ModelInfo) -> Annotation:
    """Raises ValueError for what does not label this task."""
    if model.kpt_shape:
        return Annotation(label, _box(values[:4]), _keypoints(values[4:], model.kpt_shape[0]))
    if len(values) == 4 and model.task == "detect":
        return Annotation(label, _box(values))
    points = _within(values)
    if len(points) < 3 or (model.task == "obb" and len(points) != 4):
        raise ValueError(values)
    if model.task == "obb":
        return Annotation(label, points)
    return Annotation(label, np.stack([points.min(0), points.max(0)]), shape=(points,))


def _box(values: list[float]) -> Points:
    centre, sides = _within(values)
    return np.stack([centre - sides / 2, centre + sides / 2])


def _keypoints(values: list[float], count: int) -> Points:
    """Without a third value, the ones left of or above the image are those that are not labelled, as in Ultralytics."""
    if len(values) == 3 * count:
        points = np.array(values, np.float32).reshape(count, 3)
        _within(points[:, :2].ravel())
        if not np.isin(points[:, 2], (0, 1, 2)).all():
            raise ValueError(values)
        return points
    flat = np.array(values, np.float32).reshape(count, 2)
    _within(flat.ravel())
    return np.concatenate([flat, (flat >= 0).all(1, keepdims=True)], 1).astype(np.float32)


def _within(values: Sequence[float] | Points) -> Points:
    """Pairs [N, 2]. Raises ValueError for what is not in the image. Ultralytics, too, lets 1 % be outside of it."""
    points = np.array(values, np.float32).reshape(-1, 2)
    if not ((points >= -0.01) & (points <= 1.01)).all():
        raise ValueError(values)
    return points
