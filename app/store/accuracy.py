"""How accurate an engine was found to be, and what it must reach to be served. Figures are stored, verdicts are not."""

import math
from dataclasses import asdict, dataclass
from typing import Any

MAX_BOX_PX = 0.5  # of a row before NMS
MAX_SHIFT_PX = 0.5
MIN_BOXES = 100  # boxes from which on a share counts as it is; of fewer its confidence interval does (docs/accuracy.md)
Z = 1.96  # standard deviations: 95 % of a normal distribution lie within
MIN_PROVEN_RATIO = 0.5  # a lossy engine must be proven to find more than this share: broken ones find less


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine must reach. `int8` counts where there are no labels; `map_loss` of classify is that of top-1."""

    fp32: float = 0.99
    fp16: float = 0.98
    int8: float = 0.90
    map_loss: float = 0.01


@dataclass(frozen=True, slots=True)
class AccuracyReport:
    """How far an engine is from its reference. Shares are of 1; px are the frame's."""

    images: int
    boxes: int  # that the reference finds, of score >= CONF
    agreement: float  # share of them that the engine finds too: same class, IoU >= 0.9; so its mask; its keypoints
    false_positives: float  # share of the engine's boxes that the reference does not find
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
        if proven or not 0 < self.boxes < MIN_BOXES or low >= least:
            return []
        return [
            f"{self.boxes} boxes do not prove that it finds {least} of the reference's: with 95 % confidence it finds "
            f"{low:.2f} to {high:.2f}. {self._images_asked_for()}"
        ]

    def _images_asked_for(self) -> str:
        images = math.ceil(MIN_BOXES * self.images / max(1, self.boxes))
        return f"About {images} images like these would tell (GATE_DIR)"

    def shortcomings(self, precision: str, limits: Limits) -> list[str]:
        """Why an engine of these figures must not be served; none = it may.

        From fewer than ENOUGH boxes a share is below its limit only if its whole confidence interval is.
        """
        least: float = getattr(limits, precision)
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
            "the reference finds nothing in the images: give others with GATE_DIR": lossy and not self.boxes,
            f"it finds {self.agreement:.4f} of the reference's boxes, {least} are asked for": (
                share_counts and self.boxes and not found >= least
            ),
            f"{self.boxes} boxes, of which it finds {self.agreement:.4f}, prove nothing. {self._images_asked_for()}": (
                share_counts and lossy and self.boxes and found >= least and not low > MIN_PROVEN_RATIO
            ),
            f"{self.false_positives:.4f} of its boxes are not the reference's, {1 - least:.2f} are allowed": (
                share_counts and not false_positives <= 1 - least
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
