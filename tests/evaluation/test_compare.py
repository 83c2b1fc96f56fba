"""An engine beside its reference: every image once in both, in batches of one shape."""

import dataclasses

import fakes
import numpy as np
import pytest

from app.evaluation import compare
from app.evaluation.datasets import Sample

SIZES = [(64, 64), (30, 60), (64, 64), (64, 64), (30, 60)]  # height, width; the second kind becomes 32x64


class Pictures:
    """Images, of which the first pixel is their number."""

    name, labelled = "pictures", False

    def __iter__(self):
        for number, (height, width) in enumerate(SIZES):
            yield Sample(np.full((height, width, 3), number, np.uint8))


@pytest.fixture
def reference(monkeypatch) -> list[list[int]]:
    """What the reference, which finds what the fake device finds, is asked."""
    requested = []

    def infer(frames):
        requested.append([int(frame[-20, 0, 0]) for frame in frames])
        return [(fakes.ROWS,)] * len(frames)

    monkeypatch.setattr(compare, "_reference", lambda weights, model, threads: infer)
    return requested


def evaluated(device: fakes.Device, batch: int, tmp_path):
    return compare.figures(fakes.Backend(device), tmp_path, tmp_path / "w.pt", fakes.MODEL, "fp32", Pictures(), batch)


@pytest.mark.parametrize(("batch", "shapes"), [(2, [2, 1, 1, 1]), (8, [3, 1, 1]), (1, [1] * 5)])
def test_engine_gets_batches_of_one_shape_every_other_one_image_by_image_and_the_reference_always_so(
    tmp_path, reference, batch, shapes
):
    device = fakes.Device(fakes.ROWS)
    figures = evaluated(device, batch, tmp_path)
    assert (figures.images, figures.agreement, figures.rows_agreement) == (5, 1, 1)
    assert sorted((shape[0] for shape in device.shapes), reverse=True) == sorted(shapes, reverse=True)
    assert all(len(requested) == 1 for requested in reference)
    assert sorted(number for (number,) in reference) == [0, 1, 2, 3, 4]
    assert device.closed


def test_an_engine_that_gives_other_rows_shows_in_the_figures(tmp_path, reference):
    rows = fakes.ROWS.copy()
    rows[0, 5] = 0
    assert evaluated(fakes.Device(rows), 4, tmp_path).agreement < 1


SHAPES = ((64, 64), (32, 64))


def test_every_image_goes_into_every_listed_shape_in_batches_and_alone(tmp_path, reference):
    device = fakes.Device(fakes.ROWS)
    model = dataclasses.replace(fakes.MODEL, shapes=SHAPES)
    figures = compare.figures(fakes.Backend(device), tmp_path, tmp_path / "w.pt", model, "fp32", Pictures(), 2)
    assert figures.images == 2 * len(SIZES)
    expected = [(2, 64, 64, 3), (1, 64, 64, 3), (1, 64, 64, 3), (1, 64, 64, 3)]  # together, one by one, the last
    assert device.shapes == [(count, side - 32 * i, *rest) for i in (0, 1) for count, side, *rest in expected]
    assert [len(requested) for requested in reference] == [1] * 2 * len(SIZES)


@pytest.mark.parametrize("wrong", SHAPES)
def test_one_shape_among_those_listed_that_is_off_shows_as_if_all_were(tmp_path, reference, monkeypatch, wrong):
    """Two pixels to one side: less than half of all boxes, so that a median over all shapes would not see it."""
    device = fakes.Device(fakes.ROWS)
    straight = device.infer

    def infer(instance, frames, *, low_latency=False):
        off = np.float32([2, 0, 2, 0, 0, 0]) * (frames[0].shape[:2] == wrong)
        return [(rows + off,) for (rows,) in straight(instance, frames)]

    monkeypatch.setattr(device, "infer", infer)
    model = dataclasses.replace(fakes.MODEL, shapes=(*SHAPES, (64, 32), (32, 32)))
    figures = compare.figures(fakes.Backend(device), tmp_path, tmp_path / "w.pt", model, "fp32", Pictures(), 2)
    assert figures.shift_px == 2
    assert figures.rows_agreement == 0


def test_frames_are_letterboxed_as_they_are_served():
    shapes = [frame.shape for _, _, frame in compare.frames(Pictures(), fakes.MODEL, None)]
    assert shapes == [(64, 64, 3), (32, 64, 3), (64, 64, 3), (64, 64, 3), (32, 64, 3)]
