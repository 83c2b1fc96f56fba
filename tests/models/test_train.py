"""Training of the demo models: the batches have the labels of their scenes."""

import numpy as np
import pytest
import scenes
import torch
import train
from scene_facts import TASKS, side_of
from ultralytics.utils.ops import xywhr2xyxyxyxy

SIDE = 160


def test_a_mirrored_scene_has_mirrored_labels():
    for seed in range(20):
        item = scenes.scene(seed, SIDE, SIDE, "pose")
        other = train.mirrored(item, scenes.KINDS["pose"].flip)
        assert np.array_equal(other.image, item.image[:, ::-1])
        for i, (x1, y1, x2, y2) in enumerate(other.boxes):
            y, x = np.nonzero(other.masks == i + 1)
            assert (x.min(), y.min(), x.max() + 1, y.max() + 1) == (x1, y1, x2, y2)
            assert (other.corners[i].min(0) < [x1 + 2, y1 + 2]).all()
            assert (other.corners[i].max(0) > [x2 - 2, y2 - 2]).all()
            if other.keypoints[i, :3, 2].all():
                assert side_of(other, i) > 0  # left and right are swapped


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_has_the_labels_of_its_scenes(task):
    items = [scenes.scene(seed, SIDE, SIDE, task) for seed in range(8)]
    counts = [len(item.boxes) for item in items]
    batch = train.to_batch(items, task, np.random.default_rng(0))
    assert batch["img"].shape == (8, 3, SIDE, SIDE)
    assert batch["masks"].shape == (8, SIDE // 4, SIDE // 4)
    assert torch.bincount(batch["batch_idx"].long(), minlength=8).tolist() == counts
    assert batch["cls"].flatten().tolist() == np.concatenate([item.classes for item in items]).tolist()
    assert batch["keypoints"].shape == (sum(counts), len(scenes.KINDS[task].keypoints), 3)
    assert batch["bboxes"].shape == (sum(counts), 5 if task == "obb" else 4)
    assert 0 <= batch["bboxes"][:, :4].min() <= batch["bboxes"][:, :4].max() <= 1


def test_rotated_boxes_have_the_corners_of_the_scene():
    item = scenes.scene(3, SIDE, SIDE, "obb")
    boxes = torch.from_numpy(train.turned_boxes(item, SIDE)) * torch.tensor([SIDE] * 4 + [1])
    assert (boxes[:, 2] > boxes[:, 3]).all()
    for wanted, found in zip(item.corners, xywhr2xyxyxyxy(boxes).numpy(), strict=True):
        distances = np.linalg.norm(wanted[:, None] - found[None], axis=2)
        assert distances.min(1).max() < 0.1
