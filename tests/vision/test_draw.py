"""Drawing boxes and labels on an image, and encoding the image."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from app.vision.draw import draw, encode
from app.vision.postprocess import Detections

NAMES = {0: "cat", 1: "Straße 猫 \N{CAT FACE}", 2: "", 3: "a name much longer than any picture is wide " * 5}
GREY = np.full((300, 400, 3), 114, np.uint8)


def found(*boxes: tuple[float, ...], classes: list[int] | None = None) -> Detections:
    labels = np.array(classes or [0] * len(boxes), np.int64)
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.linspace(0.9, 0.3, len(boxes), dtype=np.float32), labels
    )


def drawn_bounds(canvas: np.ndarray) -> tuple[int, int, int, int]:
    """Return x1 y1 x2 y2 of the pixels that differ from GREY, x2 and y2 inclusive."""
    y, x = np.nonzero((canvas != GREY[0, 0]).any(2))
    return int(x.min()), int(y.min()), int(x.max()), int(y.max())


def test_without_detections_the_image_is_unchanged():
    assert np.array_equal(draw(GREY.copy(), found(), NAMES), GREY)


def test_an_image_is_drawn_on_and_encoded_without_a_copy():
    """A copy of 50 million pixels would be 150 MB."""
    image = GREY.copy()
    assert draw(image, found((50, 60, 200, 150)), NAMES) is image
    assert not np.array_equal(image, GREY)
    blue, _, red = image[0, 0] = (1, 2, 3)
    encode(image, "png")
    assert image[0, 0].tolist() == [red, 2, blue]


def test_only_the_sides_of_a_box_and_its_label_are_drawn():
    x1, y1, x2, y2 = 50, 60, 300, 150
    canvas = draw(GREY.copy(), found((x1, y1, x2, y2)), NAMES)
    for x, y in [(200, y1), (200, y2), (x1, 100), (x2, 100)]:
        assert np.array_equal(canvas[y, x], canvas[y2, 200]), (x, y)
        assert not np.array_equal(canvas[y, x], GREY[y, x]), (x, y)
    assert np.array_equal(canvas[y1 + 3 : y2 - 2, x1 + 3 : x2 - 2], GREY[y1 + 3 : y2 - 2, x1 + 3 : x2 - 2])
    left, top, right, bottom = drawn_bounds(canvas)
    assert (left, right, bottom) == pytest.approx((x1, x2, y2), abs=1)
    assert y1 - 40 < top < y1 - 5  # the label


def test_each_class_has_its_own_colour():
    boxes = [(10 + 60 * i, 100, 50 + 60 * i, 200) for i in range(3)]
    canvas = draw(GREY.copy(), found(*boxes, classes=[0, 1, 2]), NAMES)
    assert len({tuple(canvas[200, 50 + 60 * i].tolist()) for i in range(3)}) == 3


def test_the_box_with_the_highest_score_is_on_top():
    box = (50, 100, 200, 200)
    best, other = (draw(GREY.copy(), found(box, classes=[i]), NAMES)[200, 120].astype(int) for i in (0, 2))
    both = draw(GREY.copy(), found(box, box, classes=[0, 2]), NAMES)[200, 120]
    assert np.abs(both - best).sum() < 30 < np.abs(both - other).sum()


@pytest.mark.parametrize("corner", [(0, 0), (399, 0), (200, 5), (390, 150), (0, 299), (399, 299)])
def test_a_label_at_the_border_is_drawn_completely(corner):
    def label(x: int, y: int) -> int:
        """Return the number of pixels drawn for a box without area."""
        return int(np.count_nonzero((draw(GREY.copy(), found((x, y, x, y)), NAMES) != GREY).any(2)))

    assert label(*corner) == pytest.approx(label(200, 150), rel=0.05)


@pytest.mark.parametrize("class_id", NAMES)
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (7, 5)])
def test_tiny_images_and_any_class_name_can_be_drawn(size, class_id):
    canvas = draw(np.zeros((*size, 3), np.uint8), found((0, 0, size[1], size[0]), classes=[class_id]), NAMES)
    assert canvas.shape == (*size, 3)


def test_many_classes_can_be_drawn():
    ids = list(range(0, 1000, 7))
    boxes = [(5, 5, 20, 20)] * len(ids)
    draw(GREY.copy(), found(*boxes, classes=ids), {i: str(i) for i in ids})


@pytest.mark.parametrize(("kind", "tolerance"), [("jpeg", 3), ("png", 0)])
def test_the_encoded_file_contains_the_image(kind, tolerance):
    image = draw(GREY.copy(), found((50, 60, 200, 150)), NAMES)
    with Image.open(io.BytesIO(encode(image.copy(), kind))) as file:
        assert (file.format, file.size, file.mode) == (kind.upper(), (400, 300), "RGB")
        assert np.abs(np.asarray(file).astype(int) - image).mean() <= tolerance


def count_drawn(canvas: np.ndarray) -> int:
    return int(np.count_nonzero((canvas != GREY[0, 0]).any(2)))


def test_a_mask_is_drawn_semitransparent():
    outline = np.float32([[100, 100], [200, 100], [200, 200], [100, 200]])
    canvas = draw(GREY.copy(), found((100, 100, 200, 200)), NAMES, [outline])
    assert (canvas[150, 150] != GREY[0, 0]).any()
    assert np.abs(canvas[150, 150].astype(int) - 114).max() < 80
    assert (canvas[150, 250] == GREY[0, 0]).all()


@pytest.mark.parametrize(("visible", "dots"), [((0.9, 0.9), 2), ((0.9, 0.1), 1), ((), 2)])
def test_visible_keypoints_are_drawn_as_dots(visible, dots):
    points = [[120.0, 120.0], [170.0, 150.0]]
    keypoints = np.float32([[[*point, *visible[i : i + 1]] for i, point in enumerate(points)]])
    without = draw(GREY.copy(), found((100, 100, 200, 200)), NAMES)
    canvas = draw(GREY.copy(), dataclasses.replace(found((100, 100, 200, 200)), keypoints=keypoints), NAMES)
    assert sum((canvas[round(y), round(x)] != without[round(y), round(x)]).any() for x, y in points) == dots


def test_a_rotated_box_is_drawn_rotated():
    rotated = dataclasses.replace(found((0, 0, 0, 0)), boxes=np.float32([[200, 150, 100, 40, np.pi / 2]]))
    canvas = draw(GREY.copy(), rotated, {0: ""})
    for x, y, drawn in ((180, 150, True), (220, 150, True), (250, 150, False), (200, 200, True)):
        assert (canvas[y - 1 : y + 2, x - 1 : x + 2] != GREY[0, 0]).any() == drawn


def test_classes_without_boxes_are_drawn_as_a_list_of_labels():
    labels = dataclasses.replace(found((0,) * 4, (0,) * 4), boxes=np.zeros((2, 0), np.float32))
    one = dataclasses.replace(labels, boxes=labels.boxes[:1], scores=labels.scores[:1], classes=labels.classes[:1])
    assert count_drawn(draw(GREY.copy(), labels, NAMES)) > 1.8 * count_drawn(draw(GREY.copy(), one, NAMES)) > 100
