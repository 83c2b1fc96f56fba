"""Rows -> detections, compared with Ultralytics' NMS in torch."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from fakes import MODEL
from ultralytics.utils.metrics import batch_probiou
from ultralytics.utils.nms import TorchNMS, non_max_suppression
from ultralytics.utils.ops import xywhr2xyxyxyxy

from app.backends.pytorch import select_rows
from app.model import ModelInfo
from app.vision import postprocess
from app.vision.postprocess import Detections, K, Thresholds, candidates, nms

THRESHOLDS = [
    Thresholds(conf, iou, max_det, classes, agnostic)
    for (conf, iou, max_det), (classes, agnostic) in itertools.product(
        [(0.25, 0.7, 300), (0.001, 0.7, 300), (0.25, 0.45, 20), (0, 0.3, 5), (0.5, 0, 1), (0.1, 1, 300), (1, 0.7, 300)],
        [(None, False), (None, True), ((0, 2), False), ((1,), True), ((77,), False)],
    )
]


def select(rows: np.ndarray, thresholds: Thresholds) -> Detections:
    """Return the detections of a detect model."""
    return postprocess.select((rows,), thresholds, MODEL)


def head(seed: int) -> torch.Tensor:
    """Return a raw head output [1, 4 + nc, A] with clusters of boxes, as around objects."""
    rng = np.random.default_rng(seed)
    count, classes, objects = int(rng.integers(100, 400)), (1, 3, 10)[seed % 3], 8
    near = rng.integers(0, objects, count)
    centres, sides = rng.uniform(0, 640, (objects, 2))[near], rng.uniform(8, 200, (objects, 2))[near]
    centres += rng.normal(0, 0.15, (count, 2)) * sides
    sides *= np.exp(rng.normal(0, 0.15, (count, 2)))
    scores = rng.beta(0.4, 3, (count, classes))
    return torch.from_numpy(np.concatenate([centres, sides, scores], 1).T[None].astype(np.float32))


def ultralytics(raw: torch.Tensor, t: Thresholds) -> np.ndarray:
    """Return [N, 6]: x1 y1 x2 y2, score, class."""
    from ultralytics.utils.nms import non_max_suppression

    classes = None if t.classes is None else list(t.classes)
    found = non_max_suppression(raw.clone(), t.conf, t.iou, classes, t.agnostic, max_det=t.max_det)
    return found[0].numpy()


def table(detections: Detections) -> np.ndarray:
    return np.column_stack([detections.boxes, detections.scores, detections.classes.astype(np.float32)])


def rows(*values: tuple[float, ...]) -> np.ndarray:
    return np.array(values, np.float32).reshape(-1, 6)


@pytest.mark.parametrize("thresholds", THRESHOLDS, ids=str)
def test_detections_are_bit_identical_to_those_of_ultralytics_and_in_the_same_order(thresholds):
    for seed in range(4):
        raw = head(seed)
        found = table(select(select_rows(raw, raw.shape[1] - 4)[0].numpy(), thresholds))
        assert np.array_equal(found, ultralytics(raw, thresholds)), seed


def test_the_generated_heads_have_overlaps_and_several_classes():
    found = ultralytics(head(2), Thresholds())
    assert 20 < len(found) < len(ultralytics(head(2), Thresholds(iou=1)))
    assert len(set(found[:, 5])) > 2


def test_the_number_of_candidates_is_that_of_the_scores_above_conf():
    ordered = select_rows(made := head(3), made.shape[1] - 4)[0].numpy()
    for conf in (0, 0.001, 0.25, 0.5, 1, *map(float, ordered[:40, 4])):
        assert candidates(ordered, conf) == np.count_nonzero(ordered[:, 4] > conf)


@pytest.mark.parametrize("given", [rows(), rows((0, 0, 9, 9, 0.1, 0)), rows((0, 0, 9, 9, 0.25, 0))])
def test_without_a_score_above_the_threshold_there_are_no_detections(given):
    found = select(given, Thresholds(conf=0.25))
    assert (len(found), found.boxes.shape, found.scores.shape, found.classes.shape) == (0, (0, 4), (0,), (0,))


def test_detections_have_the_documented_types():
    found = select(rows((1, 2, 3, 4, 0.5, 7)), Thresholds())
    assert (found.boxes.dtype, found.scores.dtype, found.classes.dtype) == (np.float32, np.float32, np.int64)
    assert found.classes.tolist() == [7]


def test_conf_0_keeps_every_positive_score_and_conf_1_keeps_none():
    given = rows((40, 0, 49, 9, 1, 0), (20, 0, 29, 9, 1e-6, 0), (0, 0, 9, 9, 0, 0))
    assert select(given, Thresholds(conf=0)).scores.tolist() == pytest.approx([1, 1e-6])
    assert len(select(given, Thresholds(conf=1))) == 0


def test_rows_with_a_nan_score_are_dropped():
    given = rows((0, 0, 9, 9, np.nan, 0), (np.nan,) * 6, (20, 0, 29, 9, 0.9, 1))
    assert table(select(given, Thresholds())).tolist() == table(select(given[2:], Thresholds())).tolist()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_rows_with_nan_or_infinity_in_the_box_are_dropped(wrong):
    given = rows((wrong, 0, 9, 9, 0.95, 0), (20, 0, 29, 9, 0.9, 0), (40, 0, 49, 9, 0.8, 1))
    assert table(select(given, Thresholds())).tolist() == table(select(given[1:], Thresholds())).tolist()


def test_the_first_row_of_equal_scores_is_kept():
    tied = rows((0, 0, 10, 10, 0.5, 0), (1, 0, 11, 10, 0.5, 0), (50, 0, 60, 10, 0.5, 0))
    assert np.array_equal(table(select(tied, Thresholds())), tied[[0, 2]])
    assert np.array_equal(table(select(tied[::-1], Thresholds())), tied[[2, 1]])


def test_ties_keep_the_order_of_their_rows():
    tied = rows(*((20 * i, 0, 20 * i + 10, 10, 0.5, 0) for i in range(200)))
    assert np.array_equal(table(select(tied, Thresholds())), tied)


def test_boxes_of_different_classes_never_suppress_each_other_up_to_the_largest_frame():
    for apart in range(0, 7600, 8):
        near_and_far = rows((7600, 7600, 7680, 7680, 0.9, 0), (*[7600 - apart] * 2, *[7680 - apart] * 2, 0.8, 1))
        assert len(select(near_and_far, Thresholds())) == 2, apart


def test_a_duplicate_box_is_found_once_per_class():
    twice = rows((0, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.8, 0), (0, 0, 10, 10, 0.7, 1))
    assert select(twice, Thresholds()).classes.tolist() == [0, 1]
    assert select(twice, Thresholds(agnostic=True)).classes.tolist() == [0]


def test_boxes_without_an_area_are_kept_as_by_ultralytics():
    centre_sides_score = [(5, 5, 0, 0, 0.9), (90, 90, 0, 8, 0.8), (5, 5, 0, 0, 0.7), (50, 50, 9, 9, 0.6)]
    raw = torch.tensor(centre_sides_score).T[None]
    found = table(select(select_rows(raw, raw.shape[1] - 4)[0].numpy(), Thresholds()))
    assert np.array_equal(found, ultralytics(raw, Thresholds()))


def test_a_box_without_an_area_causes_no_warning():
    given = rows((5, 5, 5, 5, 0.9, 0), (5, 5, 5, 5, 0.8, 0))
    assert select(given, Thresholds()).scores[0] == np.float32(0.9)


@pytest.mark.parametrize("max_det", [1, 2, 50])
def test_max_det_keeps_the_highest_scores(max_det):
    given = rows(*((20 * i, 0, 20 * i + 10, 10, 0.7 - i / 100, 0) for i in range(40)))
    found = select(given, Thresholds(max_det=max_det))
    assert found.scores.tolist() == given[:max_det, 4].tolist()


def test_a_box_with_an_overlap_of_exactly_iou_is_kept():
    halves = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32)
    assert nms(halves, 0.5, 300).tolist() == [0, 1]
    assert nms(halves, 0.499, 300).tolist() == [0]


def greedy(boxes: np.ndarray, iou: float, max_det: int) -> list[int]:
    """Return the indices that simple greedy NMS keeps: a box stays unless it overlaps a kept one by more than `iou`."""
    kept: list[int] = []
    for i in range(len(boxes)):
        if len(kept) < max_det and not any(overlap(boxes[j], boxes[i]) > iou for j in kept):
            kept.append(i)
    return kept


def overlap(one: np.ndarray, other: np.ndarray) -> np.float32:
    """Return the IoU in float32, with Ultralytics' order of operations; NaN without an area."""
    zero = np.float32(0)
    width = np.maximum(np.minimum(one[2], other[2]) - np.maximum(one[0], other[0]), zero)
    height = np.maximum(np.minimum(one[3], other[3]) - np.maximum(one[1], other[1]), zero)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    both = width * height
    with np.errstate(invalid="ignore"):
        return both / (areas[0] + areas[1] - both)


