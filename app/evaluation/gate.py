"""The accuracy gate: does an engine find what its reference, PyTorch in FP32, finds?

Detections are compared (agreement, and where there are labels the accuracy of both), and for fp32 and fp16 the rows
before NMS too, since NMS hides small differences and makes large ones of near ties. Of classify an image's likeliest
class stands for the box, and its probabilities for the rows.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.evaluation.datasets import Sample
from app.evaluation.mean_ap import Tally, TopTally
from app.model import ModelInfo
from app.store.accuracy import MAX_BOX_PX, AccuracyReport, Z
from app.vision import masks, postprocess
from app.vision.matching import CONF, MIN_MATCH_CONF, from_score, keypoints_apart, pairs
from app.vision.postprocess import Outputs, Rows, Thresholds
from app.vision.preprocess import LetterboxTransform

TOP = 30  # rows of each image that are compared at least: weights that see nothing in the images are evaluated as well
CLASS_CONF = 0.01  # below it all classes are about as unlikely, and which is the most likely is noise
MAX_SCORE = {"fp32": 0.005, "fp16": 0.01}

_ALL = Thresholds(conf=0.001)  # as `yolo val`


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


def worst(figures: Sequence[AccuracyReport]) -> AccuracyReport:
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

    return AccuracyReport(**{field.name: of(field.name) for field in fields(AccuracyReport)})


class Gate:
    """Collects what reference and engine find in one image after the other."""

    def __init__(self, precision: str, model: ModelInfo) -> None:
        self._model = model
        self._max_score = MAX_SCORE.get(precision, MAX_SCORE["fp16"])
        self._images = self._boxes = self._found = self._engine_boxes = self._false_positives = 0
        self._rows = self._rows_alike = 0
        self._sides: list[NDArray[np.float32]] = [np.zeros((0, 4), np.float32)]
        self._scores: list[NDArray[np.float32]] = [np.zeros(0, np.float32)]
        self._mask_ious, self._keypoints_px = list[float](), list[float]()
        tally = TopTally if model.task == "classify" else Tally
        self._of_reference, self._of_engine = tally(), tally()

    def add(self, sample: Sample, transform: LetterboxTransform, reference: Outputs, engine: Outputs) -> None:
        """One image's outputs."""
        self._images += 1
        compare = _alike_probs if self._model.task == "classify" else _alike
        alike = compare(reference[0], engine[0], self._max_score)
        self._rows += len(alike)
        self._rows_alike += int(np.count_nonzero(alike))
        wanted, found = (postprocess.select(outputs, _ALL, self._model) for outputs in (reference, engine))
        matched = pairs(from_score(wanted, CONF), from_score(found, MIN_MATCH_CONF))
        self._boxes += len(from_score(wanted, CONF))
        self._found += len(matched)
        self._engine_boxes += len(from_score(found, CONF))
        self._false_positives += len(from_score(found, CONF)) - len(
            pairs(from_score(found, CONF), from_score(wanted, MIN_MATCH_CONF))
        )
        ours, theirs = matched[:, 1], matched[:, 0]
        if wanted.boxes.shape[1]:
            self._sides.append(found.boxes[ours, :4] - wanted.boxes[theirs, :4])
        self._scores.append(np.abs(found.scores[ours] - wanted.scores[theirs]))
        if wanted.masks is not None and found.masks is not None:
            self._mask_ious += [masks.iou(wanted.masks[i], found.masks[j]) for i, j in matched]
        if wanted.keypoints is not None and found.keypoints is not None:
            self._keypoints_px += [keypoints_apart(wanted.keypoints[i], found.keypoints[j]) for i, j in matched]
        if sample.labels is not None:
            self._of_reference.add(wanted, sample.labels, transform)
            self._of_engine.add(found, sample.labels, transform)

    def figures(self) -> AccuracyReport:
        """Of all images so far."""
        sides, scores = np.concatenate(self._sides), np.concatenate(self._scores)
        of_reference = {f"reference_{name}": value for name, value in self._of_reference.figures().items()}
        figures = AccuracyReport(
            images=self._images,
            boxes=self._boxes,
            agreement=self._found / self._boxes if self._boxes else 1.0,
            false_positives=self._false_positives / self._engine_boxes if self._engine_boxes else 0.0,
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
        return AccuracyReport(**rounded)


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
