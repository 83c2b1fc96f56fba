"""What an engine gives -> detections: thresholds, classes and NMS, as `ultralytics.utils.nms` does them."""

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.model import ModelInfo
from app.vision import masks
from app.vision.masks import Mask

Rows = NDArray[np.float32]  # [K, 6 + E]: the K best anchors, before NMS (app/graphs/serving_graph.py)
Outputs = tuple[NDArray[np.float32], ...]  # of one frame, as the graph orders them: (rows,), (rows, protos) or (probs,)

K = 1024  # rows an image
TOP = 5  # classes of an image

_CLASS_OFFSET = np.float32(7680)  # px; keeps boxes of different classes apart, as Ultralytics' max_wh
_EPSILON = np.float32(1e-7)


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What one request asks for. `classes` None = all of them. Nothing of it counts for classify."""

    conf: float = 0.25
    iou: float = 0.7
    max_det: int = 300
    classes: tuple[int, ...] | None = None
    agnostic: bool = False


@dataclass(frozen=True, slots=True)
class Detections:
    """Best first."""

    boxes: NDArray[np.float32]  # [N, 4] x1 y1 x2 y2; of obb [N, 5] cx cy w h angle; of classify [N, 0]
    scores: NDArray[np.float32]  # [N]
    classes: NDArray[np.int64]  # [N]
    keypoints: NDArray[np.float32] | None = None  # of pose: [N, keypoints, 2 or 3] x y (visible)
    masks: list[Mask] | None = None  # of segment: N, none of them empty, always in frame px

    def __len__(self) -> int:
        return len(self.scores)

    def first(self, count: int) -> "Detections":
        """The best of them."""
        parts = (self.boxes, self.scores, self.classes, self.keypoints, self.masks)
        return Detections(*(part if part is None else part[:count] for part in parts))  # type: ignore[arg-type]


def candidates(rows: Rows, conf: float) -> int:
    """How many rows have a score over `conf`, or none that is a number: they come first, then the best.

    A few are looked at. Comparing all of them would let go of the interpreter, and wait for it.
    """
    return bisect_left(rows[:, 4], -conf, key=lambda score: -math.inf if math.isnan(score) else -score)


def keep(outputs: Outputs, thresholds: Thresholds, model: ModelInfo) -> Outputs:
    """The outputs with only those rows that thresholds and NMS leave, best first; of classify just as they are."""
    if model.task == "classify":
        return outputs
    rows, *others = outputs
    rows = rows[: candidates(rows, thresholds.conf)]
    if thresholds.classes is not None:
        rows = rows[np.isin(rows[:, 5], thresholds.classes)]
    rows = rows[np.isfinite(rows).all(1)]
    rows = rows[: thresholds.max_det] if model.end_to_end else rows[_apart(rows, thresholds, model)]
    return (rows, *others)


def select(outputs: Outputs, thresholds: Thresholds, model: ModelInfo) -> Detections:
    """The detections of one frame, in frame px; of classify the most probable classes."""
    rows, *others = keep(outputs, thresholds, model)
    if model.task == "classify":
        return _top_k(rows)
    boxes, found = rows[:, :4], None
    if model.task == "obb":
        boxes = rows[:, [0, 1, 2, 3, 6]]
    elif model.task == "segment":
        every = masks.cut(others[0], rows[:, 6:], boxes)
        kept = [i for i, mask in enumerate(every) if mask.pixels.any()]
        rows, boxes, found = rows[kept], boxes[kept], [every[i] for i in kept]
    keypoints = rows[:, 6:].reshape(-1, *model.kpt_shape) if model.kpt_shape else None
    return Detections(boxes, rows[:, 4], rows[:, 5].astype(np.int64), keypoints, found)


def _top_k(probs: NDArray[np.float32]) -> Detections:
    best = np.argsort(-probs, kind="stable")[:TOP]
    return Detections(np.zeros((len(best), 0), np.float32), probs[best], best.astype(np.int64))


def _apart(rows: Rows, thresholds: Thresholds, model: ModelInfo) -> NDArray[np.int64]:
    """Indices of the rows, best first, that NMS leaves."""
    offset = 0 if thresholds.agnostic else rows[:, 5:6] * _CLASS_OFFSET
    if model.task == "obb":
        boxes = np.concatenate([rows[:, :2] + offset, rows[:, [2, 3, 6]]], 1)
        return rotated_nms(boxes, thresholds.iou, thresholds.max_det)
    return nms(rows[:, :4] + offset, thresholds.iou, thresholds.max_det)


def from_head(head: NDArray[np.float32], count: int, classes: int, *, centred: bool) -> NDArray[np.float32]:
    """Ultralytics' raw head [B, 4 + nc + E, A], cx cy w h, class scores and extras -> rows [B, count, 6 + E], best
    first; boxes stay as they are if `centred`.
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
    """Indices of the boxes that stay, at most `max_det`. `boxes` [N, 4] best first; greedy, IoU over `iou` goes.

    In float32 on offset boxes like Ultralytics' own, so that close calls fall the same way.
    """
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1) * (y2 - y1)
    width = np.minimum(x2[:, None], x2) - np.maximum(x1[:, None], x1)
    height = np.minimum(y2[:, None], y2) - np.maximum(y1[:, None], y1)
    overlap = np.maximum(width, 0) * np.maximum(height, 0)
    with np.errstate(invalid="ignore"):  # two boxes without an area: 0 / 0
        apart = ~(overlap / (areas[:, None] + areas - overlap) > iou)  # [N, N]
    stays = np.ones(len(boxes), np.bool_)
    kept: list[int] = []
    for i in range(len(boxes)):
        if stays[i]:
            kept.append(i)
            if len(kept) == max_det:
                break
            stays &= apart[i]
    return np.array(kept, np.int64)


