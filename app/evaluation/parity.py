"""The accuracy gate: does an engine find what its reference, PyTorch in FP32, finds?

Detections are compared (agreement, and where there are labels the accuracy of both), and for fp32 and fp16 the rows
before NMS too, since NMS hides small differences and makes large ones of near ties. Of classify an image's likeliest
class stands for the box, and its probabilities for the rows.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.evaluation.accuracy import Tally, TopTally
from app.evaluation.datasets import Picture
from app.model import ModelInfo
from app.vision import masks, results
from app.vision.images import Placement
from app.vision.results import Detections, Outputs, Rows, Thresholds

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
ENOUGH = 100  # boxes from which on a share counts as it is; of fewer its confidence interval does (docs/accuracy.md)
Z = 1.96  # standard deviations: 95 % of a normal distribution lie within
HALF = 0.5  # a lossy engine must be proven to find more than this share: broken ones find less

_ALL = Thresholds(conf=0.001)  # as `yolo val`


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine must reach. `int8` counts where there are no labels; `map_loss` of classify is that of top-1."""

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
    engine_boxes: int = 0  # that the engine finds, of score >= CONF
    proven_shift_px: float = 0.0  # the least shift, of the worst side, that its 95 % confidence interval allows
    map50: float | None = None  # with labels: of the engine; by masks, keypoints or turned boxes where there are any
    map50_95: float | None = None
    reference_map50: float | None = None
    reference_map50_95: float | None = None
    top1: float | None = None  # of classify, with labels: of the engine
    top5: float | None = None
    reference_top1: float | None = None
    reference_top5: float | None = None
    mask_iou: float | None = None  # of segment: mean over the pairs
    keypoint_px: float | None = None  # of pose: greatest difference of a visible keypoint of a pair

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lost(self) -> float | None:
        """How much less accurate than its reference the engine is: mAP50-95, of classify top-1; None without labels."""
        if self.top1 is not None:
            return (self.reference_top1 or 0) - self.top1
        return None if self.map50_95 is None else (self.reference_map50_95 or 0) - self.map50_95

    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of `agreement`."""
        return wilson(self.agreement, self.boxes)

    def doubts(self, precision: str, limits: Limits) -> list[str]:
        """What the figures of an engine that passes leave open, and how many images would settle it."""
        least: float = getattr(limits, precision)
        low, high = self.interval()
        proven = precision != "int8" or self.lost() is not None  # by the rows before NMS, or by labels
        if proven or not 0 < self.boxes < ENOUGH or low >= least:
            return []
        return [
            f"{self.boxes} boxes do not prove that it finds {least} of the reference's: with 95 % confidence it finds "
            f"{low:.2f} to {high:.2f}. {self._images_asked_for()}"
        ]

    def _images_asked_for(self) -> str:
        images = math.ceil(ENOUGH * self.images / max(1, self.boxes))
        return f"About {images} images like these would tell (GATE_DIR)"

    def shortcomings(self, precision: str, limits: Limits) -> list[str]:
        """Why an engine of these figures must not be served; none = it may.

        From fewer than ENOUGH boxes a share is below its limit only if its whole confidence interval is.
        """
        least: float = getattr(limits, precision)
        lossy = precision == "int8"
        low, high = self.interval()
        found = high if self.boxes < ENOUGH else self.agreement
        invented = wilson(self.invented, self.engine_boxes)[0] if self.engine_boxes < ENOUGH else self.invented
        shift = self.proven_shift_px if self.boxes < ENOUGH else self.shift_px
        lost, what = self.lost(), "mAP50-95" if self.top1 is None else "of top-1"
        share_counts = not (lossy and lost is not None)
        rules = {
            "there are no images to judge it on": not self.images,
            "the reference finds nothing in the images: give others with GATE_DIR": lossy and not self.boxes,
            f"it finds {self.agreement:.4f} of the reference's boxes, {least} are asked for": (
                share_counts and self.boxes and not found >= least
            ),
            f"{self.boxes} boxes, of which it finds {self.agreement:.4f}, prove nothing. {self._images_asked_for()}": (
                share_counts and lossy and self.boxes and found >= least and not low > HALF
            ),
            f"{self.invented:.4f} of its boxes are not the reference's, {1 - least:.2f} are allowed": (
                share_counts and not invented <= 1 - least
            ),
            f"only {self.rows_agreement:.4f} of the rows are within {MAX_BOX_PX} px and the score's tolerance": (
                not lossy and not self.rows_agreement >= least
            ),
            f"its boxes are off by {self.shift_px:.2f} px to one side": not shift <= MAX_SHIFT_PX,
            f"it loses {lost or 0:.4f} {what}, {limits.map_loss} are allowed": (
                lost is not None and not lost <= limits.map_loss
            ),
        }
        return [text for text, broken in rules.items() if broken]


def wilson(share: float, of: int) -> tuple[float, float]:
    """The 95 % confidence interval of a share (E. B. Wilson, 1927, JASA 22); 0 to 1 of nothing."""
    if not of:
        return 0.0, 1.0
    z = Z * Z / of
    middle, half = share + z / 2, Z * math.sqrt(share * (1 - share) / of + z / (4 * of))
    return min(share, (middle - half) / (1 + z)), max(share, (middle + half) / (1 + z))


def _proven_shift(sides: NDArray[np.float32]) -> float:
    """How far from 0 the 95 % confidence interval of the median of a side [N, 4] stays, of the worst side.

    The interval lies between two of the sorted differences, whose ranks are those of a binomial of N and 1/2, by its
    normal approximation; fewer than 8 pairs prove no shift.
    """
    pairs = len(sides)
    rank = math.floor((pairs - 1 - Z * math.sqrt(pairs)) / 2)
    if pairs < 8 or rank < 0:
        return 0.0
    ordered = np.sort(sides, axis=0)
    low, high = ordered[rank], ordered[pairs - 1 - rank]
    return float(np.maximum(low, -high).max(initial=0))


def worst(figures: Sequence[Figures]) -> Figures:
    """Field by field: if any falls short of the limits, so does it. mAP and top-1 are those of the greatest loss."""
    by_loss = max(figures, key=lambda each: each.lost() or 0)

    def of(name: str) -> Any:
        values = [getattr(each, name) for each in figures]
        if name in ("images", "boxes", "rows", "engine_boxes"):
            return sum(values)
        if "map50" in name or "top" in name:
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
        tally = TopTally if model.task == "classify" else Tally
        self._of_reference, self._of_engine = tally(), tally()

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
            self._mask_ious += [masks.iou(wanted.masks[i], found.masks[j]) for i, j in matched]
        if wanted.keypoints is not None and found.keypoints is not None:
            self._keypoints_px += [_keypoints_apart(wanted.keypoints[i], found.keypoints[j]) for i, j in matched]
        if picture.labels is not None:
            self._of_reference.add(wanted, picture.labels, placement)
            self._of_engine.add(found, picture.labels, placement)

    def figures(self) -> Figures:
        """Of all images so far."""
        sides, scores = np.concatenate(self._sides), np.concatenate(self._scores)
        of_reference = {f"reference_{name}": value for name, value in self._of_reference.figures().items()}
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
            engine_boxes=self._engine_boxes,
            proven_shift_px=_proven_shift(sides),
            rows=self._rows,
            rows_agreement=self._rows_alike / self._rows if self._rows else 0.0,
            mask_iou=float(np.mean(self._mask_ious)) if self._mask_ious else None,
            keypoint_px=max(self._keypoints_px, default=None),
            **self._of_engine.figures(),
            **of_reference,
        )
        rounded: dict[str, Any] = {
            name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(figures).items()
        }
        return Figures(**rounded)


def _overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """[len(a), len(b)] of boxes of any task; classes, which have none, lie all in the same place."""
    match a.shape[1]:
        case 0:
            return np.ones((len(a), len(b)), np.float32)
        case 5:
            return results.probiou(a, b)
    return results.iou(a, b)


def _alike_within(wanted: Detections, offered: Detections, i: int, j: int) -> bool:
    """Whether what two boxes hold besides their class is the same."""
    if wanted.masks is not None and offered.masks is not None:
        return masks.iou(wanted.masks[i], offered.masks[j]) >= IOU
    if wanted.keypoints is not None and offered.keypoints is not None:
        allowed = KEYPOINT * float((wanted.boxes[i, 2:] - wanted.boxes[i, :2]).max())
        return _keypoints_apart(wanted.keypoints[i], offered.keypoints[j]) <= allowed
    return True


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
