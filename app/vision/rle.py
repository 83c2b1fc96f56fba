"""COCO's run lengths of a mask: the lengths of alternating runs of 0 and 1, column by column, also as compressed text.

Same as rleToString, rleFrString and rleDecode of pycocotools:
https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.c
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def compress(counts: NDArray[np.int64]) -> str:
    """Return run lengths as text: from the fourth on as difference to the last but one; 5-bit groups, lowest first."""
    deltas = counts.copy()
    deltas[3:] -= counts[1:-2]
    groups = deltas[:, None] >> np.arange(0, 35, 5)
    more = (groups < -16) | (groups > 15)
    written = np.concatenate([np.ones((len(deltas), 1), bool), more[:, :-1]], 1)
    return str(((groups & 31 | more << 5) + 48)[written].astype(np.uint8).tobytes(), "ascii")


def decompress(text: str) -> list[int]:
    """Return the run lengths of a compressed text."""
    counts, value, shift = list[int](), 0, 0
    for group in (ord(letter) - 48 for letter in text):
        value |= (group & 31) << shift
        shift += 5
        if not group & 32:
            sign = -1 << shift if group & 16 else 0
            counts.append((value | sign) + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts


def decode(counts: Sequence[int], height: int, width: int) -> NDArray[np.uint8]:
    """Return the mask, uint8 [height, width] of 0 and 1. Raises ValueError if the run lengths are not of that size."""
    pixels = np.repeat(np.arange(len(counts), dtype=np.uint8) % 2, counts)
    return np.ascontiguousarray(pixels.reshape(width, height).T)
