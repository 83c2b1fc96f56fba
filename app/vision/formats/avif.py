"""AVIF, by Pillow's libavif; which turns, mirrors and EXIF say how it is turned, Pillow makes one orientation of."""

import io

import numpy as np
from PIL import AvifImagePlugin, Image

from app.vision.formats.limits import Limits
from app.vision.formats.orientation import Pixels, read_orientation, turn_upright

BYTES_PER_PIXEL = 12  # YUV of up to 16 bits, RGB or RGBA, and a copy of that


def decode(data: bytes, limits: Limits) -> Pixels:
    """The upright pixels. Raises TooManyPixels from the header; else whatever Pillow raises where it is damaged."""
    with Image.open(io.BytesIO(data), formats=["AVIF"]) as image:
        assert isinstance(image, AvifImagePlugin.AvifImageFile)
        width, height = image.size
        orientation = read_orientation(image.info.get("exif", b""))
        limits.check_size(width, height)
        limits.check_memory(width, height, len(data), BYTES_PER_PIXEL)
        # `load` would copy these bytes into an image of 4 bytes a pixel.
        stored = image._decoder.get_frame(0)[0]  # noqa: SLF001
        pixels = np.empty((height, width, 3), np.uint8)
        pixels[:] = np.frombuffer(stored, np.uint8).reshape(height, width, -1)[..., :3]  # one colour is all three
    return turn_upright(pixels, orientation)
