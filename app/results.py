"""Rows -> detections: thresholds, classes and NMS, as `ultralytics.utils.nms` does them."""

import math
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]  # [K, 6]: x1 y1 x2 y2 in frame px, score, class; the K best anchors, before NMS

K = 1024  # rows an image

_CLASS_OFFSET = np.float32(7680)  # px; keeps boxes of different classes apart, as Ultralytics' max_wh


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What one request asks for. `classes` None = all of them."""

    conf: float = 0.25
    iou: float = 0.7
    max_det: int = 300
    classes: tuple[int, ...] | None = None
    agnostic: bool = False


@dataclass(frozen=True, slots=True)
class Detections:
    """Best first."""

    boxes: NDArray[np.float32]  # [N, 4] x1 y1 x2 y2
    scores: NDArray[np.float32]  # [N]
    classes: NDArray[np.int64]  # [N]

    def __len__(self) -> int:
        return len(self.scores)


def candidates(rows: Rows, conf: float) -> int:
    """How many rows have a score over `conf`, or none that is a number: they come first, then the best.

    A few are looked at. Comparing all of them would let go of the interpreter, and wait for it.
    """
    return bisect_left(rows[:, 4], -conf, key=lambda score: -math.inf if math.isnan(score) else -score)


def select(rows: Rows, thresholds: Thresholds) -> Detections:
    """The detections among the rows of one image, best first; boxes stay in frame px."""
    rows = rows[: candidates(rows, thresholds.conf)]
    if thresholds.classes is not None:
        rows = rows[np.isin(rows[:, 5], thresholds.classes)]
    rows = rows[np.isfinite(rows).all(1)]
    offset = 0 if thresholds.agnostic else rows[:, 5:6] * _CLASS_OFFSET
    rows = rows[nms(rows[:, :4] + offset, thresholds.iou, thresholds.max_det)]
    return Detections(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64))


def from_head(head: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Ultralytics' raw head [B, 4 + nc, A], cx cy w h and class scores -> rows [B, count, 6], best first."""
    scores = head[:, 4:].max(1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    picked = np.take_along_axis(head, order[:, None], 2)
    centre, half = picked[:, :2], picked[:, 2:4] / 2
    label = picked[:, 4:].argmax(1)[:, None]
    columns = (centre - half, centre + half, picked[:, 4:].max(1)[:, None], label)
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
