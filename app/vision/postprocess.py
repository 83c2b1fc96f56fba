"""Converts engine outputs to detections: thresholds, classes and NMS, as in `ultralytics.utils.nms`."""

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.model import ModelInfo
from app.vision import masks
from app.vision.masks import Mask

Rows = NDArray[np.float32]  # [K, 6 + E]: the K best anchors, before NMS (app/graphs/serving_graph.py)
Outputs = tuple[NDArray[np.float32], ...]  # of one frame, in graph order: (rows,), (rows, protos) or (probs,)

K = 1024  # rows per image
TOP_K = 5  # classes per image, for classify

_CLASS_OFFSET = np.float32(7680)  # px; separates boxes of different classes, like Ultralytics' max_wh
_EPSILON = np.float32(1e-7)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The thresholds of one request. `classes` None = all classes. Classify ignores all of them."""

    conf: float = 0.25
    iou: float = 0.7
    max_det: int = 300
    classes: tuple[int, ...] | None = None
    agnostic: bool = False


@dataclass(frozen=True, slots=True)
class Detections:
    """The detections of one frame, best first."""

    boxes: NDArray[np.float32]  # [N, 4] x1 y1 x2 y2; obb: [N, 5] cx cy w h angle; classify: [N, 0]
    scores: NDArray[np.float32]  # [N]
    classes: NDArray[np.int64]  # [N]
    keypoints: NDArray[np.float32] | None = None  # pose: [N, keypoints, 2 or 3] x y (visible)
    masks: list[Mask] | None = None  # segment: N, none of them empty, always in frame px

    def __len__(self) -> int:
        return len(self.scores)

    def first(self, count: int) -> "Detections":
        """Return the best `count` detections."""
        parts = (self.boxes, self.scores, self.classes, self.keypoints, self.masks)
        return Detections(*(part if part is None else part[:count] for part in parts))  # type: ignore[arg-type]


def candidates(rows: Rows, conf: float) -> int:
    """Return the number of rows whose score is NaN or over `conf`. Rows are sorted: NaN first, then the best scores.

    Bisects in Python: comparing all rows in NumPy would release the GIL, and wait to get it back.
    """
    return bisect_left(rows[:, 4], -conf, key=lambda score: -math.inf if math.isnan(score) else -score)


def keep(outputs: Outputs, thresholds: Thresholds, model: ModelInfo) -> Outputs:
    """Return the outputs with only the rows that pass thresholds and NMS, best first; for classify all of them."""
    if model.task == "classify":
        return outputs
    rows, *others = outputs
    rows = rows[: candidates(rows, thresholds.conf)]
    if thresholds.classes is not None:
        rows = rows[np.isin(rows[:, 5], thresholds.classes)]
    rows = rows[np.isfinite(rows).all(1)]
    rows = rows[: thresholds.max_det] if model.end_to_end else rows[_nms_indices(rows, thresholds, model)]
    return (rows, *others)


def select(outputs: Outputs, thresholds: Thresholds, model: ModelInfo) -> Detections:
    """Return the detections of one frame, in frame px; for classify the most probable classes."""
    rows, *others = keep(outputs, thresholds, model)
    if model.task == "classify":
        return _top_k(rows)
    boxes, found = rows[:, :4], None
    if model.task == "obb":
        boxes = rows[:, [0, 1, 2, 3, 6]]
    elif model.task == "segment":
        found_masks = masks.cut(others[0], rows[:, 6:], boxes)
        kept = [i for i, mask in enumerate(found_masks) if mask.pixels.any()]
        rows, boxes, found = rows[kept], boxes[kept], [found_masks[i] for i in kept]
    keypoints = rows[:, 6:].reshape(-1, *model.kpt_shape) if model.kpt_shape else None
    return Detections(boxes, rows[:, 4], rows[:, 5].astype(np.int64), keypoints, found)


def _top_k(probs: NDArray[np.float32]) -> Detections:
    best = np.argsort(-probs, kind="stable")[:TOP_K]
    return Detections(np.zeros((len(best), 0), np.float32), probs[best], best.astype(np.int64))


def _nms_indices(rows: Rows, thresholds: Thresholds, model: ModelInfo) -> NDArray[np.int64]:
    """Return the indices of the rows that NMS keeps, best first."""
    offset = 0 if thresholds.agnostic else rows[:, 5:6] * _CLASS_OFFSET
    if model.task == "obb":
        boxes = np.concatenate([rows[:, :2] + offset, rows[:, [2, 3, 6]]], 1)
        return rotated_nms(boxes, thresholds.iou, thresholds.max_det)
    return nms(rows[:, :4] + offset, thresholds.iou, thresholds.max_det)


def from_head(head: NDArray[np.float32], count: int, classes: int, *, centred: bool) -> NDArray[np.float32]:
    """Convert Ultralytics' raw head [B, 4 + nc + E, A] (cx cy w h, class scores, extras) to rows [B, count, 6 + E].

    The best rows come first. Boxes stay cx cy w h if `centred`, and become x1 y1 x2 y2 otherwise.
    """
    scores = head[:, 4 : 4 + classes].max(1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    picked = np.take_along_axis(head, order[:, None], 2)
    of_classes = picked[:, 4 : 4 + classes]
    centre, half = picked[:, :2], picked[:, 2:4] / 2
    box = (picked[:, :4],) if centred else (centre - half, centre + half)
    columns = (*box, of_classes.max(1)[:, None], of_classes.argmax(1)[:, None], picked[:, 4 + classes :])
    return np.concatenate(columns, 1).transpose(0, 2, 1).astype(np.float32)


def nms(boxes: NDArray[np.float32], iou: float, max_det: int) -> NDArray[np.int64]:
    """Return the indices of the boxes that greedy NMS keeps, at most `max_det`. `boxes` [N, 4] are sorted, best first.

    Drops boxes whose IoU with a kept box is over `iou`. Computes in float32 on offset boxes like Ultralytics, so that
    results near the threshold are the same.
    """
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1) * (y2 - y1)
    width = np.minimum(x2[:, None], x2) - np.maximum(x1[:, None], x1)
    height = np.minimum(y2[:, None], y2) - np.maximum(y1[:, None], y1)
    overlap = np.maximum(width, 0) * np.maximum(height, 0)
    with np.errstate(invalid="ignore"):  # 0 / 0 for two boxes without an area
        separate = ~(overlap / (areas[:, None] + areas - overlap) > iou)  # [N, N]
    stays = np.ones(len(boxes), np.bool_)
    kept: list[int] = []
    for i in range(len(boxes)):
        if stays[i]:
            kept.append(i)
            if len(kept) == max_det:
                break
            stays &= separate[i]
    return np.array(kept, np.int64)


def rotated_nms(boxes: NDArray[np.float32], iou: float, max_det: int) -> NDArray[np.int64]:
    """Return the indices of the boxes that stay, at most `max_det`. `boxes` [N, 5] cx cy w h angle, best first.

    Ultralytics' fast NMS: drops a box if any better box, even a dropped one, overlaps it by more than `iou`.
    """
    stays = ~np.triu(probiou(boxes, boxes) > iou, 1).any(0)
    return np.flatnonzero(stays)[:max_det]


def iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the intersection over union [len(first), len(second)] of boxes [N, 4] x1 y1 x2 y2."""
    corner = np.minimum(first[:, None, 2:], second[None, :, 2:]) - np.maximum(first[:, None, :2], second[None, :, :2])
    shared = np.clip(corner, 0, None).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    return np.asarray(shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9), np.float32)


