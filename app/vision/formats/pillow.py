"""Images that Pillow opens, to RGB with as little memory as goes."""

import logging
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.vision.formats.limits import Limits
from app.vision.formats.orientation import Pixels, turn_upright

STRIP = 1 << 19  # pixels that are converted at a time
RGB_BYTES = 3
STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2}  # for each pixel, by mode; 4 of the others

# Bad images are the client's news, not the log's; and the limit is ours.
logging.getLogger("PIL").setLevel(logging.CRITICAL)
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
Image.MAX_IMAGE_PIXELS = None


def check_size(image: Image.Image, limits: Limits, body: int, *, rotated: bool, extra: float = 0) -> None:
    """Of an image that is open but not loaded; `extra` bytes for each pixel are its decoder's. Raises TooManyPixels."""
    limits.check_size(*image.size)
    stored = STORED_BYTES.get(image.mode, 4)
    cost = max(stored + RGB_BYTES, 2 * RGB_BYTES if rotated else 0) + extra
    limits.check_memory(*image.size, body, cost)


def read_pixels(image: Image.Image, orientation: int) -> Pixels:
    """The upright pixels of a loaded image, whose memory is freed: 16 bits scaled to 8, palettes and grey to RGB,
    alpha dropped.
    """
    width, height = image.size
    image.info.clear()  # `convert` would look for the transparent colour in each strip
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, STRIP // width)
    for top in range(0, height, rows):
        pixels[top : top + rows] = _rgb(image.crop((0, top, width, min(top + rows, height))))
    image.close()
    image.im = None  # type: ignore[assignment]  # `close` keeps it, and turning takes memory of its own
    return turn_upright(pixels, orientation)


def _rgb(strip: Image.Image) -> Pixels:
    if strip.mode.startswith("I;16"):  # which `convert` would clip
        return (np.asarray(strip) >> 8).astype(np.uint8)[..., None]
    if strip.mode == "CMYK":
        return _cmyk_to_rgb(np.asarray(strip))
    return np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))


def _cmyk_to_rgb(cmyk: NDArray[np.uint8]) -> Pixels:
    """To the bit what OpenCV and TurboJPEG make of it."""
    ink = cmyk.astype(np.uint16)
    white = 255 - ink[..., 3:]
    return (white - (ink[..., :3] * white >> 8)).astype(np.uint8)
