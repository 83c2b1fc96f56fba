"""BMP, by OpenCV: Pillow unpacks the packed ones in Python."""

import struct

from app.vision.formats.limits import Limits
from app.vision.formats.opencv import BYTES_PER_PIXEL
from app.vision.formats.opencv import decode as decode_by_opencv
from app.vision.formats.orientation import Pixels

_CORE, _INFO = 12, 36  # bytes of the oldest header, and of the shortest later one that OpenCV reads


def read_size(data: bytes) -> tuple[int, int]:
    """Width and height, of which the height is negative where the first row is the top one in the file. Raises
    ValueError or struct.error where it has no header that is known.
    """
    (header,) = struct.unpack_from("<I", data, 14)
    if header == _CORE:
        width, height = struct.unpack_from("<HH", data, 18)
    elif header >= _INFO:
        width, height = struct.unpack_from("<ii", data, 18)
    else:
        raise ValueError("its header is of no known size")
    return width, abs(height)


def decode(data: bytes, limits: Limits) -> Pixels:
    """The pixels. Raises TooManyPixels from the header; ValueError where it is damaged."""
    width, height = read_size(data)
    if width <= 0 or height <= 0:
        raise ValueError("it has no pixels")
    limits.check_size(width, height)
    limits.check_memory(width, height, len(data), BYTES_PER_PIXEL)
    return decode_by_opencv(data, width, height)
