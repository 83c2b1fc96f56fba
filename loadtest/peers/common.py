"""Shared by all peers: the address, and the preprocessing of an image.

The `*_null` servers decode and letterbox the image, run no model and return five fixed boxes: they measure everything
except the engine. They use cv2 as its documentation shows, without Yolopard's optimizations.
"""

import os
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

cv2.setNumThreads(1)  # the servers have enough processes or threads

HOST, PORT = "127.0.0.1", int(os.environ.get("PORT", "8000"))
SIDE, GREY = 640, 114
BOX = {"name": "person", "class": 0, "confidence": 0.9, "box": {"x1": 1.0, "y1": 2.0, "x2": 3.0, "y2": 4.0}}
BOXES = [BOX] * 5


def workers(best: int) -> int:
    """Return WORKERS, by default `best`, the fastest number of processes on two cores."""
    return int(os.environ.get("WORKERS", best))


def decode(image: bytes) -> NDArray[np.uint8]:
    """Return the pixels, uint8 [H, W, 3] in BGR. Raises ValueError for an invalid image."""
    pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    if pixels is None:
        raise ValueError("this is no image")
    return pixels


def frame(image: bytes) -> NDArray[np.uint8]:
    """Return the image decoded and letterboxed to 640 by 640."""
    pixels = decode(image)
    height, width = pixels.shape[:2]
    scale = SIDE / max(height, width)
    pixels = cv2.resize(pixels, (round(width * scale), round(height * scale)))
    padded = np.full((SIDE, SIDE, 3), GREY, np.uint8)
    padded[: pixels.shape[0], : pixels.shape[1]] = pixels
    return padded


def answers(frames: list[NDArray[np.uint8]]) -> list[list[dict[str, Any]]]:
    """Return the fixed boxes for every frame, like an engine that takes no time."""
    return [BOXES for _ in frames]
