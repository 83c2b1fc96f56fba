"""OpenCV's decoders, for kinds whose size is read from a fixed place before."""

import cv2
import numpy as np

from app.vision.formats.orientation import Pixels

BYTES_PER_PIXEL = 6  # they copy what they have decoded

# One image is one thread's work here, and bad images are the client's news, not the log's.
cv2.setNumThreads(1)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decode(data: bytes, width: int, height: int) -> Pixels:
    """The pixels as they are stored. Raises ValueError where it cannot, or finds another size than is said."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None or pixels.shape[:2] != (height, width):
        raise ValueError("OpenCV gives no pixels, or others than the header says")
    return np.asarray(pixels, np.uint8)
