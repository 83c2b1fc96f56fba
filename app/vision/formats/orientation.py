"""The orientation that EXIF gives an image, and the image turned upright."""

import struct
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # [H, W, 3], RGB

_TAG, _SHORT, _LONG = 0x0112, 3, 4
_MAX_ENTRIES = 1000
_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}


def read_orientation(exif: bytes) -> int:
    """1 to 8, of the bytes of an EXIF block; 1 where it has none, or one that EXIF does not know."""
    tiff = exif.removeprefix(b"Exif\0\0")
    order = _BYTE_ORDERS.get(tiff[:4])
    if order is None:
        return 1
    try:
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, at)
        for entry in range(at + 2, at + 2 + 12 * min(entries, _MAX_ENTRIES), 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
            if tag == _TAG:
                layout = {_SHORT: "H", _LONG: "I"}.get(kind, "x")
                value = struct.unpack_from(f"{order}{layout}", tiff, entry + 8)
                return value[0] if value and 1 <= value[0] <= 8 else 1
    except struct.error:  # it ends too early
        pass
    return 1


def swaps_sides(orientation: int) -> bool:
    """Whether turning makes the width the height."""
    return orientation >= 5


def turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    """The image as it is to be seen, of one that is stored with this orientation."""
    turn = _TURNS.get(orientation)
    return pixels if turn is None else np.asarray(turn(pixels), np.uint8)


_TURNS: dict[int, Callable[[Pixels], cv2.typing.MatLike]] = {
    2: lambda pixels: cv2.flip(pixels, 1),
    3: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_180),
    4: lambda pixels: cv2.flip(pixels, 0),
    5: cv2.transpose,
    6: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.flip(cv2.transpose(pixels), -1),
    8: lambda pixels: cv2.rotate(pixels, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
