"""mAP, top-1 and top-5 equal those of Ultralytics' validators for the same predictions and labels."""

import dataclasses

import numpy as np
import pytest
import torch
from ultralytics.engine.validator import BaseValidator
from ultralytics.utils import metrics

from app.evaluation.datasets.annotations import Labels
from app.evaluation.mean_ap import Tally, TopTally
from app.vision import masks, preprocess
from app.vision.masks import Mask
from app.vision.postprocess import Detections

SIDE, CLASSES, POINTS = 320, 3, 5
SQUARE = preprocess.place(SIDE, SIDE, SIDE, 32, None)  # the frame is the image
NOTHING = np.zeros((0, 4), np.float32)


def some_labels(seed: int, task: str, points: int = POINTS) -> Labels:
    """Return labels for nine objects on a grid."""
    rng = np.random.default_rng(seed)
    corner = np.stack(np.meshgrid(np.arange(3), np.arange(3)), -1).reshape(-1, 2) * 100 + rng.uniform(5, 15, (9, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(40, 80, (9, 2))], 1).astype(np.float32)
    classes = rng.integers(0, CLASSES, 9)
    match task:
        case "segment":
            return Labels(classes, boxes, masks=[cross(box) for box in boxes])
        case "pose":
            inside = corner[:, None] + rng.uniform(0, 60, (9, points, 2))
            seen = rng.integers(0, 3, (9, points, 1))
            return Labels(classes, boxes, np.concatenate([inside, seen], 2).astype(np.float32))
        case "obb":
            rotated = [boxes[:, :2] + 30, boxes[:, 2:] - boxes[:, :2], rng.uniform(0, 3, (9, 1))]
            return Labels(classes, np.concatenate(rotated, 1).astype(np.float32))
    return Labels(classes, boxes)


