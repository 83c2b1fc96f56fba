"""Masks as arrays: blots to try, and what COCO's run lengths stand for."""

import numpy as np
from pycocotools import mask as coco


def spots(seed: int, frame: tuple[int, int], share: float) -> np.ndarray:
    """Blots in several parts, with holes, at the frame's sides too."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((frame[0] // 8, frame[1] // 8)) < share
    return np.kron(coarse, np.ones((8, 8))).astype(np.uint8) ^ (rng.random(frame) < 0.01)


def decoded(counts: str, height: int, width: int) -> np.ndarray:
    """Return the mask by pycocotools."""
    return coco.decode({"counts": counts.encode(), "size": [height, width]})
