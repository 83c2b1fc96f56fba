"""Masks as arrays: blots to try, and what COCO's run lengths stand for."""

import numpy as np


def spots(seed: int, frame: tuple[int, int], share: float) -> np.ndarray:
    """Blots in several parts, with holes, at the frame's sides too."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((frame[0] // 8, frame[1] // 8)) < share
    return np.kron(coarse, np.ones((8, 8))).astype(np.uint8) ^ (rng.random(frame) < 0.01)


def decoded(counts: str, height: int, width: int) -> np.ndarray:
    """COCO's rleFrString and rleDecode, in plain words."""
    runs, run, shift = [], 0, 0
    for value in (ord(letter) - 48 for letter in counts):
        run |= (value & 31) << shift
        shift += 5
        if not value & 32:  # the last group of this run
            run -= (1 << shift) * (value >> 4 & 1)
            runs.append(run + (runs[-2] if len(runs) > 2 else 0))
            run, shift = 0, 0
    assert sum(runs) == height * width
    return np.repeat(np.arange(len(runs)) % 2, runs).reshape(width, height).T.astype(np.uint8)
