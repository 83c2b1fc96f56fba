"""Predictions -> the JSON of Ultralytics' hosted API, and Server-Timing."""

import time
from typing import Any

import numpy as np

from app import __version__
from app.api.service import Service
from app.model import ModelInfo
from app.parity import pairs
from app.predictor import Prediction, Timings


def to_json(
    service: Service,
    compared: list[list[Prediction]],
    started: float,
    *,
    decimals: int = 5,
    normalize: bool = False,  # sides as shares of the image's
) -> dict[str, Any]:
    asked = next(d for d in service.deployed if d.name == compared[0][0].engine)
    fingerprint, model = asked.built.manifest.fingerprint, asked.built.manifest.model
    return {
        "images": [_image_json(answers, model, decimals, normalize) for answers in compared],
        "metadata": {
            "imageCount": len(compared),
            "functionTimeCall": round(time.perf_counter() - started, 5),
            "model": model.name,
            "version": {"yolopard": __version__, fingerprint.backend: fingerprint.backend_version},
        },
    }


def _image_json(answers: list[Prediction], model: ModelInfo, decimals: int, normalize: bool) -> dict[str, Any]:
    first, *others = answers
    content = {"shape": list(first.shape), **_found_json(first, model, decimals, normalize)}
    if others:
        content["compare"] = [_compare_json(first, other, model) for other in others]
    return content


def _found_json(prediction: Prediction, model: ModelInfo, decimals: int = 5, normalize: bool = False) -> dict[str, Any]:
    found, timings = prediction.detections, prediction.timings
    height, width = prediction.shape
    boxes = found.boxes / (width, height, width, height) if normalize else found.boxes
    results = [
        {
            "name": model.names[class_id],
            "class": class_id,
            "confidence": round(score, decimals),
            "box": {side: round(value, decimals) for side, value in zip(("x1", "y1", "x2", "y2"), box, strict=True)},
        }
        for class_id, score, box in zip(found.classes.tolist(), found.scores.tolist(), boxes.tolist(), strict=True)
    ]
    speed = {"preprocess": timings.decode, "inference": timings.infer, "postprocess": timings.postprocess}
    return {"results": results, "speed": {stage: round(seconds * 1000, 3) for stage, seconds in speed.items()}}


def _compare_json(first: Prediction, other: Prediction, model: ModelInfo) -> dict[str, Any]:
    """What another engine found, and how far the two are apart; boxes are the same from IoU 0.9 and the same class."""
    ours, theirs = first.detections, other.detections
    both = pairs(ours, theirs)
    sides = np.abs(ours.boxes[both[:, 0]] - theirs.boxes[both[:, 1]])
    scores = np.abs(ours.scores[both[:, 0]] - theirs.scores[both[:, 1]])
    return {
        "engine": other.engine,
        **_found_json(other, model),
        "both": len(both),
        "only_first": len(ours) - len(both),
        "only_this": len(theirs) - len(both),
        "box_px": round(float(sides.max(initial=0)), 5),
        "score": round(float(scores.max(initial=0)), 5),
    }


def server_timing(predictions: list[Prediction]) -> str:
    """Of several images the slowest in each stage; they run at the same time."""
    stages = [
        f"{stage};dur={max(getattr(prediction.timings, stage) for prediction in predictions) * 1000:.3f}"
        for stage in Timings.__slots__
    ]
    return ", ".join([*stages, f'batch;desc="{max(prediction.batch_size for prediction in predictions)}"'])
