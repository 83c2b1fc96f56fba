"""The accuracy gate: does an engine find what its reference, PyTorch in FP32, finds?

Detections are compared (agreement, and mAP of the boxes where there are labels), and for fp32 and fp16 the rows before
NMS too, since NMS hides small differences and makes large ones of near ties. Of classify an image's likeliest class
stands for the box, and its probabilities for the rows.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app import results
from app.datasets import Picture
from app.images import Boxes, Placement, to_image
from app.masks import Mask
from app.model import ModelInfo
from app.results import Detections, Outputs, Rows, Thresholds

CONF = 0.25  # boxes from this score on must be found again,
FAINT = 0.05  # be it with a score as low as this
IOU = 0.9  # of boxes and of masks
KEYPOINT = 0.05  # most that a visible keypoint is off, of the box's longer side
VISIBLE = 0.5
TOP = 30  # rows of each image that are compared at least: weights that see nothing in the images are judged as well
CLASS_CONF = 0.01  # below it all classes are about as unlikely, and which is the most likely is noise
MAX_BOX_PX = 0.5
MAX_SCORE = {"fp32": 0.005, "fp16": 0.01}
MAX_SHIFT_PX = 0.5
AP_IOUS = np.linspace(0.5, 0.95, 10)

_ALL = Thresholds(conf=0.001)  # as `yolo val`


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine must reach. `int8` counts where there are no labels to measure mAP with."""

    fp32: float = 0.99
    fp16: float = 0.98
    int8: float = 0.90
    map_loss: float = 0.01


@dataclass(frozen=True, slots=True)
class Figures:
    """How far an engine is from its reference. Shares are of 1; px are the frame's."""

    images: int
    boxes: int  # that the reference finds, of score >= CONF
    agreement: float  # share of them that the engine finds too: same class, IoU >= 0.9; so its mask; its keypoints
    invented: float  # share of the engine's boxes that the reference does not find
    box_px: float  # greatest difference of a side between two boxes of a pair
    box_px_mean: float
    shift_px: float  # median of the signed differences, of the worst side: what a wrong pad does
    score: float  # greatest difference of the scores of a pair
    score_mean: float
    rows: int  # compared before NMS
    rows_agreement: float  # share of them within MAX_BOX_PX and MAX_SCORE
    map50: float | None = None  # with labels: of the engine
    map50_95: float | None = None
    reference_map50: float | None = None
    reference_map50_95: float | None = None
    mask_iou: float | None = None  # of segment: mean over the pairs
    keypoint_px: float | None = None  # of pose: greatest difference of a visible keypoint of a pair

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def shortcomings(self, precision: str, limits: Limits) -> list[str]:
        """Why an engine of these figures must not be served; none = it may."""
        least: float = getattr(limits, precision)
        lossy = precision == "int8"
        lost = None if self.map50_95 is None else (self.reference_map50_95 or 0) - self.map50_95
        share_counts = not (lossy and lost is not None)
        rules = {
            "there are no images to judge it on": not self.images,
            "the reference finds nothing in the images: give others with GATE_DIR": lossy and not self.boxes,
            f"it finds {self.agreement:.4f} of the reference's boxes, {least} are asked for": (
                share_counts and self.boxes and not self.agreement >= least
            ),
            f"{self.invented:.4f} of its boxes are not the reference's, {1 - least:.2f} are allowed": (
                share_counts and not self.invented <= 1 - least
            ),
            f"only {self.rows_agreement:.4f} of the rows are within {MAX_BOX_PX} px and the score's tolerance": (
                not lossy and not self.rows_agreement >= least
            ),
            f"its boxes are off by {self.shift_px:.2f} px to one side": not self.shift_px <= MAX_SHIFT_PX,
            f"it loses {lost or 0:.4f} mAP50-95, {limits.map_loss} are allowed": (
                lost is not None and not lost <= limits.map_loss
            ),
        }
        return [text for text, broken in rules.items() if broken]


def worst(figures: Sequence[Figures]) -> Figures:
    """Field by field: if any falls short of the limits, so does it. mAP is that of the greatest loss."""
    by_loss = max(figures, key=lambda each: (each.reference_map50_95 or 0) - (each.map50_95 or 0))

    def of(name: str) -> Any:
        values = [getattr(each, name) for each in figures]
        if name in ("images", "boxes", "rows"):
            return sum(values)
        if "map50" in name:
            return getattr(by_loss, name)
        known = [value for value in values if value is not None]
        return (min if "agreement" in name or "iou" in name else max)(known, default=None)

    return Figures(**{field.name: of(field.name) for field in fields(Figures)})


