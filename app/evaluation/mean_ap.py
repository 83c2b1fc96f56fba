"""What was found beside what the labels say: mAP, of classify top-1 and top-5, as Ultralytics' validators compute them.

They are those of what is served: of rows, so with one class an anchor. What overlaps are boxes, turned boxes (probiou),
masks, or keypoints (OKS).
"""

import numpy as np
from numpy.typing import NDArray

from app.evaluation.datasets.annotations import Labels
from app.vision import masks, postprocess, preprocess
from app.vision.postprocess import Detections
from app.vision.preprocess import LetterboxTransform

IOUS = np.linspace(0.5, 0.95, 10)

_EPSILON = np.float32(1e-7)


class Tally:
    """Hits and misses, image after image."""

    def __init__(self) -> None:
        self._hits = [np.zeros((0, len(IOUS)), bool)]
        self._scores = [np.zeros(0, np.float32)]
        self._classes, self._labels = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]

    def add(self, found: Detections, labels: Labels, transform: LetterboxTransform) -> None:
        """One image: what was found in its frame, and its labels."""
        overlap = _overlap(found, labels, transform)
        overlap[labels.classes[:, None] != found.classes[None]] = 0
        self._hits.append(hits(overlap))
        self._scores.append(found.scores)
        self._classes.append(found.classes)
        self._labels.append(labels.classes)

    def figures(self) -> dict[str, float]:
        """Of all images so far; none without labels."""
        labels = np.concatenate(self._labels)
        if not len(labels):
            return {}
        from ultralytics.utils.metrics import ap_per_class

        found, scores, classes = (np.concatenate(part) for part in (self._hits, self._scores, self._classes))
        precision: NDArray[np.float64] = ap_per_class(found, scores, classes, labels)[5]
        return {"map50": float(precision[:, 0].mean()), "map50_95": float(precision.mean())}


class TopTally:
    """Counts how often the right class is the most probable, or among the five most probable. For classify."""

    def __init__(self) -> None:
        self._right: list[tuple[bool, bool]] = []

    def add(self, found: Detections, labels: Labels, transform: LetterboxTransform) -> None:
        self._right += [(label == found.classes[0], label in found.classes) for label in labels.classes]

    def figures(self) -> dict[str, float]:
        """Of all images so far; none without labels."""
        return dict(zip(("top1", "top5"), np.mean(self._right, axis=0).tolist(), strict=True)) if self._right else {}


def _overlap(found: Detections, labels: Labels, transform: LetterboxTransform) -> NDArray[np.float32]:
    """[labels, found], 0 to 1."""
    if found.masks is not None and labels.masks is not None:
        wanted = [masks.to_frame(mask, transform) for mask in labels.masks]
        alike = labels.classes[:, None] == found.classes[None]
        overlap = np.zeros(alike.shape, np.float32)
        for i, j in np.argwhere(alike):
            overlap[i, j] = masks.iou(wanted[i], found.masks[j])
        return overlap
    if found.keypoints is not None and labels.keypoints is not None:
        points = preprocess.points_to_image(found.keypoints, transform)
        return oks(labels.keypoints, points, (labels.boxes[:, 2:] - labels.boxes[:, :2]).prod(1))
    if labels.boxes.shape[1] == 5:
        return postprocess.probiou(labels.boxes, preprocess.rotated_to_image(found.boxes, transform))
    return postprocess.iou(labels.boxes, preprocess.to_image(found.boxes, transform))


def oks(wanted: NDArray[np.float32], found: NDArray[np.float32], areas: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, M] similarity of keypoints, [N, P, 3] of boxes of N areas, and [M, P, 2 or 3].

    As `ultralytics.utils.metrics.kpt_iou`, with the sigmas and the 0.53 of its PoseValidator.
    """
    from ultralytics.utils.metrics import OKS_SIGMA

    count = wanted.shape[1]
    sigmas = OKS_SIGMA if found.shape[1:] == (17, 3) else np.full(count, 1 / count, np.float32)
    apart = ((wanted[:, None, :, :2] - found[None, :, :, :2]) ** 2).sum(-1)
    unlike = apart / ((2 * sigmas) ** 2 * (areas[:, None, None] * 0.53 + _EPSILON) * 2)
    labelled = wanted[:, None, :, 2] != 0
    return np.asarray((np.exp(-unlike) * labelled).sum(-1) / (labelled.sum(-1) + _EPSILON), np.float32)


def hits(overlap: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Bool [D, 10] of overlaps [labels, D]: which detections, best score first, take a label that is still free.

    As `ultralytics/engine/validator.py`, match_predictions.
    """
    taken = np.zeros((overlap.shape[0], len(IOUS)), bool)
    found = np.zeros((overlap.shape[1], len(IOUS)), bool)
    each = np.arange(len(IOUS))
    for i in np.flatnonzero((overlap >= IOUS[0]).any(0)):
        free = np.where(taken, 0, overlap[:, i, None])
        best = free.argmax(0)
        found[i] = free[best, each] >= IOUS
        taken[best, each] |= found[i]
    return found
