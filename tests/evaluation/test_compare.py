"""Comparing an engine with its reference: both infer every image once, the engine in batches of one shape."""

import dataclasses

import fakes
import numpy as np
import pytest

from app.evaluation import compare
from app.evaluation.datasets import Sample

SIZES = [(64, 64), (30, 60), (64, 64), (64, 64), (30, 60)]  # height, width; the second size becomes 32x64


class NumberedImages:
    """Images whose pixels are the number of the image."""

    name, labelled = "pictures", False

    def __iter__(self):
        for number, (height, width) in enumerate(SIZES):
            yield Sample(np.full((height, width, 3), number, np.uint8))


@pytest.fixture
def reference(monkeypatch) -> list[list[int]]:
    """Replaces the reference by one that returns fakes.ROWS; the list receives the image numbers of each call."""
    requested = []

    def infer(frames):
        requested.append([int(frame[-20, 0, 0]) for frame in frames])
        return [(fakes.ROWS,)] * len(frames)

    monkeypatch.setattr(compare, "_reference", lambda weights, model, threads: infer)
    return requested


def evaluated(device: fakes.Device, batch: int, tmp_path):
    return compare.figures(
        fakes.Backend(device), tmp_path, tmp_path / "w.pt", fakes.MODEL, "fp32", NumberedImages(), batch
    )


@pytest.mark.parametrize(("batch", "shapes"), [(2, [2, 1, 1, 1]), (8, [3, 1, 1]), (1, [1] * 5)])
def test_engine_infers_every_other_batch_image_by_image_and_the_reference_all_images(
    tmp_path, reference, batch, shapes
):
    device = fakes.Device(fakes.ROWS)
    figures = evaluated(device, batch, tmp_path)
    assert (figures.images, figures.agreement, figures.rows_agreement) == (5, 1, 1)
    assert sorted((shape[0] for shape in device.shapes), reverse=True) == sorted(shapes, reverse=True)
    assert all(len(requested) == 1 for requested in reference)
    assert sorted(number for (number,) in reference) == [0, 1, 2, 3, 4]
    assert device.closed


def test_an_engine_with_other_rows_has_a_lower_agreement(tmp_path, reference):
    rows = fakes.ROWS.copy()
    rows[0, 5] = 0
    assert evaluated(fakes.Device(rows), 4, tmp_path).agreement < 1


SHAPES = ((64, 64), (32, 64))


def test_every_image_is_compared_in_every_listed_shape_in_batches_and_singly(tmp_path, reference):
    device = fakes.Device(fakes.ROWS)
    model = dataclasses.replace(fakes.MODEL, shapes=SHAPES)
    figures = compare.figures(fakes.Backend(device), tmp_path, tmp_path / "w.pt", model, "fp32", NumberedImages(), 2)
    assert figures.images == 2 * len(SIZES)
    expected = [
        (2, 64, 64, 3),
        (1, 64, 64, 3),
        (1, 64, 64, 3),
        (1, 64, 64, 3),
    ]  # a batch of two, two single images, the last image
    assert device.shapes == [(count, side - 32 * i, *rest) for i in (0, 1) for count, side, *rest in expected]
    assert [len(requested) for requested in reference] == [1] * 2 * len(SIZES)


@pytest.mark.parametrize("wrong", SHAPES)
def test_one_shape_with_shifted_boxes_is_reported_as_if_all_were_shifted(tmp_path, reference, monkeypatch, wrong):
    """Boxes of one shape are offset by two pixels: a median over all shapes would hide this minority."""
    device = fakes.Device(fakes.ROWS)
    correct = device.infer

    def infer(instance, frames, *, low_latency=False):
        offset = np.float32([2, 0, 2, 0, 0, 0]) * (frames[0].shape[:2] == wrong)
        return [(rows + offset,) for (rows,) in correct(instance, frames)]

    monkeypatch.setattr(device, "infer", infer)
    model = dataclasses.replace(fakes.MODEL, shapes=(*SHAPES, (64, 32), (32, 32)))
    figures = compare.figures(fakes.Backend(device), tmp_path, tmp_path / "w.pt", model, "fp32", NumberedImages(), 2)
    assert figures.shift_px == 2
    assert figures.rows_agreement == 0


def test_frames_are_letterboxed_as_they_are_served():
    shapes = [frame.shape for _, _, frame in compare.frames(NumberedImages(), fakes.MODEL, None)]
    assert shapes == [(64, 64, 3), (32, 64, 3), (64, 64, 3), (64, 64, 3), (32, 64, 3)]
