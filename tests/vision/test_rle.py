"""Run lengths are those of pycocotools, the reference implementation of COCO."""

import numpy as np
import pytest
from pycocotools import mask as coco

from app.vision import rle


def masks() -> list[np.ndarray]:
    """Random masks of many sizes and densities, and those without a change."""
    rng = np.random.default_rng(0)
    found = [np.zeros((300, 400), np.uint8), np.ones((7, 3), np.uint8), np.zeros((1, 1), np.uint8)]
    for share in (0.001, 0.05, 0.4, 0.99):
        for height, width in rng.integers(1, 200, (8, 2)):
            found.append((rng.random((height, width)) < share).astype(np.uint8))
            found.append(np.kron(found[-1][:9, :9], np.ones((31, 40), np.uint8)))
    return found


MASKS = masks()


@pytest.mark.parametrize("index", range(len(MASKS)))
def test_text_and_mask_are_those_of_pycocotools(index):
    mask = MASKS[index]
    reference = coco.encode(np.asfortranarray(mask))
    counts = rle.decompress(reference["counts"].decode())
    assert rle.compress(np.array(counts)) == reference["counts"].decode()
    np.testing.assert_array_equal(rle.decode(counts, *mask.shape), mask)
    np.testing.assert_array_equal(coco.decode(reference), mask)


def test_run_lengths_of_another_size_are_refused():
    with pytest.raises(ValueError, match="reshape"):
        rle.decode([3, 4], 2, 3)
