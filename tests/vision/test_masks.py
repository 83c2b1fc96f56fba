"""Masks, their outlines and their run lengths, compared with those of Ultralytics and COCO."""

import dataclasses

import numpy as np
import pytest
import torch
from mask_arrays import decoded, spots
from pycocotools import mask as coco
from ultralytics.utils import ops

from app.vision import preprocess
from app.vision.masks import Mask, cut, iou, polygon, run_lengths, to_frame

FRAME = (96, 160)
TRANSFORM = preprocess.place(333, 517, 160, 32, None)  # into a frame of 128x160


def prototypes(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return prototypes [32, h, w], coefficients [count, 32] and boxes [count, 4], some partly or fully outside."""
    rng = np.random.default_rng(seed)
    protos = rng.normal(size=(32, FRAME[0] // 4, FRAME[1] // 4)).astype(np.float32)
    corner = rng.uniform(-20, 150, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0, 90, (count, 2))], 1).astype(np.float32)
    return protos, rng.normal(size=(count, 32)).astype(np.float32), boxes


def whole(mask: Mask, frame: tuple[int, int]) -> np.ndarray:
    canvas = np.zeros(frame, np.uint8)
    height, width = mask.pixels.shape
    canvas[mask.top : mask.top + height, mask.left : mask.left + width] = mask.pixels
    return canvas


@pytest.mark.parametrize("seed", range(4))
def test_masks_equal_those_of_ultralytics(seed):
    protos, coefficients, boxes = prototypes(seed, 40)
    found = cut(protos, coefficients, boxes)
    expected = ops.process_mask(*map(torch.from_numpy, (protos, coefficients, boxes)), FRAME, upsample=True).numpy()
    assert np.count_nonzero(expected) > 5_000
    assert [mask.pixels.any() for mask in found] == expected.any((1, 2)).tolist()
    for mask, pixels in zip(found, expected, strict=True):
        np.testing.assert_array_equal(whole(mask, FRAME), pixels)


def test_a_box_without_a_pixel_has_an_empty_mask():
    protos, coefficients, _ = prototypes(0, 3)
    boxes = np.array([[200, 10, 300, 50], [10, 10, 10, 50], [40.2, 3, 40.9, 9]], np.float32)
    assert [mask.pixels.size for mask in cut(protos, coefficients, boxes)] == [0, 0, 0]


@pytest.mark.parametrize("share", [0.02, 0.2, 0.6])
@pytest.mark.parametrize("seed", range(5))
def test_outlines_equal_those_of_ultralytics(seed, share):
    """For masks of one part and of many, which are joined."""
    pixels = spots(seed, TRANSFORM.frame, share)
    (expected,) = ops.masks2segments(pixels[None])
    expected = ops.scale_coords(TRANSFORM.frame, expected, TRANSFORM.image)
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    part = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    for mask in (Mask(pixels, 0, 0), Mask(part, int(columns[0]), int(rows[0]))):
        found = polygon(mask, TRANSFORM)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-3)


def same_size(pixels: np.ndarray) -> preprocess.LetterboxTransform:
    return preprocess.LetterboxTransform(pixels.shape, pixels.shape, pixels.shape, 0, 0)


@pytest.mark.parametrize(
    ("shape", "share"), [((7, 9), 0.4), ((1, 5), 0.4), ((33, 1), 0.4), ((300, 400), 0), ((9, 8), 1)]
)
def test_run_lengths_are_those_of_pycocotools(shape, share):
    pixels = (np.random.default_rng(0).random(shape) < share).astype(np.uint8)
    expected = coco.encode(np.asfortranarray(pixels))["counts"].decode()
    assert run_lengths(Mask(pixels, 0, 0), same_size(pixels)) == expected


@pytest.mark.parametrize("seed", range(4))
def test_decoded_run_lengths_are_the_mask_in_the_image(seed):
    """The expected mask is that of Ultralytics' `scale_masks`, thresholded at 0.5."""
    pixels = spots(seed, TRANSFORM.frame, 0.3)
    found = decoded(run_lengths(Mask(pixels, 0, 0), TRANSFORM), *TRANSFORM.image)
    resized = ops.scale_masks(torch.from_numpy(pixels)[None, None], TRANSFORM.image)[0, 0].numpy()
    undecided = np.abs(resized - 0.5) < 1e-3
    assert np.count_nonzero(undecided) < found.size / 100
    np.testing.assert_array_equal(found[~undecided], resized[~undecided] > 0.5)


def test_an_empty_mask_is_a_single_run_of_zeros():
    assert run_lengths(Mask(np.zeros((0, 0), np.uint8), 0, 0), TRANSFORM) == run_lengths(
        Mask(np.zeros((5, 5), np.uint8), 3, 4), TRANSFORM
    )


def test_iou_of_masks_is_that_of_their_pixels():
    one, other = Mask(np.ones((10, 20), np.uint8), 5, 7), Mask(np.ones((10, 20), np.uint8), 15, 12)
    assert iou(one, other) == pytest.approx(50 / 350)
    assert iou(other, one) == pytest.approx(50 / 350)
    assert iou(one, dataclasses.replace(other, left=60)) == 0
    assert iou(one, one) == 1


@pytest.mark.parametrize("size", [FRAME, (192, 320), (500, 333), (61, 95)])
def test_a_mask_is_letterboxed_into_the_frame_like_the_image(size):
    """The expected mask is the letterboxed image that is white inside the mask."""
    pixels = spots(1, (size[0] // 8 * 8, size[1] // 8 * 8), 0.3)
    image = np.zeros(size, np.uint8)
    image[: len(pixels), : pixels.shape[1]] = pixels
    transform = preprocess.place(*size, 160, 32, None)
    frame = preprocess.letterbox(np.stack([255 * image] * 3, -1), transform)[..., 0]
    inside = frame > 127
    if transform.resized != transform.frame:
        assert np.count_nonzero(frame == preprocess.GREY) > 0  # the padding, below 127
    np.testing.assert_array_equal(whole(to_frame(Mask(image, 0, 0), transform), transform.frame), inside)
    part = Mask(image[40:56, 32:64], 32, 40)
    full = np.zeros(size, np.uint8)
    full[40:56, 32:64] = part.pixels
    np.testing.assert_array_equal(to_frame(part, transform).pixels, to_frame(Mask(full, 0, 0), transform).pixels)
