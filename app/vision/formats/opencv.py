"""OpenCV's decoders, for formats whose header has the size at a fixed place."""

import cv2
import numpy as np

from app.vision.formats.orientation import Pixels

BYTES_PER_PIXEL = 6  # OpenCV copies the decoded pixels

# Each image is decoded in one thread. Errors of bad images go to the client, not to the log.
cv2.setNumThreads(1)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decode(data: bytes, width: int, height: int) -> Pixels:
    """Return the pixels without rotation. Raises ValueError if it cannot decode, or the size is not width x height."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None or pixels.shape[:2] != (height, width):
        raise ValueError("OpenCV gives no pixels, or another size than the header")
    return np.asarray(pixels, np.uint8)
