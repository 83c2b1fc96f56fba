"""Draws detections on an image, and encodes the image."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from app.vision.masks import Points
from app.vision.matching import MIN_VISIBILITY
from app.vision.postprocess import Detections, corners
from app.vision.preprocess import Pixels

_MASK_OPACITY = 0.4
_ROWS_AT_ONCE = 256  # rows whose colours are swapped at a time
_GOLDEN_ANGLE = 137.508  # degrees; gives neighbouring class ids very different hues


def draw(canvas: Pixels, detections: Detections, names: Mapping[int, str], outlines: Sequence[Points] = ()) -> Pixels:
    """Draw detections and the `outlines` of their masks, in px, on the image itself, best on top. Returns it."""
    size = max(canvas.shape[:2])
    thickness, scale = max(1, round(size / 400)), max(0.4, size / 1600)
    for i in reversed(range(len(detections))):
        colour = _colour(int(detections.classes[i]))
        corner = (0, round((i + 1) * 40 * scale))  # for classify: one label below the other
        if outlines:
            _cover(canvas, outlines[i], colour)
        if detections.boxes.shape[1]:
            corner = _outline(canvas, detections.boxes[i], colour, thickness)
        if detections.keypoints is not None:
            _dot(canvas, detections.keypoints[i], colour, 2 * thickness)
        _label(canvas, f"{names[int(detections.classes[i])]} {detections.scores[i]:.2f}", corner, colour, scale)
    return canvas


def _outline(canvas: Pixels, box: NDArray[np.float32], colour: tuple[int, int, int], thickness: int) -> tuple[int, int]:
    """Draw the box, rotated or not. Returns the corner for the label."""
    if len(box) == 5:
        points = np.round(corners(box[None])[0]).astype(np.int32)
        cv2.polylines(canvas, [points], True, colour, thickness, cv2.LINE_AA)
        x, y = points[points[:, 1].argmin()].tolist()
        return x, y
    x1, y1, x2, y2 = (round(float(v)) for v in box)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, thickness, cv2.LINE_AA)
    return x1, y1


def _cover(canvas: Pixels, outline: Points, colour: tuple[int, int, int]) -> None:
    """Colour the mask. Works only on the part of the image that contains it."""
    x, y, width, height = cv2.boundingRect(outline)
    part = canvas[y : y + height, x : x + width]
    covered = part.copy()
    cv2.fillPoly(covered, [np.round(outline - (x, y)).astype(np.int32)], colour)
    part[:] = cv2.addWeighted(covered, _MASK_OPACITY, part, 1 - _MASK_OPACITY, 0)


def _dot(canvas: Pixels, keypoints: NDArray[np.float32], colour: tuple[int, int, int], radius: int) -> None:
    for x, y, *visible in keypoints.tolist():
        if not visible or visible[0] >= MIN_VISIBILITY:
            cv2.circle(canvas, (round(x), round(y)), radius, colour, cv2.FILLED, cv2.LINE_AA)


def encode(image: Pixels, kind: str) -> bytes:
    """Return the image as "jpeg" or "png", whichever `kind` is. Overwrites the pixels of the image."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 90] if kind == "jpeg" else []
    for top in range(0, image.shape[0], _ROWS_AT_ONCE):
        rows = image[top : top + _ROWS_AT_ONCE]
        cv2.cvtColor(rows, cv2.COLOR_RGB2BGR, dst=rows)  # copies these rows
    return cv2.imencode(f".{kind}", image, options)[1].tobytes()


def _label(canvas: Pixels, text: str, corner: tuple[int, int], colour: tuple[int, int, int], scale: float) -> None:
    """Write the label above the corner of the box, or inside the box if there is no space above."""
    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    x = max(0, min(corner[0], canvas.shape[1] - width))
    bottom = corner[1] if corner[1] >= height + below else corner[1] + height + below
    cv2.rectangle(canvas, (x, bottom - height - below), (x + width, bottom), colour, cv2.FILLED)
    text_colour = (0, 0, 0) if sum(colour) > 380 else (255, 255, 255)
    cv2.putText(canvas, text, (x, bottom - below), cv2.FONT_HERSHEY_SIMPLEX, scale, text_colour, 1, cv2.LINE_AA)


def _colour(class_id: int) -> tuple[int, int, int]:
    hue = class_id * _GOLDEN_ANGLE % 360 / 2
    pixel = cv2.cvtColor(np.array([[[hue, 200, 255]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0]
    return int(pixel[0]), int(pixel[1]), int(pixel[2])