def probiou(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the overlap [len(first), len(second)], 0 to 1, of boxes [N, 5] cx cy w h angle, treated as Gaussians.

    Same as `ultralytics.utils.metrics.batch_probiou`; https://arxiv.org/abs/2106.06072.
    """
    x1, y1, a1, b1, c1 = (column[:, None] for column in _gaussians(first))
    x2, y2, a2, b2, c2 = _gaussians(second)
    spread = (a1 + a2) * (b1 + b2) - (c1 + c2) ** 2
    away = ((a1 + a2) * (y1 - y2) ** 2 + (b1 + b2) * (x1 - x2) ** 2) / (spread + _EPSILON) / 4
    rotated = (c1 + c2) * (x2 - x1) * (y1 - y2) / (spread + _EPSILON) / 2
    own = np.maximum(a1 * b1 - c1**2, 0) * np.maximum(a2 * b2 - c2**2, 0)
    unlike = np.log(spread / (4 * np.sqrt(own) + _EPSILON) + _EPSILON) / 2
    distance = np.clip(away + rotated + unlike, _EPSILON, 100)
    return np.asarray(1 - np.sqrt(1 - np.exp(-distance) + _EPSILON), np.float32)


def _gaussians(boxes: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    """Return the centre x, y and the covariances xx, yy, xy."""
    x, y, width, height, angle = boxes.T
    along, across, cos, sin = width**2 / 12, height**2 / 12, np.cos(angle), np.sin(angle)
    return x, y, along * cos**2 + across * sin**2, along * sin**2 + across * cos**2, (along - across) * cos * sin


def upright(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return boxes [N, 4] x1 y1 x2 y2 for the boxes of Detections; for rotated boxes, the rectangles around them."""
    if boxes.shape[1] != 5:
        return boxes
    points = corners(boxes)
    return np.concatenate([points.min(1), points.max(1)], 1)


def corners(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return corners [N, 4, 2] x y of boxes [N, 5] cx cy w h angle; like `ultralytics.utils.ops.xywhr2xyxyxyxy`."""
    centre, width, height, angle = boxes[:, :2], boxes[:, 2:3], boxes[:, 3:4], boxes[:, 4:]
    cos, sin = np.cos(angle), np.sin(angle)
    along = np.concatenate([width / 2 * cos, width / 2 * sin], 1)
    across = np.concatenate([-height / 2 * sin, height / 2 * cos], 1)
    return np.stack(
        [centre + along + across, centre + along - across, centre - along - across, centre - along + across], 1
    )
