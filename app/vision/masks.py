"""Prototypes and coefficients -> the masks of a frame -> polygons or run lengths in the image.

As `ultralytics/utils/ops.py` has it: process_mask with upsample, masks2segments and scale_masks; but each mask is
computed within its box alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor

import cv2
import numpy as np
from numpy.typing import NDArray

from app.vision.preprocess import Boxes, LetterboxTransform, points_to_image

Points = NDArray[np.float32]  # [P, 2], x y


@dataclass(frozen=True, slots=True)
class Mask:
    """What of a frame is an object: 1 in uint8 [h, w], from `left`, `top` of the frame on. Around it is 0."""

    pixels: NDArray[np.uint8]
    left: int
    top: int


def cut(protos: NDArray[np.float32], coefficients: NDArray[np.float32], boxes: Boxes) -> list[Mask]:
    """A mask, maybe an empty one, for each of N boxes in frame px.

    `protos` [E, h, w] is a quarter of the frame's height and width, `coefficients` [N, E].
    """
    return [_cut(protos, *each) for each in zip(coefficients, boxes.tolist(), strict=True)]


def _cut(protos: NDArray[np.float32], coefficients: NDArray[np.float32], box: Sequence[float]) -> Mask:
    height, width = 4 * protos.shape[1], 4 * protos.shape[2]
    left, right = (min(max(ceil(x), 0), width) for x in box[::2])
    top, bottom = (min(max(ceil(y), 0), height) for y in box[1::2])
    if left >= right or top >= bottom:
        return Mask(np.zeros((0, 0), np.uint8), 0, 0)
    # One prototype pixel more on each side, between which the mask's edge is interpolated.
    first_x, first_y = max(floor(left / 4) - 1, 0), max(floor(top / 4) - 1, 0)
    part = protos[:, first_y : bottom // 4 + 2, first_x : right // 4 + 2]
    coarse = (coefficients @ part.reshape(len(part), -1)).reshape(part.shape[1:])
    logits = np.asarray(cv2.resize(coarse, None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR))
    inside = logits[top - 4 * first_y : bottom - 4 * first_y, left - 4 * first_x : right - 4 * first_x]
    return Mask((inside > 0).astype(np.uint8), left, top)


def iou(a: Mask, b: Mask) -> float:
    """Intersection over union of two masks of one frame."""
    left, top = max(a.left, b.left), max(a.top, b.top)
    parts = [mask.pixels[top - mask.top :, left - mask.left :] for mask in (a, b)]
    height, width = (min(part.shape[side] for part in parts) for side in (0, 1))
    shared = np.count_nonzero(parts[0][:height, :width] & parts[1][:height, :width])
    return shared / (np.count_nonzero(a.pixels) + np.count_nonzero(b.pixels) - shared)


def to_frame(mask: Mask, transform: LetterboxTransform) -> Mask:
    """A mask of the whole image, in its px -> as it is in the frame."""
    image = np.zeros(transform.image, np.uint8)
    image[mask.top : mask.top + mask.pixels.shape[0], mask.left : mask.left + mask.pixels.shape[1]] = 255 * mask.pixels
    resized = cv2.resize(image, transform.resized[::-1], interpolation=cv2.INTER_LINEAR)
    return Mask((resized > 127).astype(np.uint8), transform.left, transform.top)


def polygon(mask: Mask, transform: LetterboxTransform) -> Points:
    """The outline in image px; the outlines of several parts are joined to one, holes are lost."""
    found, _ = cv2.findContours(mask.pixels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(mask.left, mask.top))
    parts = [np.asarray(contour, np.int32).reshape(-1, 2) for contour in found]
    return points_to_image(_joined(parts).astype(np.float32), transform)


def _joined(parts: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    """One line there and back through all parts, from each to the next where they are closest.

    Point for point as `ultralytics/data/converter.py`, merge_multi_segment.
    """
    if len(parts) == 1:
        return parts[0]
    bridges: list[list[int]] = [[] for _ in parts]
    for i in range(1, len(parts)):
        apart = ((parts[i - 1][:, None] - parts[i][None]) ** 2).sum(-1)
        here, there = np.unravel_index(apart.argmin(), apart.shape)
        bridges[i - 1].append(int(here))
        bridges[i].append(int(there))
    there_line, back_line = [], []
    for i, (part, ends) in enumerate(zip(parts, bridges, strict=True)):
        first, last = ends[0], ends[-1]
        if len(ends) == 2 and first > last:
            part, first, last = part[::-1], len(part) - 1 - first, len(part) - 1 - last  # noqa: PLW2901
        ring = np.roll(part, -first, axis=0)
        ring = np.concatenate([ring, ring[:1]])
        if i in (0, len(parts) - 1):
            there_line.append(ring)
        else:
            there_line.append(ring[: last - first + 1])
            back_line.append(ring[last - first :])
    return np.concatenate([*there_line, *back_line[::-1]])


def run_lengths(mask: Mask, transform: LetterboxTransform) -> str:
    """The mask over the whole image, as COCO's compressed counts: runs of 0 and 1 in turn, column by column."""
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
    return _compressed(counts[:-1] if counts[-1] == 0 else counts)


def _compressed(counts: NDArray[np.int64]) -> str:
    """From the fourth on, the difference to the last but one; each in groups of five bits, the lowest first."""
    deltas = counts.copy()
    deltas[3:] -= counts[1:-2]
    groups = deltas[:, None] >> np.arange(0, 35, 5)
    more = (groups < -16) | (groups > 15)
    written = np.concatenate([np.ones((len(deltas), 1), bool), more[:, :-1]], 1)
    return str(((groups & 31 | more << 5) + 48)[written].astype(np.uint8).tobytes(), "ascii")
