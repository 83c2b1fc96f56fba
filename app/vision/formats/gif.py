"""GIF: the first picture, by Pillow."""

import io

from PIL import Image

from app.vision.formats import pillow
from app.vision.formats.limits import Limits
from app.vision.formats.orientation import Pixels

MAX_BLOCKS = 16_384  # of 255 bytes at most, before the picture

_EXTENSION, _PICTURE = 0x21, 0x2C


def read_size(data: bytes) -> tuple[int, int]:
    """Width and height of the screen. Raises IndexError where it is too short."""
    return data[6] | data[7] << 8, data[8] | data[9] << 8


def decode(data: bytes, limits: Limits) -> Pixels:
    """The pixels. Raises TooManyPixels from the header; else whatever Pillow raises where it is damaged."""
    limits.check_size(*read_size(data))
    _check_blocks(data)
    with Image.open(io.BytesIO(data), formats=["GIF"]) as image:
        pillow.check_size(image, limits, len(data), rotated=False)  # a picture larger than the screen makes it larger
        image.load()
        return pillow.read_pixels(image, 1)


def _check_blocks(data: bytes) -> None:
    """Raises ValueError where too many blocks stand before the picture, IndexError where there is none."""
    at, in_extension = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0), False
    for _ in range(MAX_BLOCKS):
        value = data[at]
        if in_extension:
            in_extension, at = value > 0, at + 1 + value
        elif value == _EXTENSION:
            in_extension, at = True, at + 2
        elif value == _PICTURE:
            return
        else:
            at += 1  # as Pillow does
    raise ValueError("too many blocks stand before its picture")
