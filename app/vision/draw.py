"""Draws detections on an image, and encodes it."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from app.vision.masks import Points
from app.vision.matching import VISIBLE
from app.vision.postprocess import Detections, corners
from app.vision.preprocess import Pixels

_COVER = 0.4  # of a mask's colour over the picture
_ROWS = 256  # whose colours are swapped at a time
_GOLDEN_ANGLE = 137.508  # degrees; neighbours in class id get hues far apart


def draw(canvas: Pixels, detections: Detections, names: Mapping[int, str], outlines: Sequence[Points] = ()) -> Pixels:
    """The detections drawn on the image itself, which may be too large for a copy, the best on top; `outlines` are the
    masks', in image px. Returns the image.
    """
    size = max(canvas.shape[:2])
    thickness, scale = max(1, round(size / 400)), max(0.4, size / 1600)
    for i in reversed(range(len(detections))):
        colour = _colour(int(detections.classes[i]))
        corner = (0, round((i + 1) * 40 * scale))  # of a class: one label below the other
        if outlines:
            _cover(canvas, outlines[i], colour)
        if detections.boxes.shape[1]:
            corner = _outline(canvas, detections.boxes[i], colour, thickness)
        if detections.keypoints is not None:
            _dot(canvas, detections.keypoints[i], colour, 2 * thickness)
        _label(canvas, f"{names[int(detections.classes[i])]} {detections.scores[i]:.2f}", corner, colour, scale)
    return canvas


def _outline(canvas: Pixels, box: NDArray[np.float32], colour: tuple[int, int, int], thickness: int) -> tuple[int, int]:
    """The box, turned or not; its first corner, where the label goes."""
    if len(box) == 5:
        points = np.round(corners(box[None])[0]).astype(np.int32)
        cv2.polylines(canvas, [points], True, colour, thickness, cv2.LINE_AA)
        x, y = points[points[:, 1].argmin()].tolist()
        return x, y
    x1, y1, x2, y2 = (round(float(v)) for v in box)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, thickness, cv2.LINE_AA)
    return x1, y1


def _cover(canvas: Pixels, outline: Points, colour: tuple[int, int, int]) -> None:
    """Only the part of the picture that the mask is in is worked on."""
    x, y, width, height = cv2.boundingRect(outline)
    part = canvas[y : y + height, x : x + width]
    covered = part.copy()
    cv2.fillPoly(covered, [np.round(outline - (x, y)).astype(np.int32)], colour)
    part[:] = cv2.addWeighted(covered, _COVER, part, 1 - _COVER, 0)


def _dot(canvas: Pixels, keypoints: NDArray[np.float32], colour: tuple[int, int, int], radius: int) -> None:
    for x, y, *visible in keypoints.tolist():
        if not visible or visible[0] >= VISIBLE:
            cv2.circle(canvas, (round(x), round(y)), radius, colour, cv2.FILLED, cv2.LINE_AA)


def encode(image: Pixels, kind: str) -> bytes:
    """`kind` is "jpeg" or "png". The image's own memory is used for it."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 90] if kind == "jpeg" else []
    for top in range(0, image.shape[0], _ROWS):
        rows = image[top : top + _ROWS]
        cv2.cvtColor(rows, cv2.COLOR_RGB2BGR, dst=rows)  # which copies them
    return cv2.imencode(f".{kind}", image, options)[1].tobytes()


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
