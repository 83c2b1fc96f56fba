"""Score the demo model on generated scenes that it never saw, as Ultralytics' validator does.

python models/demo/evaluate.py [--images 500]
"""

import argparse
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import scenes
import torch
from ultralytics import YOLO
from ultralytics.engine.validator import BaseValidator
from ultralytics.utils.metrics import ap_per_class, box_iou
from ultralytics.utils.nms import non_max_suppression

HERE = Path(__file__).parent
SIDE = 640  # seeds 0 and up at this size; training begins at a million
BATCH = 10
IOUS = torch.linspace(0.5, 0.95, 10)


def evaluate(weights: Path, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Class ids [C] and average precision [C, 10], at the ten IoU thresholds of COCO."""
    model = YOLO(weights).model.float().fuse().eval()
    hits, scores, found, wanted = [], [], [], []
    for first in range(0, images, BATCH):
        items = [scenes.scene(seed, SIDE, SIDE) for seed in range(first, min(first + BATCH, images))]
        pixels = torch.from_numpy(np.stack([item.image for item in items])).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            predictions = non_max_suppression(model(pixels), 0.001, 0.7, multi_label=True, max_det=300)
        for item, rows in zip(items, predictions, strict=True):
            hits.append(match(rows, item))
            scores.append(rows[:, 4].numpy())
            found.append(rows[:, 5].numpy())
            wanted.append(item.classes)
        print(f"\r{min(first + BATCH, images)}/{images}", end="", flush=True)
    print()
    outcome = ap_per_class(*(np.concatenate(column) for column in (hits, scores, found, wanted)))
    return outcome[6], outcome[5]


def match(rows: torch.Tensor, item: scenes.Scene) -> np.ndarray:
    """bool [N, 10]: which predictions hit an object of their class, at each IoU."""
    iou = box_iou(torch.from_numpy(item.boxes), rows[:, :4])
    validator = SimpleNamespace(iouv=IOUS)
    return BaseValidator.match_predictions(validator, rows[:, 5], torch.from_numpy(item.classes), iou).numpy()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--weights", type=Path, default=HERE / "yolov8n-demo.pt")
    args = parser.parse_args()
    classes, precision = evaluate(args.weights, args.images)
    for class_id, values in zip(classes, precision, strict=True):
        print(f"{scenes.NAMES[int(class_id)]:16} mAP50 {values[0]:.3f}  mAP50-95 {values.mean():.3f}")
    print(f"{'all':16} mAP50 {precision[:, 0].mean():.3f}  mAP50-95 {precision.mean():.3f}")
