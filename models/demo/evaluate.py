"""Evaluate a demo model on unseen generated scenes, as Ultralytics' validators do.

python models/demo/evaluate.py [--task detect] [--images 500]

Measures the overlap of boxes (detect), masks (segment), keypoints (pose, by OKS) or oriented boxes (obb); for classify
the top-1 accuracy.
"""

import argparse
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import scenes
import torch
from train import HERE, RECIPES, picture, to_images, turned_boxes
from ultralytics import YOLO
from ultralytics.engine.validator import BaseValidator
from ultralytics.utils.metrics import ap_per_class, batch_probiou, box_iou, kpt_iou, mask_iou
from ultralytics.utils.nms import non_max_suppression
from ultralytics.utils.ops import process_mask

BATCH = 10
IOUS = torch.linspace(0.5, 0.95, 10)


def load(task: str, weights: Path | None = None) -> torch.nn.Module:
    return YOLO(weights or HERE / RECIPES[task].weights).model.float().fuse().eval()


@torch.inference_mode()
def average_precision(model: torch.nn.Module, task: str, seeds: range) -> tuple[np.ndarray, np.ndarray]:
    """Return class ids [C] and average precision [C, 10] at the ten IoU thresholds of COCO."""
    side = max(RECIPES[task].sides)
    hits, scores, found, wanted = [], [], [], []
    for first in seeds[::BATCH]:
        items = [scenes.scene(seed, side, side, task) for seed in range(first, min(first + BATCH, seeds.stop))]
        for item, (rows, protos) in zip(items, predict(model, task, items), strict=True):
            hits.append(match(overlap(task, item, rows, protos), rows, item))
            scores.append(rows[:, 4].numpy())
            found.append(rows[:, 5].numpy())
            wanted.append(item.classes)
    outcome = ap_per_class(*(np.concatenate(column) for column in (hits, scores, found, wanted)))
    return outcome[6], outcome[5]


def predict(
    model: torch.nn.Module, task: str, items: list[scenes.Scene]
) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """Return for each scene the rows [N, 6 + extras] after NMS and, for segment, the mask prototypes."""
    output = model(to_images([item.image for item in items]))[0]
    output, protos = output if task == "segment" else (output, [None] * len(items))
    classes, rotated = len(scenes.KINDS[task].classes), task == "obb"
    rows = non_max_suppression(output, 0.001, 0.7, multi_label=True, max_det=300, nc=classes, rotated=rotated)
    return list(zip(rows, protos, strict=True))


def overlap(task: str, item: scenes.Scene, rows: torch.Tensor, protos: torch.Tensor | None) -> torch.Tensor:
    """Return [objects, N]: the overlap of each prediction with each object, 0..1."""
    boxes, extras = torch.from_numpy(item.boxes), rows[:, 6:]
    if task == "segment":
        wanted = torch.from_numpy(item.masks) == torch.arange(1, 1 + len(boxes))[:, None, None]
        found = process_mask(protos, extras, rows[:, :4], item.masks.shape, upsample=True)
        return mask_iou(wanted.flatten(1).float(), found.flatten(1).float())
    if task == "pose":
        keypoints = torch.from_numpy(item.keypoints)
        count = keypoints.shape[1]
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1) * 0.53  # as in Ultralytics' PoseValidator
        return kpt_iou(keypoints, extras.reshape(-1, count, 3), area, [1 / count] * count)
    if task == "obb":
        wanted = torch.from_numpy(turned_boxes(item, 1)).float()
        return batch_probiou(wanted, torch.cat([rows[:, :4], extras], 1))
    return box_iou(boxes, rows[:, :4])


def match(overlaps: torch.Tensor, rows: torch.Tensor, item: scenes.Scene) -> np.ndarray:
    """Return bool [N, 10]: True if the prediction matches an object of its class at the threshold."""
    validator = SimpleNamespace(iouv=IOUS)
    return BaseValidator.match_predictions(validator, rows[:, 5], torch.from_numpy(item.classes), overlaps).numpy()


@torch.inference_mode()
def accuracy(model: torch.nn.Module, seeds: range) -> np.ndarray:
    """Return [C]: the top-1 accuracy of each class."""
    images, labels = zip(*(picture("classify", seed, max(RECIPES["classify"].sides)) for seed in seeds), strict=True)
    best = np.concatenate([model(to_images(images[i : i + BATCH]))[0].argmax(1) for i in range(0, len(images), BATCH)])
    return np.array([(best == i)[np.array(labels) == i].mean() for i in range(len(scenes.KINDS["classify"].classes))])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=RECIPES, default="detect")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--weights", type=Path, help="default: those in models/demo")
    args = parser.parse_args()
    model, seeds = load(args.task, args.weights), range(args.images)
    names = list(scenes.KINDS[args.task].classes)
    if args.task == "classify":
        shares = accuracy(model, seeds)
        for name, share in zip([*names, "all"], [*shares, shares.mean()], strict=True):
            print(f"{name:16} top-1 {share:.3f}")
    else:
        classes, precision = average_precision(model, args.task, seeds)
        for name, values in zip([*(names[i] for i in classes), "all"], [*precision, precision.mean(0)], strict=True):
            print(f"{name:16} mAP50 {values[0]:.3f}  mAP50-95 {values.mean():.3f}")