class Gate:
    """Collects what reference and engine find in one image after the other."""

    def __init__(self, precision: str, model: ModelInfo) -> None:
        self._model = model
        self._max_score = MAX_SCORE.get(precision, MAX_SCORE["fp16"])
        self._images = self._boxes = self._found = self._engine_boxes = self._invented = 0
        self._rows = self._rows_alike = 0
        self._sides: list[NDArray[np.float32]] = [np.zeros((0, 4), np.float32)]
        self._scores: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
        self._mask_ious, self._keypoints_px = list[float](), list[float]()
        self._truth = {"reference": _Truth(), "engine": _Truth()}

    def add(self, picture: Picture, placement: Placement, reference: Outputs, engine: Outputs) -> None:
        """One image's outputs."""
        self._images += 1
        compare = _alike_probs if self._model.task == "classify" else _alike
        alike = compare(reference[0], engine[0], self._max_score)
        self._rows += len(alike)
        self._rows_alike += int(np.count_nonzero(alike))
        wanted, found = (results.select(outputs, _ALL, self._model) for outputs in (reference, engine))
        matched = pairs(_from(wanted, CONF), _from(found, FAINT))
        self._boxes += len(_from(wanted, CONF))
        self._found += len(matched)
        self._engine_boxes += len(_from(found, CONF))
        self._invented += len(_from(found, CONF)) - len(pairs(_from(found, CONF), _from(wanted, FAINT)))
        ours, theirs = matched[:, 1], matched[:, 0]
        if wanted.boxes.shape[1]:
            self._sides.append(found.boxes[ours, :4] - wanted.boxes[theirs, :4])
        self._scores.append(np.abs(found.scores[ours] - wanted.scores[theirs]))
        if wanted.masks is not None and found.masks is not None:
            self._mask_ious += [mask_iou(wanted.masks[i], found.masks[j]) for i, j in matched]
        if wanted.keypoints is not None and found.keypoints is not None:
            self._keypoints_px += [_keypoints_apart(wanted.keypoints[i], found.keypoints[j]) for i, j in matched]
        if picture.boxes is not None and picture.classes is not None:
            self._truth["reference"].add(wanted, placement, picture.boxes, picture.classes)
            self._truth["engine"].add(found, placement, picture.boxes, picture.classes)

    def figures(self) -> Figures:
        """Of all images so far."""
        sides, scores = np.concatenate(self._sides), np.concatenate(self._scores)
        map50, map50_95 = self._truth["engine"].mean_precision()
        reference_map50, reference_map50_95 = self._truth["reference"].mean_precision()
        figures = Figures(
            images=self._images,
            boxes=self._boxes,
            agreement=self._found / self._boxes if self._boxes else 1.0,
            invented=self._invented / self._engine_boxes if self._engine_boxes else 0.0,
            box_px=float(np.abs(sides).max(initial=0)),
            box_px_mean=float(np.abs(sides).mean()) if len(sides) else 0.0,
            shift_px=float(np.abs(np.median(sides, axis=0)).max()) if len(sides) else 0.0,
            score=float(scores.max(initial=0)),
            score_mean=float(scores.mean()) if len(scores) else 0.0,
            rows=self._rows,
            rows_agreement=self._rows_alike / self._rows if self._rows else 0.0,
            map50=map50,
            map50_95=map50_95,
            reference_map50=reference_map50,
            reference_map50_95=reference_map50_95,
            mask_iou=float(np.mean(self._mask_ious)) if self._mask_ious else None,
            keypoint_px=max(self._keypoints_px, default=None),
        )
        rounded: dict[str, Any] = {
            name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(figures).items()
        }
        return Figures(**rounded)


class _Truth:
    """Hits and misses against labels, for mAP as Ultralytics computes it; of rows, so with one class an anchor."""

    def __init__(self) -> None:
        self._hits = [np.zeros((0, len(AP_IOUS)), bool)]
        self._scores = [np.zeros(0, np.float32)]
        self._classes, self._labels = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]

    def add(self, found: Detections, placement: Placement, boxes: Boxes, classes: NDArray[np.int64]) -> None:
        overlap = iou(boxes, to_image(found.boxes, placement))
        overlap[classes[:, None] != found.classes[None]] = 0
        self._hits.append(_hits(overlap))
        self._scores.append(found.scores)
        self._classes.append(found.classes)
        self._labels.append(classes)

    def mean_precision(self) -> tuple[float | None, float | None]:
        """mAP50 and mAP50-95; None without labels."""
        labels = np.concatenate(self._labels)
        if not len(labels):
            return None, None
        from ultralytics.utils.metrics import ap_per_class

        hits, scores, classes = (np.concatenate(part) for part in (self._hits, self._scores, self._classes))
        precision: NDArray[np.float64] = ap_per_class(hits, scores, classes, labels)[5]
        return float(precision[:, 0].mean()), float(precision.mean())


