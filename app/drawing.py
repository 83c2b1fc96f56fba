"""Boxes and labels drawn on a picture, and the picture as a file."""

from collections.abc import Mapping

import cv2
import numpy as np

from app.images import Pixels
from app.results import Detections

_GOLDEN_ANGLE = 137.508  # degrees; neighbours in class id get hues far apart


def draw(image: Pixels, detections: Detections, names: Mapping[int, str]) -> Pixels:
    """A copy of the image with the detections on it, the best on top."""
    canvas = image.copy()
    size = max(image.shape[:2])
    thickness, scale = max(1, round(size / 400)), max(0.4, size / 1600)
    for i in reversed(range(len(detections))):
        class_id = int(detections.classes[i])
        colour = _colour(class_id)
        x1, y1, x2, y2 = (round(float(v)) for v in detections.boxes[i])
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, thickness, cv2.LINE_AA)
        _label(canvas, f"{names[class_id]} {detections.scores[i]:.2f}", (x1, y1), colour, scale)
    return canvas


def encode(image: Pixels, kind: str) -> bytes:
    """`kind` is "jpeg" or "png"."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 90] if kind == "jpeg" else []
    return cv2.imencode(f".{kind}", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def _label(canvas: Pixels, text: str, corner: tuple[int, int], colour: tuple[int, int, int], scale: float) -> None:
    """Above the box's top left corner, or inside the box where there is no room above."""
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    x = max(0, min(corner[0], canvas.shape[1] - width))
    bottom = corner[1] if corner[1] >= height + below else corner[1] + height + below
    cv2.rectangle(canvas, (x, bottom - height - below), (x + width, bottom), colour, cv2.FILLED)
    ink = (0, 0, 0) if sum(colour) > 380 else (255, 255, 255)
    cv2.putText(canvas, text, (x, bottom - below), cv2.FONT_HERSHEY_SIMPLEX, scale, ink, 1, cv2.LINE_AA)


def _colour(class_id: int) -> tuple[int, int, int]:
    hue = class_id * _GOLDEN_ANGLE % 360 / 2
    pixel = cv2.cvtColor(np.array([[[hue, 200, 255]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0]
    return int(pixel[0]), int(pixel[1]), int(pixel[2])
