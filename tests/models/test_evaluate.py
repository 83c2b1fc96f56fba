"""The demo models: their metadata, and their accuracy on unseen scenes."""

import evaluate
import numpy as np
import pytest
import scenes
import torch
import train
from scene_facts import TASKS
from ultralytics import YOLO
from ultralytics.nn import tasks

pytestmark = pytest.mark.usefixtures("needs_engine")

UNSEEN = range(700_000, 700_040)


@pytest.mark.parametrize("task", [*TASKS, "classify"])
def test_the_checkpoint_is_small_and_loads_with_its_metadata_as_weights_only(task, monkeypatch):
    monkeypatch.setattr(tasks, "SAFE_LOAD", True)
    recipe, kind = train.RECIPES[task], scenes.KINDS[task]
    weights = train.HERE / recipe.weights
    assert weights.stat().st_size < 3e6
    model = YOLO(weights)
    assert model.task == task
    assert list(model.names.values()) == list(kind.classes)
    assert model.overrides["imgsz"] == max(recipe.sides)
    if task == "pose":
        assert list(model.model.model[-1].kpt_shape) == [5, 3]


@pytest.mark.parametrize("task", TASKS)
def test_a_trained_model_finds_objects_of_unseen_scenes_and_an_untrained_one_does_not(task):
    precision = evaluate.average_precision(evaluate.load(task), task, UNSEEN)[1]
    assert precision[:, 0].mean() > 0.85
    torch.manual_seed(0)
    untrained = train.new_model(task).eval()
    assert evaluate.average_precision(untrained, task, UNSEEN)[1].mean() < 0.01


def test_a_trained_classifier_recognizes_unseen_images_and_an_untrained_one_does_not():
    assert evaluate.accuracy(evaluate.load("classify"), UNSEEN).mean() > 0.95
    torch.manual_seed(0)
    assert evaluate.accuracy(train.new_model("classify").eval(), UNSEEN).mean() < 0.5


@pytest.mark.parametrize("task", TASKS)
def test_correct_rows_overlap_their_objects_and_shifted_rows_do_not(task):
    item = next(item for seed in UNSEEN if len((item := scenes.scene(seed, 160, 160, task)).boxes) > 2)
    rows, protos = truth(item, task)
    right = evaluate.overlap(task, item, rows, protos)
    assert right.diagonal().min() > 0.95
    rows[:, :4] += 40
    if task == "pose":
        rows[:, 6:] += 40
    assert evaluate.overlap(task, item, rows, protos).diagonal().max() < 0.7
    hits = evaluate.match(right, rows, item)
    assert np.array_equal(hits, np.ones((len(rows), 10), bool))


def truth(item: scenes.Scene, task: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the rows, and for segment the prototypes, of a perfect model for the scene."""
    count = len(item.boxes)
    boxes, protos = torch.from_numpy(item.boxes), None
    scores = torch.stack([torch.linspace(0.9, 0.8, count), torch.from_numpy(item.classes).float()], 1)
    if task == "segment":
        extras = torch.eye(count) * 2
        protos = (torch.from_numpy(item.masks) == torch.arange(1, count + 1)[:, None, None]).float() - 0.5
    elif task == "pose":
        extras = torch.from_numpy(item.keypoints).flatten(1)
    else:
        rotated = torch.from_numpy(train.turned_boxes(item, 1)).float()
        boxes, extras = rotated[:, :4], rotated[:, 4:]
    return torch.cat([boxes, scores, extras], 1), protos
