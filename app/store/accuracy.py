"""Accuracy reports of engines, and the limits of the gate. Reports are stored; each start compares them anew."""

import math
from dataclasses import asdict, dataclass
from typing import Any

MAX_BOX_PX = 0.5  # difference of a row before NMS
MAX_SHIFT_PX = 0.5
MIN_BOXES = 100  # for comparing a share with its limit; with fewer its confidence interval counts (docs/accuracy.md)
Z = 1.96  # standard deviations that contain 95 % of a normal distribution
MIN_PROVEN_RATIO = 0.5  # with 95 % confidence, an int8 engine must find more than this share: broken ones find less


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the gate. `int8` only applies without labels; for classify, `map_loss` limits the loss of top-1."""

    fp32: float = 0.99
    fp16: float = 0.98
    int8: float = 0.90
    map_loss: float = 0.01


@dataclass(frozen=True, slots=True)
class AccuracyReport:
    """Differences between an engine and its reference. Shares are from 0 to 1, px are frame px."""

    images: int
    boxes: int  # of the reference, with score >= CONF
    agreement: float  # share of them that the engine finds too: same class, IoU >= 0.9 (mask too), keypoints alike
    false_positives: float  # share of the engine's boxes that the reference does not find
    box_px: float  # maximum difference of a side between the boxes of a pair
    box_px_mean: float
    shift_px: float  # median of the signed differences, of the worst side; shows wrong padding
    score: float  # maximum difference between the scores of a pair
    score_mean: float
    rows: int  # compared before NMS
    rows_agreement: float  # share of them within MAX_BOX_PX and MAX_SCORE
    engine_boxes: int = 0  # of the engine, with score >= CONF
    proven_shift_px: float = 0.0  # minimum shift in the 95 % confidence interval, of the worst side
    map50: float | None = None  # of the engine, with labels; by masks, keypoints or rotated boxes if the task has them
    map50_95: float | None = None
    reference_map50: float | None = None
    reference_map50_95: float | None = None
    top1: float | None = None  # of the engine, classify with labels
    top5: float | None = None
    reference_top1: float | None = None
    reference_top5: float | None = None
    mask_iou: float | None = None  # segment: mean of the pairs
    keypoint_px: float | None = None  # pose: maximum difference of a visible keypoint of a pair

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lost(self) -> float | None:
        """Return the loss of mAP50-95 (classify: top-1) against the reference; None without labels."""
        if self.top1 is not None:
            return (self.reference_top1 or 0) - self.top1
        return None if self.map50_95 is None else (self.reference_map50_95 or 0) - self.map50_95

    def interval(self) -> tuple[float, float]:
        """Return the 95 % confidence interval of `agreement`."""
        return wilson(self.agreement, self.boxes)

    def doubts(self, precision: str, limits: Limits) -> list[str]:
        """Return warnings on what the report of a passing engine does not prove, and how many images would."""
        limit: float = getattr(limits, precision)
        low, high = self.interval()
        proven = precision != "int8" or self.lost() is not None  # by the rows before NMS, or by labels
        if proven or not 0 < self.boxes < MIN_BOXES or low >= limit:
            return []
        return [
            f"{self.boxes} boxes do not prove that it finds {limit} of the reference's: with 95 % confidence it finds "
            f"{low:.2f} to {high:.2f}. {self._images_needed()}"
        ]

    def _images_needed(self) -> str:
        images = math.ceil(MIN_BOXES * self.images / max(1, self.boxes))
        return f"About {images} images like these are needed (GATE_DIR)"

    def shortcomings(self, precision: str, limits: Limits) -> list[str]:
        """Return the reasons why the engine must not be served; empty = it may be served.

        With fewer than MIN_BOXES boxes, a share is below its limit only if its whole confidence interval is.
        """
        limit: float = getattr(limits, precision)
        lossy = precision == "int8"
        low, high = self.interval()
        found = high if self.boxes < MIN_BOXES else self.agreement
        false_positives = (
            wilson(self.false_positives, self.engine_boxes)[0]
            if self.engine_boxes < MIN_BOXES
            else self.false_positives
        )
        shift = self.proven_shift_px if self.boxes < MIN_BOXES else self.shift_px
        lost, what = self.lost(), "mAP50-95" if self.top1 is None else "of top-1"
        share_counts = not (lossy and lost is not None)
        rules = {
            "there are no images to evaluate it on": not self.images,
            "the reference finds nothing in the images: set GATE_DIR to other images": lossy and not self.boxes,
            f"it finds {self.agreement:.4f} of the reference's boxes, {limit} are required": (
                share_counts and self.boxes and not found >= limit
            ),
            f"{self.boxes} boxes, of which it finds {self.agreement:.4f}, are too few. {self._images_needed()}": (
                share_counts and lossy and self.boxes and found >= limit and not low > MIN_PROVEN_RATIO
            ),
            f"{self.false_positives:.4f} of its boxes are not the reference's, {1 - limit:.2f} are allowed": (
                share_counts and not false_positives <= 1 - limit
            ),
            f"only {self.rows_agreement:.4f} of the rows are within {MAX_BOX_PX} px and the score's tolerance": (
                not lossy and not self.rows_agreement >= limit
            ),
            f"its boxes are off by {self.shift_px:.2f} px to one side": not shift <= MAX_SHIFT_PX,
            f"it loses {lost or 0:.4f} {what}, {limits.map_loss} are allowed": (
                lost is not None and not lost <= limits.map_loss
            ),
        }
        return [text for text, broken in rules.items() if broken]


def wilson(share: float, of: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share of `of` (E. B. Wilson, 1927, JASA 22); (0, 1) if `of` is 0."""
    if not of:
        return 0.0, 1.0
    z = Z * Z / of
    middle, half = share + z / 2, Z * math.sqrt(share * (1 - share) / of + z / (4 * of))
    return min(share, (middle - half) / (1 + z)), max(share, (middle + half) / (1 + z))