def rotated_nms(boxes: NDArray[np.float32], iou: float, max_det: int) -> NDArray[np.int64]:
    """Indices of the boxes that stay, at most `max_det`. `boxes` [N, 5] cx cy w h angle, best first.

    Ultralytics' fast NMS: a box goes for any better one that overlaps it by more than `iou`, be that one gone itself.
    """
    stays = ~np.triu(probiou(boxes, boxes) > iou, 1).any(0)
    return np.flatnonzero(stays)[:max_det]


def iou(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """[len(first), len(second)] intersection over union of boxes [N, 4] x1 y1 x2 y2."""
    corner = np.minimum(first[:, None, 2:], second[None, :, 2:]) - np.maximum(first[:, None, :2], second[None, :, :2])
    shared = np.clip(corner, 0, None).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    return np.asarray(shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9), np.float32)


def probiou(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    """[len(first), len(second)] overlap, 0 to 1, of boxes [N, 5] cx cy w h angle, taken for Gaussians.

    As `ultralytics.utils.metrics.batch_probiou`; https://arxiv.org/abs/2106.06072.
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
    """Centre x y and the covariances xx, yy, xy."""
    x, y, width, height, angle = boxes.T
    along, across, cos, sin = width**2 / 12, height**2 / 12, np.cos(angle), np.sin(angle)
    return x, y, along * cos**2 + across * sin**2, along * sin**2 + across * cos**2, (along - across) * cos * sin


def upright(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, 4] x1 y1 x2 y2 of the boxes of Detections; of turned ones, around them."""
    if boxes.shape[1] != 5:
        return boxes
    points = corners(boxes)
    return np.concatenate([points.min(1), points.max(1)], 1)


def corners(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, 4, 2] x y of boxes [N, 5] cx cy w h angle; as `ultralytics.utils.ops.xywhr2xyxyxyxy`, in its order."""
    centre, width, height, angle = boxes[:, :2], boxes[:, 2:3], boxes[:, 3:4], boxes[:, 4:]
    cos, sin = np.cos(angle), np.sin(angle)
    along = np.concatenate([width / 2 * cos, width / 2 * sin], 1)
    across = np.concatenate([-height / 2 * sin, height / 2 * cos], 1)
    return np.stack(
        [centre + along + across, centre + along - across, centre - along - across, centre - along + across], 1
    )
