"""Which detections of two sets are the same."""

import numpy as np
from numpy.typing import NDArray

from app.vision import masks, postprocess
from app.vision.postprocess import Detections

CONF = 0.25  # boxes from this score on must be found again,
MIN_MATCH_CONF = 0.05  # be it with a score as low as this
IOU = 0.9  # of boxes and of masks
KEYPOINT = 0.05  # most that a visible keypoint is off, of the box's longer side
VISIBLE = 0.5


def _overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """[len(a), len(b)] of boxes of any task; classes, which have none, lie all in the same place."""
    match a.shape[1]:
        case 0:
            return np.ones((len(a), len(b)), np.float32)
        case 5:
            return postprocess.probiou(a, b)
    return postprocess.iou(a, b)


def _alike_within(wanted: Detections, offered: Detections, i: int, j: int) -> bool:
    """Whether what two boxes hold besides their class is the same."""
    if wanted.masks is not None and offered.masks is not None:
        return masks.iou(wanted.masks[i], offered.masks[j]) >= IOU
    if wanted.keypoints is not None and offered.keypoints is not None:
        allowed = KEYPOINT * float((wanted.boxes[i, 2:] - wanted.boxes[i, :2]).max())
        return keypoints_apart(wanted.keypoints[i], offered.keypoints[j]) <= allowed
    return True


def keypoints_apart(wanted: NDArray[np.float32], offered: NDArray[np.float32]) -> float:
    """Greatest distance, in x or y, of the keypoints [P, 2 or 3] that `wanted` sees."""
    seen = wanted[:, 2] >= VISIBLE if wanted.shape[1] == 3 else slice(None)
    return float(np.abs(wanted[seen, :2] - offered[seen, :2]).max(initial=0))


def difference(first: Detections, second: Detections) -> tuple[int, int, int]:
    """Of boxes of score >= CONF: how many both have, only the first, only the second; faint ones are partners too."""
    both = len(pairs(from_score(first, CONF), second))
    second_alone = len(from_score(second, CONF)) - len(pairs(from_score(second, CONF), first))
    return both, len(from_score(first, CONF)) - both, second_alone


def from_score(found: Detections, conf: float) -> Detections:
    """Detections of at least this score; of classify the most probable class. Greedy NMS would keep the same ones."""
    classify = not found.boxes.shape[1]
    return found.first(1 if classify else int(np.count_nonzero(found.scores >= conf)))


def pairs(wanted: Detections, offered: Detections) -> NDArray[np.int64]:
    """[N, 2] indices of wanted and offered detections that are the same: one to one, the best overlap first."""
    overlap = _overlap(wanted.boxes, offered.boxes)
    overlap[wanted.classes[:, None] != offered.classes[None]] = 0
    if wanted.masks is not None or wanted.keypoints is not None:
        for i, j in np.argwhere(overlap >= IOU):
            if not _alike_within(wanted, offered, i, j):
                overlap[i, j] = 0
    rows, columns = np.nonzero(overlap >= IOU)
    matched = np.stack([rows, columns], 1)[np.argsort(-overlap[rows, columns], kind="stable")]
    for side in (1, 0):
        matched = matched[np.sort(np.unique(matched[:, side], return_index=True)[1])]
    return np.asarray(matched, np.int64)
