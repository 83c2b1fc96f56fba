"""Bytes -> upright RGB pixels -> letterboxed frame, and boxes the way back.

The letterbox is Ultralytics' own (`ultralytics/data/augment.py`, LetterBox): as large as the frame allows, bilinear,
centred on 114 grey, each rounding as there; the way back is `ultralytics/utils/ops.py`, scale_boxes. That one guesses
the resized size from the frame, here it is known: of odd sizes some come back 0.2 % apart, and here to the right place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.vision import formats
from app.vision.formats import KINDS, Limits, Pixels, sniff
from app.vision.formats.limits import MAX_SIDE

__all__ = ["KINDS", "Pixels", "sniff"]

Boxes = NDArray[np.float32]  # [N, 4], x1 y1 x2 y2

GREY = 114
MAX_ASPECT_RATIO = 16
MAX_PIXELS_AT_ONCE = (
    8_000_000  # pixels; Pillow copies an image of several colours at 4 bytes a pixel, so larger ones go one by one
)
_METHOD = Image.Resampling.BILINEAR


@dataclass(frozen=True, slots=True)
class LetterboxTransform:
    """Where an image lies in its frame. `frame` and `image` are (height, width) in px; `top` and `left` are negative
    where the frame shows only the middle of the resized image.
    """

    image: tuple[int, int]
    frame: tuple[int, int]
    resized: tuple[int, int]
    top: int
    left: int


def decode(data: bytes, max_pixels: int, max_side: int = MAX_SIDE) -> Pixels:
    """The upright image: EXIF orientation applied, alpha dropped, 16 bit scaled to 8, first frame of several.

    Raises EmptyBody, UnsupportedImage, TooManyPixels (from the header, before any pixel), UndecodableImage or
    OutOfMemory.
    """
    return formats.decode(data, Limits(max_pixels, max_side))[0]


def decode_near(data: bytes, max_pixels: int, side: int, max_side: int = MAX_SIDE) -> tuple[Pixels, tuple[int, int]]:
    """As `decode`, but a JPEG comes at 1/2, 1/4 or 1/8 if its longer side is then still `side` px; libjpeg leaves out
    most of the work. Returns the height and width of the upright original too.
    """
    return formats.decode(data, Limits(max_pixels, max_side), side)


def place(
    height: int, width: int, imgsz: int, stride: int, shapes: Sequence[tuple[int, int]] | None
) -> LetterboxTransform:
    """Fit an image in a frame of at most imgsz x imgsz px.

    It becomes that of the shapes (height, width) in which the image is largest, and of equals the one of least area;
    without shapes the smallest multiples of `stride` around the image.
    """
    frame_h, frame_w = max(
        shapes or [(imgsz, imgsz)], key=lambda shape: (min(shape[0] / height, shape[1] / width), -shape[0] * shape[1])
    )
    gain = min(frame_h / height, frame_w / width)
    resized_h, resized_w = max(round(height * gain), 1), max(round(width * gain), 1)
    pad_h, pad_w = frame_h - resized_h, frame_w - resized_w
    if not shapes:
        pad_h, pad_w = pad_h % stride, pad_w % stride
    return LetterboxTransform(
        image=(height, width),
        frame=(resized_h + pad_h, resized_w + pad_w),
        resized=(resized_h, resized_w),
        top=round(pad_h / 2 - 0.1),
        left=round(pad_w / 2 - 0.1),
    )


def whole(frame: Pixels) -> LetterboxTransform:
    """That of an image which fills its frame."""
    size = frame.shape[:2]
    return LetterboxTransform(image=size, frame=size, resized=size, top=0, left=0)


def center_crop_transform(height: int, width: int, side: int) -> LetterboxTransform:
    """For classify: the shorter side of an image becomes `side`, and of the longer one the middle is seen.

    Rounded as torchvision's Resize and CenterCrop, which Ultralytics' classify_transforms are made of.
    """
    longer = int(side * max(height, width) / min(height, width))
    resized_h, resized_w = (side, longer) if height <= width else (longer, side)
    top, left = -round((resized_h - side) / 2), -round((resized_w - side) / 2)
    return LetterboxTransform((height, width), (side, side), (resized_h, resized_w), top, left)


@dataclass(frozen=True, slots=True)
class Preprocessor:
    """How a model wants its images."""

    imgsz: int  # longest side of a frame, px
    stride: int
    shapes: tuple[tuple[int, int], ...] | None  # height, width of the frames there are; None = the smallest rectangle
    fast: bool  # large JPEGs are shrunk by their decoder
    max_pixels: int
    middle: bool = False  # imgsz x imgsz px from the middle of the image: for classify, which is never `fast`
    max_side: int = MAX_SIDE

    def __call__(self, image: bytes | Pixels) -> tuple[LetterboxTransform, Pixels]:
        """The frame of an image, and where the image lies in it. The image is encoded, or uint8 [H, W, 3] RGB.

        Raises what `decode` raises.
        """
        if self.fast and isinstance(image, bytes):
            pixels, (height, width) = decode_near(image, self.max_pixels, self.imgsz, self.max_side)
        else:
            pixels = decode(image, self.max_pixels, self.max_side) if isinstance(image, bytes) else image
            height, width = pixels.shape[:2]
        if self.middle:
            transform = center_crop_transform(height, width, self.imgsz)
            return transform, crop(pixels, transform)
        transform = place(height, width, self.imgsz, self.stride, self.shapes)
        return transform, letterbox(pixels, transform)


def letterbox(image: Pixels, transform: LetterboxTransform) -> Pixels:
    """The frame, uint8 [H, W, 3]: the image resized into its place, grey around it."""
    frame = np.empty((*transform.frame, 3), np.uint8)
    (height, width), top, left = transform.resized, transform.top, transform.left
    frame[:top], frame[top + height :], frame[:, :left], frame[:, left + width :] = (GREY,) * 4
    target = frame[top : top + height, left : left + width]
    if image.shape[:2] == transform.resized:
        target[:] = image
    else:
        cv2.resize(image, (width, height), dst=target, interpolation=cv2.INTER_LINEAR)
    return frame


def crop(image: Pixels, transform: LetterboxTransform) -> Pixels:
    """The frame, uint8 [side, side, 3], of a `place_middle`, to the bit what torchvision makes of a Pillow image; of an
    image longer than LONG squares only the middle is resized, which differs by one level here and there.
    """
    (height, width), (resized_h, resized_w) = transform.image, transform.resized
    left, top, side = -transform.left, -transform.top, transform.frame[0]
    if max(transform.resized) <= MAX_ASPECT_RATIO * side:
        part = (slice(top, top + side), slice(left, left + side))
        if height * width <= MAX_PIXELS_AT_ONCE:
            return _resize(image, resized_w, resized_h)[part]
        return np.dstack([_resize(np.ascontiguousarray(image[..., i]), resized_w, resized_h)[part] for i in range(3)])
    x, y = width / resized_w, height / resized_h
    begin_x, begin_y = max(int((left - 2) * x), 0), max(int((top - 2) * y), 0)
    near = image[begin_y : math.ceil((top + side + 2) * y), begin_x : math.ceil((left + side + 2) * x)]
    box = (left * x, top * y, min((left + side) * x, width), min((top + side) * y, height))
    moved = (box[0] - begin_x, box[1] - begin_y, box[2] - begin_x, box[3] - begin_y)
    return np.asarray(Image.fromarray(near).resize((side, side), _METHOD, moved))


def _resize(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize((width, height), _METHOD))


def to_image(boxes: Boxes, transform: LetterboxTransform) -> Boxes:
    """Frame px -> px of the original image, clipped to it. Each side is undone with its own gain."""
    return points_to_image(boxes.reshape(-1, 2), transform).reshape(-1, 4)


def points_to_image(points: NDArray[np.float32], transform: LetterboxTransform) -> NDArray[np.float32]:
    """As `to_image`, of points [..., 2 or more] whose first two values are x y."""
    moved = points.copy()
    moved[..., :2] = (points[..., :2] - _offset(transform)) / _gains(transform)
    height, width = transform.image
    moved[..., :2] = np.clip(moved[..., :2], 0, np.array([width, height], np.float32))
    return moved


def rotated_to_image(boxes: NDArray[np.float32], transform: LetterboxTransform) -> NDArray[np.float32]:
    """As `to_image`, of boxes [N, 5] cx cy w h angle, which are not clipped."""
    centre = (boxes[:, :2] - _offset(transform)) / _gains(transform)
    return np.concatenate([centre, boxes[:, 2:4] / _gains(transform), boxes[:, 4:]], 1)


def _offset(transform: LetterboxTransform) -> NDArray[np.float32]:
    return np.array([transform.left, transform.top], np.float32)


def _gains(transform: LetterboxTransform) -> NDArray[np.float32]:
    (height, width), (resized_h, resized_w) = transform.image, transform.resized
    return np.array([resized_w / width, resized_h / height], np.float32)
