"""Converts images that Pillow opens to RGB, with little memory."""

import logging
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.vision.formats.limits import Limits
from app.vision.formats.orientation import Pixels, turn_upright

STRIP_PIXELS = 1 << 19  # pixels that are converted at a time
RGB_BYTES = 3
STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2}  # per pixel, by mode; 4 for other modes

# Errors of bad images go to the client, not to the log. `Limits` replaces Pillow's own limit.
logging.getLogger("PIL").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
Image.MAX_IMAGE_PIXELS = None


def check_size(image: Image.Image, limits: Limits, body: int, *, rotated: bool, extra: float = 0) -> None:
    """Raise TooManyPixels if the limits do not allow an image, which is open but not loaded.

    `extra` is the memory of its decoder, in bytes per pixel.
    """
    limits.check_size(*image.size)
    stored = STORED_BYTES.get(image.mode, 4)
    cost = max(stored + RGB_BYTES, 2 * RGB_BYTES if rotated else 0) + extra
    limits.check_memory(*image.size, body, cost)


def read_pixels(image: Image.Image, orientation: int) -> Pixels:
    """Return the upright pixels of a loaded image, and free its memory: 16 bits scaled to 8, palettes and grey
    converted to RGB, alpha dropped.
    """
    width, height = image.size
    image.info.clear()  # `convert` would look for the transparent colour in each strip
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        pixels[top : top + rows] = _rgb(image.crop((0, top, width, min(top + rows, height))))
    image.close()
    image.im = None  # type: ignore[assignment]  # `close` does not free it, and rotation needs memory too
    return turn_upright(pixels, orientation)


def _rgb(strip: Image.Image) -> Pixels:
    if strip.mode.startswith("I;16"):  # `convert` would clip these
        return (np.asarray(strip) >> 8).astype(np.uint8)[..., None]
    if strip.mode == "CMYK":
        return _cmyk_to_rgb(np.asarray(strip))
    return np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))


def _cmyk_to_rgb(cmyk: NDArray[np.uint8]) -> Pixels:
    """Convert CMYK to RGB, bit for bit as OpenCV and TurboJPEG."""
    ink = cmyk.astype(np.uint16)
    white = 255 - ink[..., 3:]
    return (white - (ink[..., :3] * white >> 8)).astype(np.uint8)
