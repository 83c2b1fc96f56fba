"""WebP: the bits of the first picture, taken out of the file, by OpenCV."""

import struct
from dataclasses import dataclass

import numpy as np

from app.vision.formats import opencv
from app.vision.formats.limits import Limits
from app.vision.formats.orientation import Pixels, read_orientation, turn_upright

MAX_CHUNKS = 20_000
_EXTENDED, _LOSSY, _LOSSLESS, _FRAME, _EXIF = b"VP8X", b"VP8 ", b"VP8L", b"ANMF", b"EXIF"
_FRAME_HEAD = 16  # bytes before the chunks of an animation's picture


@dataclass(slots=True)
class Frame:
    """The bits of a picture, where it lies on the canvas, and the canvas, all in px."""

    kind: bytes
    bits: bytes
    canvas: tuple[int, int]  # width, height
    left: int = 0
    top: int = 0
    exif: bytes = b""


def read_size(data: bytes) -> tuple[int, int]:
    """Width and height of the canvas. Raises ValueError or IndexError where it does not begin with them."""
    kind = data[12:16]
    if kind == _EXTENDED:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    return _bits_size(kind, data[20:30])


def decode(data: bytes, limits: Limits) -> Pixels:
    """The upright pixels. Raises TooManyPixels from the header; ValueError, IndexError or struct.error where it is
    damaged.
    """
    picture = _first_picture(data)
    width, height = _bits_size(picture.kind, picture.bits)
    orientation = read_orientation(picture.exif)
    for size in (picture.canvas, (width, height)):
        limits.check_size(*size)
        limits.check_memory(*size, len(data), opencv.BYTES_PER_PIXEL + 3 * (orientation > 1))
    pixels = opencv.decode(_still(picture), width, height)
    if (width, height) != picture.canvas:
        pixels = _on_canvas(pixels, picture)
    return turn_upright(pixels, orientation)


def _bits_size(kind: bytes, bits: bytes) -> tuple[int, int]:
    """Width and height by the header of the bits themselves."""
    if kind == _LOSSY and bits[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", bits, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == _LOSSLESS and bits[:1] == b"\x2f":
        (packed,) = struct.unpack_from("<I", bits, 1)
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    raise ValueError("it has no picture")


def _first_picture(data: bytes) -> Frame:
    """Raises ValueError where there is none, or one that does not fit its canvas."""
    picture, exif, at = None, b"", 12
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            break
        kind, length = struct.unpack_from("<4sI", data, at)
        if picture is None and kind in (_LOSSY, _LOSSLESS):
            picture = Frame(kind, _body(data, at + 8, length), read_size(data))
        elif picture is None and kind == _FRAME:
            picture = _frame(data, at + 8, length)
        elif kind == _EXIF:
            exif = data[at + 8 : at + 8 + length]
            break
        at += 8 + length + (length & 1)
    else:
        raise ValueError(f"it has more than {MAX_CHUNKS} chunks")
    if picture is None:
        raise ValueError("it has no picture")
    picture.exif = exif
    return picture


def _frame(data: bytes, start: int, length: int) -> Frame:
    """Of the picture of an animation."""
    left, top = (2 * int.from_bytes(data[start + i : start + i + 3], "little") for i in (0, 3))
    at, end = start + _FRAME_HEAD, start + length
    for _ in range(MAX_CHUNKS):
        kind, size = struct.unpack_from("<4sI", data, at)
        if kind in (_LOSSY, _LOSSLESS):
            return Frame(kind, _body(data, at + 8, size), read_size(data), left, top)
        at += 8 + size + (size & 1)
        if at >= end:
            break
    raise ValueError("the first frame has no picture")


def _body(data: bytes, start: int, length: int) -> bytes:
    if start + length > len(data):
        raise ValueError("it is cut short")
    return data[start : start + length]


def _still(picture: Frame) -> bytes:
    """A file of nothing but these bits: no alpha, which is dropped anyhow, and no second frame."""
    padded = picture.bits + b"\0" * (len(picture.bits) & 1)
    return struct.pack("<4sI4s4sI", b"RIFF", len(padded) + 12, b"WEBP", picture.kind, len(picture.bits)) + padded


def _on_canvas(pixels: Pixels, picture: Frame) -> Pixels:
    (height, width), (canvas_w, canvas_h) = pixels.shape[:2], picture.canvas
    if picture.left + width > canvas_w or picture.top + height > canvas_h:
        raise ValueError("its picture is larger than its canvas")
    canvas = np.zeros((canvas_h, canvas_w, 3), np.uint8)
    canvas[picture.top : picture.top + height, picture.left : picture.left + width] = pixels
    return canvas