def iou(a: Boxes, b: Boxes) -> NDArray[np.float32]:
    """[len(a), len(b)] intersection over union."""
    corner = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = np.clip(corner, 0, None).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b)]
    return np.asarray(shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9), np.float32)


def _overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """[len(a), len(b)] of boxes of any task; classes, which have none, lie all in the same place."""
    match a.shape[1]:
        case 0:
            return np.ones((len(a), len(b)), np.float32)
        case 5:
            return results.probiou(a, b)
    return iou(a, b)


def _alike_within(wanted: Detections, offered: Detections, i: int, j: int) -> bool:
    """Whether what two boxes hold besides their class is the same."""
    if wanted.masks is not None and offered.masks is not None:
        return mask_iou(wanted.masks[i], offered.masks[j]) >= IOU
    if wanted.keypoints is not None and offered.keypoints is not None:
        allowed = KEYPOINT * float((wanted.boxes[i, 2:] - wanted.boxes[i, :2]).max())
        return _keypoints_apart(wanted.keypoints[i], offered.keypoints[j]) <= allowed
    return True


def mask_iou(a: Mask, b: Mask) -> float:
    """Intersection over union of two masks of one frame."""
    left, top = max(a.left, b.left), max(a.top, b.top)
    parts = [mask.pixels[top - mask.top :, left - mask.left :] for mask in (a, b)]
    height, width = (min(part.shape[side] for part in parts) for side in (0, 1))
    shared = np.count_nonzero(parts[0][:height, :width] & parts[1][:height, :width])
    return shared / (np.count_nonzero(a.pixels) + np.count_nonzero(b.pixels) - shared)


def _keypoints_apart(wanted: NDArray[np.float32], offered: NDArray[np.float32]) -> float:
    """Greatest distance, in x or y, of the keypoints [P, 2 or 3] that `wanted` sees."""
    seen = wanted[:, 2] >= VISIBLE if wanted.shape[1] == 3 else slice(None)
    return float(np.abs(wanted[seen, :2] - offered[seen, :2]).max(initial=0))


def difference(first: Detections, second: Detections) -> tuple[int, int, int]:
    """Of boxes of score >= CONF: how many both have, only the first, only the second; faint ones are partners too."""
    both = len(pairs(_from(first, CONF), second))
    second_alone = len(_from(second, CONF)) - len(pairs(_from(second, CONF), first))
    return both, len(_from(first, CONF)) - both, second_alone


def _from(found: Detections, conf: float) -> Detections:
    """Those of at least this score, of classify the likeliest. NMS is greedy: it would keep the same ones of them."""
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


def _hits(overlap: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Bool [D, 10] of overlaps [labels, D]: which detections, best score first, take a label that is still free.

    As `ultralytics/engine/validator.py`, match_predictions.
    """
    hits = np.zeros((overlap.shape[1], len(AP_IOUS)), bool)
    taken = np.zeros((overlap.shape[0], len(AP_IOUS)), bool)
    each = np.arange(len(AP_IOUS))
    for i in np.flatnonzero((overlap >= AP_IOUS[0]).any(0)):
        free = np.where(taken, 0, overlap[:, i, None])
        best = free.argmax(0)
        hits[i] = free[best, each] >= AP_IOUS
        taken[best, each] |= hits[i]
    return hits


def _alike(reference: Rows, engine: Rows, max_score: float) -> NDArray[np.bool_]:
    """Per row of the reference that counts: whether the engine has it too."""
    wanted = reference[: max(TOP, int(np.count_nonzero(reference[:, 4] >= CONF)))]
    if not len(wanted) or not len(engine):
        return np.zeros(len(wanted), bool)
    boxes = np.abs(wanted[:, None, :4] - engine[None, :, :4]).max(2)
    boxes[(wanted[:, None, 5] != engine[None, :, 5]) & (wanted[:, None, 4] >= CLASS_CONF)] = np.inf
    boxes[np.isnan(boxes)] = np.inf
    partner = boxes.argmin(1)
    score = np.abs(wanted[:, 4] - engine[partner, 4])
    return np.asarray((boxes[np.arange(len(wanted)), partner] <= MAX_BOX_PX) & (score <= max_score))


def _alike_probs(reference: NDArray[np.float32], engine: NDArray[np.float32], max_score: float) -> NDArray[np.bool_]:
    """[1] whether the probabilities of all classes are the same."""
    return np.array([np.abs(reference - engine).max() <= max_score])