def clustered(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return boxes around a few centres."""
    centres = rng.uniform(0, 640, (8, 2))[rng.integers(0, 8, count)] + rng.normal(0, 12, (count, 2))
    halves = rng.uniform(4, 100, (count, 2))
    return np.concatenate([centres - halves, centres + halves], 1).astype(np.float32)


def degenerate(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return clustered boxes, many of them without area, inverted, equal, with a shared side, or NaN."""
    boxes = clustered(rng, count)
    for change in (
        lambda box: box[[0, 1, 0, 1]],  # a point
        lambda box: box[[0, 1, 0, 3]],  # a line
        lambda box: box[[2, 3, 0, 1]],  # inverted
        lambda box: box[[2, 1, 0, 3]],
        lambda box: boxes[0],
        lambda box: np.round(box / 32) * 32,
        lambda box: np.where([True, False, False, False], np.nan, box),
        lambda box: np.full(4, np.nan),
        lambda box: np.zeros(4),
    ):
        for i in rng.integers(1, count, max(1, count // 16)):
            boxes[i] = change(boxes[i])
    return boxes


@pytest.mark.parametrize("kind", [clustered, degenerate])
@pytest.mark.parametrize(("iou", "max_det"), [(0.7, 300), (0.45, 20), (0, 300), (1, 300), (0.3, 1)])
def test_nms_equals_simple_greedy_nms(kind, iou, max_det):
    for seed, count in enumerate((2, 3, 17, 60, 120)):
        boxes = kind(np.random.default_rng(seed), count)
        kept = nms(boxes, iou, max_det)
        assert kept.dtype == np.int64
        assert kept.tolist() == greedy(boxes, iou, max_det), (seed, count)


@pytest.mark.parametrize("kind", [clustered, degenerate])
def test_nms_of_the_maximum_number_of_rows_equals_simple_greedy_nms(kind):
    boxes = kind(np.random.default_rng(77), K)
    kept = nms(boxes, 0.6, 300)
    assert 20 < len(kept) < K
    assert kept.tolist() == greedy(boxes, 0.6, 300)


def test_only_boxes_that_nms_keeps_suppress_others():
    """The first box suppresses the middle one; the last overlaps only the middle one and stays."""
    chain = np.array([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]], np.float32)
    assert nms(chain, 0.3, 300).tolist() == [0, 2]


@pytest.mark.parametrize("max_det", [1, 300])
def test_nms_without_boxes_keeps_none(max_det):
    assert nms(np.zeros((0, 4), np.float32), 0.7, max_det).tolist() == []


def test_nms_keeps_at_most_max_det_boxes():
    apart = np.array([[20 * i, 0, 20 * i + 10, 10] for i in range(9)], np.float32)
    assert nms(apart, 0.7, 4).tolist() == [0, 1, 2, 3]


def test_select_does_not_change_the_rows():
    given = select_rows(made := head(1), made.shape[1] - 4)[0].numpy()
    before = given.copy()
    select(given, Thresholds(conf=0.01, agnostic=False))
    assert np.array_equal(given, before)


# Other tasks


def rotated(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return clustered boxes [N, 5]: cx cy w h angle."""
    near = rng.integers(0, 8, count)
    centres = rng.uniform(0, 640, (8, 2))[near] + rng.normal(0, 10, (count, 2))
    sides = rng.uniform(8, 200, (8, 2))[near] * np.exp(rng.normal(0, 0.15, (count, 2)))
    angles = rng.uniform(-np.pi / 4, 3 * np.pi / 4, (8, 1))[near] + rng.normal(0, 0.1, (count, 1))
    return np.concatenate([centres, sides, angles], 1).astype(np.float32)


def test_overlap_of_rotated_boxes_equals_that_of_ultralytics():
    boxes = rotated(np.random.default_rng(0), 200)
    boxes[:3, 2:4] = 0
    ours = postprocess.probiou(boxes[:120], boxes)
    np.testing.assert_allclose(ours, batch_probiou(boxes[:120], boxes).numpy(), atol=1e-3)
    assert ours.dtype == np.float32
    assert np.count_nonzero(ours > 0.7) > 200


@pytest.mark.parametrize("iou", [0.7, 0.45, 0.1])
def test_rotated_nms_keeps_the_boxes_that_ultralytics_keeps(iou):
    for seed in range(6):
        boxes = rotated(np.random.default_rng(seed), 200)
        scores = torch.linspace(0.9, 0.1, len(boxes))
        expected = TorchNMS.fast_nms(torch.from_numpy(boxes), scores, iou, iou_func=batch_probiou).tolist()
        assert postprocess.rotated_nms(boxes, iou, 300).tolist() == expected
        assert postprocess.rotated_nms(boxes, iou, 5).tolist() == expected[:5]
        assert len(expected) < len(boxes)


def test_rotated_nms_without_boxes_keeps_none():
    assert postprocess.rotated_nms(np.zeros((0, 5), np.float32), 0.7, 300).tolist() == []


def test_corners_and_their_order_are_those_of_ultralytics():
    boxes = rotated(np.random.default_rng(3), 50)
    np.testing.assert_allclose(postprocess.corners(boxes), xywhr2xyxyxyxy(boxes), atol=1e-3)


@pytest.mark.parametrize("classes", [None, (0, 2)])
@pytest.mark.parametrize("agnostic", [False, True])
def test_obb_detections_equal_those_of_ultralytics(classes, agnostic):
    rng = np.random.default_rng(11)
    boxes, scores = rotated(rng, 300), rng.beta(0.4, 3, (300, 3)).astype(np.float32)
    raw = torch.from_numpy(np.concatenate([boxes[:, :4], scores, boxes[:, 4:]], 1).T[None])
    thresholds = Thresholds(0.1, 0.45, 300, classes, agnostic)
    found = postprocess.select((select_rows(raw, 3, centred=True)[0].numpy(),), thresholds, of_task("obb"))
    (expected,) = non_max_suppression(raw.clone(), 0.1, 0.45, classes, agnostic, nc=3, rotated=True)
    assert 5 < len(expected) < np.count_nonzero(scores.max(1) > 0.1)
    assert np.array_equal(found.boxes, expected[:, [0, 1, 2, 3, 6]].numpy())
    assert np.array_equal(found.scores, expected[:, 4].numpy())
    assert found.classes.tolist() == expected[:, 5].tolist()


def of_task(task: str, **facts: object) -> ModelInfo:
    return dataclasses.replace(MODEL, task=task, **facts)


@pytest.mark.parametrize("dims", [2, 3])
def test_keypoints_are_those_of_the_kept_rows(dims):
    given = np.concatenate(
        [rows((0, 0, 9, 9, 0.9, 0), (0, 0, 9, 9, 0.8, 0), (30, 0, 39, 9, 0.7, 1)), np.zeros((3, 2 * dims))], 1
    )
    given[:, 6:] = np.arange(3 * 2 * dims).reshape(3, -1)
    found = postprocess.select((given.astype(np.float32),), Thresholds(), of_task("pose", kpt_shape=(2, dims)))
    assert found.keypoints.shape == (2, 2, dims)
    assert found.keypoints[1].ravel().tolist() == given[2, 6:].tolist()


def test_rows_of_an_end_to_end_model_skip_nms():
    twice = rows((0, 0, 9, 9, 0.9, 0), (0, 0, 9, 9, 0.8, 0), (0, 0, 9, 9, 0.1, 0))
    given = of_task("detect", end_to_end=True)
    assert postprocess.select((twice,), Thresholds(), given).scores.tolist() == pytest.approx([0.9, 0.8])
    assert len(postprocess.select((twice,), Thresholds(max_det=1), given)) == 1


def test_classification_returns_the_five_most_probable_classes_regardless_of_thresholds():
    probs = np.array([0.05, 0.4, 0.02, 0.3, 0.2, 0.03], np.float32)
    found = postprocess.select((probs,), Thresholds(conf=0.9, max_det=1, classes=(2,)), of_task("classify"))
    assert (found.classes.tolist(), found.boxes.shape) == ([1, 3, 4, 0, 5], (5, 0))
    assert len(postprocess.select((probs[:2],), Thresholds(), of_task("classify"))) == 2


def test_an_object_with_an_empty_mask_is_dropped():
    """Ultralytics drops it too."""
    protos = np.ones((2, 16, 16), np.float32)
    given = np.concatenate([rows((4, 4, 20, 20, 0.9, 0), (30, 30, 50, 50, 0.8, 1)), [[-1, -1], [1, 1]]], 1).astype(
        np.float32
    )
    found = postprocess.select((given, protos), Thresholds(), of_task("segment"))
    assert found.classes.tolist() == [1]
    (mask,) = found.masks
    assert (mask.left, mask.top, mask.pixels.shape) == (30, 30, (20, 20))
    assert mask.pixels.all()


@pytest.mark.parametrize("task", ["segment", "pose", "obb"])
def test_without_detections_all_fields_are_empty(task):
    extras = {"segment": 2, "pose": 6, "obb": 1}[task]
    outputs = (np.zeros((7, 6 + extras), np.float32), np.zeros((2, 8, 8), np.float32))[: 2 if task == "segment" else 1]
    found = postprocess.select(outputs, Thresholds(), of_task(task, kpt_shape=(2, 3) if task == "pose" else None))
    assert (len(found), len(found.boxes)) == (0, 0)
    assert found.masks == ([] if task == "segment" else None)
    assert found.keypoints is None or found.keypoints.shape == (0, 2, 3)


def test_keep_returns_the_rows_after_nms_and_the_other_outputs_unchanged():
    twice, protos = np.zeros((3, 8), np.float32), np.ones((2, 4, 4), np.float32)
    twice[:, :4], twice[:, 4] = (2, 2, 10, 10), (0.9, 0.8, 0.1)
    rows, same = postprocess.keep((twice, protos), Thresholds(), of_task("segment"))
    np.testing.assert_array_equal(rows, twice[:1])
    assert same is protos
    probs = np.array([0.1, 0.9], np.float32)
    assert postprocess.keep((probs,), Thresholds(conf=1, max_det=1), of_task("classify")) == (probs,)
