"""Matches the detections of two sets."""

import numpy as np
from numpy.typing import NDArray

from app.vision import masks, postprocess
from app.vision.postprocess import Detections

CONF = 0.25  # boxes of at least this score need a partner in the other set
MIN_MATCH_CONF = 0.05  # minimum score of such a partner
MIN_IOU = 0.9  # of boxes and of masks
MAX_KEYPOINT_RATIO = 0.05  # maximum distance of visible keypoints, relative to the longer side of the box
MIN_VISIBILITY = 0.5


def _overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the overlap [len(a), len(b)] of boxes of any task; 1 for classify, which has no boxes."""
    match a.shape[1]:
        case 0:
            return np.ones((len(a), len(b)), np.float32)
        case 5:
            return postprocess.probiou(a, b)
    return postprocess.iou(a, b)


def _alike_within(wanted: Detections, offered: Detections, i: int, j: int) -> bool:
    """Return True if the masks or keypoints of two boxes are the same."""
    if wanted.masks is not None and offered.masks is not None:
        return masks.iou(wanted.masks[i], offered.masks[j]) >= MIN_IOU
    if wanted.keypoints is not None and offered.keypoints is not None:
        allowed = MAX_KEYPOINT_RATIO * float((wanted.boxes[i, 2:] - wanted.boxes[i, :2]).max())
        return keypoints_apart(wanted.keypoints[i], offered.keypoints[j]) <= allowed
    return True


def keypoints_apart(wanted: NDArray[np.float32], offered: NDArray[np.float32]) -> float:
    """Return the maximum distance, in x or y, of the keypoints [P, 2 or 3] that are visible in `wanted`."""
    seen = wanted[:, 2] >= MIN_VISIBILITY if wanted.shape[1] == 3 else slice(None)
    return float(np.abs(wanted[seen, :2] - offered[seen, :2]).max(initial=0))


def difference(first: Detections, second: Detections) -> tuple[int, int, int]:
    """Count the boxes of score >= CONF in both sets, only in the first, and only in the second.

    The partner of such a box may have any score.
    """
    both = len(pairs(from_score(first, CONF), second))
    second_only = len(from_score(second, CONF)) - len(pairs(from_score(second, CONF), first))
    return both, len(from_score(first, CONF)) - both, second_only


def from_score(found: Detections, conf: float) -> Detections:
    """Return the detections of at least this score, or the most probable class for classify.

    Greedy NMS with this threshold would keep the same ones.
    """
    classify = not found.boxes.shape[1]
    return found.first(1 if classify else int(np.count_nonzero(found.scores >= conf)))


def pairs(wanted: Detections, offered: Detections) -> NDArray[np.int64]:
    """Return indices [N, 2] of the matches between wanted and offered detections: one to one, best overlap first."""
    overlap = _overlap(wanted.boxes, offered.boxes)
    overlap[wanted.classes[:, None] != offered.classes[None]] = 0
    if wanted.masks is not None or wanted.keypoints is not None:
        for i, j in np.argwhere(overlap >= MIN_IOU):
            if not _alike_within(wanted, offered, i, j):
                overlap[i, j] = 0
    rows, columns = np.nonzero(overlap >= MIN_IOU)
    matched = np.stack([rows, columns], 1)[np.argsort(-overlap[rows, columns], kind="stable")]
    for side in (1, 0):
        matched = matched[np.sort(np.unique(matched[:, side], return_index=True)[1])]
    return np.asarray(matched, np.int64)
