"""Converts predictions to the JSON of Ultralytics' hosted API, and to the Server-Timing header."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app import __version__
from app.model import ModelInfo
from app.serving.prediction import Prediction, Timings
from app.serving.service import Service
from app.system.threads import checkpoint
from app.vision import masks
from app.vision.masks import Mask
from app.vision.matching import pairs
from app.vision.postprocess import corners
from app.vision.preprocess import LetterboxTransform

_CORNERS = ("x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4")  # a box has the first two corners, a rotated box all four


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """Format of the results in a response."""

    rle: bool = False  # masks as run lengths instead of polygons
    decimals: int = 5
    normalize: bool = False  # coordinates divided by the image's width and height


def to_json(
    service: Service,
    compared: list[list[Prediction]],
    started: float,
    response_format: ResponseFormat = ResponseFormat(),
) -> dict[str, Any]:
    """Return the whole response; results are in the format of Ultralytics' `Results.summary()`.

    `compared` has one list per image, with one prediction per engine. `started` is a time of `time.perf_counter`.
    """
    requested = next(d for d in service.loaded if d.name == compared[0][0].engine)
    fingerprint, model = requested.stored.manifest.fingerprint, requested.stored.manifest.model
    return {
        "images": [_image_json(answers, model, response_format) for answers in compared],
        "metadata": {
            "imageCount": len(compared),
            "functionTimeCall": round(time.perf_counter() - started, 5),
            "model": model.name,
            "version": {"yolopard": __version__, fingerprint.backend: fingerprint.backend_version},
        },
    }


def _image_json(answers: list[Prediction], model: ModelInfo, response_format: ResponseFormat) -> dict[str, Any]:
    first, *others = answers
    content = {"shape": list(first.shape), **results_json(first, model, response_format)}
    if others:
        content["compare"] = [_compare_json(first, other, model, response_format) for other in others]
    return content


def results_json(prediction: Prediction, model: ModelInfo, response_format: ResponseFormat) -> dict[str, Any]:
    """Return `results` and `speed` (ms) of one image."""
    detections, timings = prediction.detections, prediction.timings
    height, width = prediction.shape
    unit = np.array([width, height] if response_format.normalize else [1, 1])
    results: list[dict[str, Any]] = [
        {"name": model.names[class_id], "class": class_id, "confidence": round(score, response_format.decimals)}
        for class_id, score in zip(detections.classes.tolist(), detections.scores.tolist(), strict=True)
    ]
    if detections.boxes.shape[1]:
        boxes = detections.boxes
        points = corners(boxes) if boxes.shape[1] == 5 else boxes.reshape(-1, 2, 2)
        for result, box in zip(results, (points / unit).reshape(-1, 2 * points.shape[1]).tolist(), strict=True):
            result["box"] = {
                side: round(value, response_format.decimals) for side, value in zip(_CORNERS, box, strict=False)
            }
    if detections.masks is not None:
        for result, mask in zip(results, detections.masks, strict=True):
            checkpoint()
            result.update(_mask_json(mask, prediction.transform, unit, response_format))
    if detections.keypoints is not None:
        scale = np.append(unit, 1)[: detections.keypoints.shape[-1]]
        for result, points in zip(results, detections.keypoints / scale, strict=True):
            result["keypoints"] = dict(zip(("x", "y", "visible"), _columns(points, response_format), strict=False))
    speed = {"preprocess": timings.decode, "inference": timings.infer, "postprocess": timings.postprocess}
    return {"results": results, "speed": {stage: round(seconds * 1000, 3) for stage, seconds in speed.items()}}


def _mask_json(
    mask: Mask, transform: LetterboxTransform, unit: NDArray[Any], response_format: ResponseFormat
) -> dict[str, Any]:
    if response_format.rle:
        return {"mask": {"size": list(transform.image), "counts": masks.run_lengths(mask, transform)}}
    return {"segments": dict(zip("xy", _columns(masks.polygon(mask, transform) / unit, response_format), strict=True))}


def _columns(points: NDArray[Any], response_format: ResponseFormat) -> list[list[float]]:
    """Return one list per coordinate, rounded as `Results.summary()` does."""
    columns: list[list[float]] = points.T.astype(float).round(response_format.decimals).tolist()
    return columns


def _compare_json(
    first: Prediction, other: Prediction, model: ModelInfo, response_format: ResponseFormat
) -> dict[str, Any]:
    """Return the results of another engine and their difference from the first engine's: counts of matched and other
    boxes, maximum differences of box sides (px) and scores. Two boxes match if they have the same class and IoU >= 0.9.
    """
    ours, theirs = first.detections, other.detections
    matched = pairs(ours, theirs)
    sides = np.abs(ours.boxes[matched[:, 0], :4] - theirs.boxes[matched[:, 1], :4])
    scores = np.abs(ours.scores[matched[:, 0]] - theirs.scores[matched[:, 1]])
    return {
        "engine": other.engine,
        **results_json(other, model, response_format),
        "both": len(matched),
        "only_first": len(ours) - len(matched),
        "only_this": len(theirs) - len(matched),
        "box_px": round(float(sides.max(initial=0)), 5),
        "score": round(float(scores.max(initial=0)), 5),
    }


def server_timing(predictions: list[Prediction]) -> str:
    """Return the Server-Timing header, in ms; for several images the maximum of each stage, as they run in parallel."""
    stages = [
        f"{stage};dur={max(getattr(prediction.timings, stage) for prediction in predictions) * 1000:.3f}"
        for stage in Timings.__slots__
    ]
    return ", ".join([*stages, f'batch;desc="{max(prediction.batch_size for prediction in predictions)}"'])
