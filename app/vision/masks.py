"""Computes masks of a frame from prototypes and coefficients; converts them to polygons or run lengths in the image.

Follows process_mask with upsample, masks2segments and scale_masks of `ultralytics/utils/ops.py`, but computes each mask
only inside its box.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

import cv2
import numpy as np
from numpy.typing import NDArray

from app.vision import rle
from app.vision.preprocess import Boxes, LetterboxTransform, points_to_image

Points = NDArray[np.float32]  # [P, 2], x y


@dataclass(frozen=True, slots=True)
class Mask:
    """The pixels of one object: uint8 [h, w] of 0 and 1, with its corner at `left`, `top` of the frame."""

    pixels: NDArray[np.uint8]
    left: int
    top: int


def cut(protos: NDArray[np.float32], coefficients: NDArray[np.float32], boxes: Boxes) -> list[Mask]:
    """Return one mask, which may be empty, for each of N boxes in frame px.

    `protos` [E, h, w] has a quarter of the frame's height and width; `coefficients` is [N, E].
    """
    return [_cut(protos, *each) for each in zip(coefficients, boxes.tolist(), strict=True)]


def _cut(protos: NDArray[np.float32], coefficients: NDArray[np.float32], box: Sequence[float]) -> Mask:
    height, width = 4 * protos.shape[1], 4 * protos.shape[2]
    left, right = (min(max(ceil(x), 0), width) for x in box[::2])
    top, bottom = (min(max(ceil(y), 0), height) for y in box[1::2])
    if left >= right or top >= bottom:
        return Mask(np.zeros((0, 0), np.uint8), 0, 0)
    # One more prototype pixel on each side: the edge of the mask is interpolated between the two.
    first_x, first_y = max(floor(left / 4) - 1, 0), max(floor(top / 4) - 1, 0)
    part = protos[:, first_y : bottom // 4 + 2, first_x : right // 4 + 2]
    coarse = (coefficients @ part.reshape(len(part), -1)).reshape(part.shape[1:])
    logits = np.asarray(cv2.resize(coarse, None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR))
    inside = logits[top - 4 * first_y : bottom - 4 * first_y, left - 4 * first_x : right - 4 * first_x]
    return Mask((inside > 0).astype(np.uint8), left, top)


def iou(a: Mask, b: Mask) -> float:
    """Return the intersection over union of two masks of one frame."""
    left, top = max(a.left, b.left), max(a.top, b.top)
    parts = [mask.pixels[top - mask.top :, left - mask.left :] for mask in (a, b)]
    height, width = (min(part.shape[side] for part in parts) for side in (0, 1))
    shared = np.count_nonzero(parts[0][:height, :width] & parts[1][:height, :width])
    return shared / (np.count_nonzero(a.pixels) + np.count_nonzero(b.pixels) - shared)


def to_frame(mask: Mask, transform: LetterboxTransform) -> Mask:
    """Convert a mask in image px to a mask in frame px."""
    image = np.zeros(transform.image, np.uint8)
    image[mask.top : mask.top + mask.pixels.shape[0], mask.left : mask.left + mask.pixels.shape[1]] = 255 * mask.pixels
    resized = cv2.resize(image, transform.resized[::-1], interpolation=cv2.INTER_LINEAR)
    return Mask((resized > 127).astype(np.uint8), transform.left, transform.top)


def polygon(mask: Mask, transform: LetterboxTransform) -> Points:
    """Return the outline in image px. Outlines of several parts are joined to one; holes are lost."""
    found, _ = cv2.findContours(mask.pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(mask.left, mask.top))
    parts = [np.asarray(contour, np.int32).reshape(-1, 2) for contour in found]
    return points_to_image(_joined(parts).astype(np.float32), transform)


def _joined(parts: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    """Join the parts to one closed line, which crosses from each part to the next where they are closest.

    Gives the same points as merge_multi_segment of `ultralytics/data/converter.py`.
    """
    if len(parts) == 1:
        return parts[0]
    bridges: list[list[int]] = [[] for _ in parts]
    for i in range(1, len(parts)):
        distances = ((parts[i - 1][:, None] - parts[i][None]) ** 2).sum(-1)
        start, end = np.unravel_index(distances.argmin(), distances.shape)
        bridges[i - 1].append(int(start))
        bridges[i].append(int(end))
    forward, backward = [], []
    for i, (part, ends) in enumerate(zip(parts, bridges, strict=True)):
        first, last = ends[0], ends[-1]
        if len(ends) == 2 and first > last:
            part, first, last = part[::-1], len(part) - 1 - first, len(part) - 1 - last  # noqa: PLW2901
        ring = np.roll(part, -first, axis=0)
        ring = np.concatenate([ring, ring[:1]])
        if i in (0, len(parts) - 1):
            forward.append(ring)
        else:
            forward.append(ring[: last - first + 1])
            backward.append(ring[last - first :])
    return np.concatenate([*forward, *backward[::-1]])


def run_lengths(mask: Mask, transform: LetterboxTransform) -> str:
    """Return the mask of the whole image as the compressed text of COCO's run lengths (app/vision/rle.py)."""
    height, width = transform.image
    frame = np.zeros(transform.frame, np.float32)
    frame[mask.top : mask.top + mask.pixels.shape[0], mask.left : mask.left + mask.pixels.shape[1]] = mask.pixels
    (resized_h, resized_w), top, left = transform.resized, transform.top, transform.left
    content = frame[top : top + resized_h, left : left + resized_w]
    inside = cv2.resize(content, (width, height), interpolation=cv2.INTER_LINEAR) >= 0.5
    columns = np.flatnonzero(inside.any(0))
    first, last = (columns[0], columns[-1] + 1) if len(columns) else (0, 0)
    changes = np.flatnonzero(np.diff(inside[:, first:last].T.ravel().astype(np.int8), prepend=0, append=0))
    counts = np.diff(changes + first * height, prepend=0, append=height * width)
    return rle.compress(counts[:-1] if counts[-1] == 0 else counts)
