"""Masks as arrays: random masks, and the masks of COCO's run lengths."""

import numpy as np
from pycocotools import mask as coco


def spots(seed: int, frame: tuple[int, int], share: float) -> np.ndarray:
    """Return a mask with several parts and holes, which touches the sides of the frame, uint8 [H, W]."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((frame[0] // 8, frame[1] // 8)) < share
    return np.kron(coarse, np.ones((8, 8))).astype(np.uint8) ^ (rng.random(frame) < 0.01)


def decoded(counts: str, height: int, width: int) -> np.ndarray:
    """Return the mask that pycocotools decodes, uint8 [H, W]."""
    return coco.decode({"counts": counts.encode(), "size": [height, width]})