def cross(box: np.ndarray) -> Mask:
    left, top, right, bottom = box.astype(int)
    pixels = np.zeros((bottom - top, right - left), np.uint8)
    pixels[len(pixels) // 3 : len(pixels) * 2 // 3] = 1
    pixels[:, pixels.shape[1] // 3 : pixels.shape[1] * 2 // 3] = 1
    return Mask(pixels, int(left), int(top))


def found_near(labels: Labels, seed: int) -> Detections:
    """Return each object twice, with noise, some with another class."""
    rng = np.random.default_rng(seed)
    which = rng.permutation(np.repeat(np.arange(len(labels.classes)), 2))
    count = len(which)
    classes = np.where(rng.random(count) < 0.1, (labels.classes[which] + 1) % CLASSES, labels.classes[which])
    columns = labels.boxes.shape[1]
    boxes = labels.boxes[which] + rng.normal(0, 2.5, (count, columns)) * [1, 1, 1, 1, 0.03][:columns]
    found = Detections(boxes.astype(np.float32), np.sort(rng.random(count).astype(np.float32))[::-1].copy(), classes)
    if labels.keypoints is not None:
        points = labels.keypoints[which] + rng.normal(0, 6, (count, *labels.keypoints.shape[1:]))
        found = dataclasses.replace(found, keypoints=points.clip(0, SIDE).astype(np.float32))
    if labels.masks is not None:
        found = dataclasses.replace(found, masks=[cross(box) for box in boxes])
    return found


def canvas(mask: Mask) -> np.ndarray:
    pixels = np.zeros((SIDE, SIDE), np.float32)
    pixels[mask.top : mask.top + mask.pixels.shape[0], mask.left : mask.left + mask.pixels.shape[1]] = mask.pixels
    return pixels


def overlap_by_ultralytics(labels: Labels, found: Detections, task: str) -> torch.Tensor:
    """Return the overlap that Ultralytics' validator of the task computes."""
    wanted, boxes = torch.from_numpy(labels.boxes), torch.from_numpy(found.boxes)
    match task:
        case "segment":
            both = [np.stack([canvas(mask).ravel() for mask in each.masks]) for each in (labels, found)]
            return metrics.mask_iou(*map(torch.from_numpy, both))
        case "pose":
            points = labels.keypoints.shape[1]
            sigma = metrics.OKS_SIGMA if points == 17 else np.ones(points) / points
            area = (wanted[:, 2:] - wanted[:, :2]).prod(1) * 0.53
            return metrics.kpt_iou(*map(torch.from_numpy, (labels.keypoints, found.keypoints)), area, sigma)
        case "obb":
            return metrics.batch_probiou(wanted, boxes)
    return metrics.box_iou(wanted, boxes)


TASKS = [("detect", 0), ("segment", 0), ("pose", POINTS), ("pose", 17), ("obb", 0)]


@pytest.mark.parametrize(("task", "points"), TASKS)
def test_mean_average_precision_equals_that_of_ultralytics(task, points):
    tally, validator = Tally(), type("V", (), {"iouv": torch.linspace(0.5, 0.95, 10)})
    hits, scores, classes, wanted = [], [], [], []
    for seed in range(6):
        labels = some_labels(seed, task, points)
        found = found_near(labels, 100 + seed)
        tally.add(found, labels, SQUARE)
        overlap = overlap_by_ultralytics(labels, found, task)
        both = torch.from_numpy(found.classes), torch.from_numpy(labels.classes)
        hits.append(BaseValidator.match_predictions(validator, *both, overlap).numpy())
        scores.append(found.scores)
        classes.append(found.classes)
        wanted.append(labels.classes)
    expected = metrics.ap_per_class(*(np.concatenate(each) for each in (hits, scores, classes, wanted)))[5]
    figures = tally.figures()
    assert 0.02 < figures["map50_95"] < 0.9
    assert figures["map50_95"] == pytest.approx(expected.mean(), abs=1e-6)
    assert figures["map50"] == pytest.approx(expected[:, 0].mean(), abs=1e-6)


def test_top_1_and_top_5_accuracy_equal_those_of_ultralytics():
    rng = np.random.default_rng(1)
    order, targets = np.stack([rng.permutation(9)[:5] for _ in range(50)]), rng.integers(0, 9, 50)
    tally, theirs = TopTally(), metrics.ClassifyMetrics()
    for top_classes, target in zip(order, targets, strict=True):
        found = Detections(np.zeros((5, 0), np.float32), np.linspace(0.9, 0.1, 5, dtype=np.float32), top_classes)
        tally.add(found, Labels(np.array([target]), np.zeros((1, 0), np.float32)), SQUARE)
    theirs.process([torch.from_numpy(targets)], [torch.from_numpy(order)])
    figures = tally.figures()
    assert 0 < figures["top1"] < figures["top5"] < 1
    assert figures == pytest.approx({"top1": theirs.top1, "top5": theirs.top5})


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb"])
def test_detections_in_a_letterboxed_frame_are_compared_in_image_coordinates(task):
    """The image is scaled by half, with padding above and below."""
    labels = some_labels(3, task)
    transform = preprocess.place(SIDE, 2 * SIDE, SIDE, 32, [(SIDE, SIDE)])
    offset = np.array([transform.left, transform.top], np.float32)
    assert offset.tolist() == [0, SIDE / 4]
    columns, box_offset = labels.boxes.shape[1], offset * (task != "obb")
    boxes = labels.boxes / [2, 2, 2, 2, 1][:columns] + [*offset, *box_offset, 0][:columns]
    points = None if labels.keypoints is None else labels.keypoints * [0.5, 0.5, 1] + [*offset, 0]
    found_masks = None if labels.masks is None else [masks.to_frame(mask, transform) for mask in labels.masks]
    found = Detections(boxes.astype(np.float32), np.full(9, 0.9, np.float32), labels.classes, points, found_masks)
    tally = Tally()
    tally.add(found, labels, transform)
    assert tally.figures() == pytest.approx({"map50": 0.995, "map50_95": 0.995})


def test_without_labels_there_are_no_results():
    assert (Tally().figures(), TopTally().figures()) == ({}, {})
    tally = Tally()
    tally.add(found_near(some_labels(0, "detect"), 1), Labels(np.zeros(0, np.int64), NOTHING), SQUARE)
    assert tally.figures() == {}


def test_an_image_without_detections_lowers_the_result():
    tally, labels = Tally(), some_labels(0, "detect")
    tally.add(Detections(labels.boxes, np.full(9, 0.9, np.float32), labels.classes), labels, SQUARE)
    assert tally.figures()["map50"] == pytest.approx(0.995)
    tally.add(Detections(NOTHING, np.zeros(0, np.float32), np.zeros(0, np.int64)), labels, SQUARE)
    assert tally.figures()["map50"] == pytest.approx(0.5, abs=0.01)
