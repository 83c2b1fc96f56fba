"""Train a demo model from scratch on generated scenes, on a CPU.

The detect model is a full-width YOLOv8n: most batches are 320 px scenes and every fifth one is 640 px at the same pixel
scale, so that the model works at 640 for little more than the cost of 320. The other tasks use half that width and
images of one small size. Scenes come from a pool in memory; each batch replaces some of them, so the set is endless.
Training can be stopped: it continues from `--state` when started again.

    python models/demo/train.py [--task detect] [--steps 4000] [--threads 2]
"""

import argparse
import copy
import datetime as dt
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scenes
import torch
import ultralytics
from numpy.typing import NDArray
from ultralytics.cfg import get_cfg
from ultralytics.nn import tasks
from ultralytics.utils.ops import xyxyxyxy2xywhr
from ultralytics.utils.torch_utils import ModelEMA

HERE = Path(__file__).parent
SEED = 8
LARGE_EVERY = 5
WARMUP_STEPS = 100
PEAK_LR, LAST_LR = 2e-3, 1e-5
BF16 = torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001  # twice as fast if the CPU supports it


@dataclass(frozen=True)
class Recipe:
    """The model and training of a task."""

    model: type[torch.nn.Module]
    config: str
    width: float  # width multiple of its layers; n has 0.25
    steps: int
    sides: dict[int, tuple[int, int]]  # image side: images per batch, images kept in memory
    weights: str


RECIPES = {
    "detect": Recipe(
        tasks.DetectionModel, "yolov8n.yaml", 0.25, 4000, {320: (32, 5000), 640: (8, 800)}, "yolov8n-demo.pt"
    ),
    "segment": Recipe(
        tasks.SegmentationModel, "yolov8n-seg.yaml", 0.125, 500, {160: (16, 1000)}, "yolov8-demo-segment.pt"
    ),
    "pose": Recipe(tasks.PoseModel, "yolov8n-pose.yaml", 0.125, 1000, {160: (16, 2000)}, "yolov8-demo-pose.pt"),
    "obb": Recipe(tasks.OBBModel, "yolov8n-obb.yaml", 0.125, 600, {160: (16, 2000)}, "yolov8-demo-obb.pt"),
    "classify": Recipe(
        tasks.ClassificationModel, "yolov8n-cls.yaml", 0.125, 400, {96: (32, 1500)}, "yolov8-demo-classify.pt"
    ),
}

Picture = scenes.Scene | tuple[scenes.Image, int]


def picture(task: str, seed: int, side: int) -> Picture:
    return scenes.crop(seed, side) if task == "classify" else scenes.scene(seed, side, side, task)


@dataclass
class Pool:
    """Images of one size; `draw` returns a batch and replaces some of its images in the pool."""

    task: str
    side: int
    next_seed: int
    items: list[Picture]

    @classmethod
    def generate(cls, task: str, side: int, first_seed: int) -> "Pool":
        _, count = RECIPES[task].sides[side]
        with torch.multiprocessing.Pool() as workers:
            seeds = [(task, seed, side) for seed in range(first_seed, first_seed + count)]
            return cls(task, side, first_seed + count, workers.starmap(picture, seeds, chunksize=50))

    def draw(self, rng: np.random.Generator) -> list[Picture]:
        size, _ = RECIPES[self.task].sides[self.side]
        picks = rng.choice(len(self.items), size, replace=False)
        for pick in picks[: max(1, size // 16)]:
            self.items[pick] = picture(self.task, self.next_seed, self.side)
            self.next_seed += 1
        return [self.items[pick] for pick in picks]


def to_batch(items: list[Picture], task: str, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Return Ultralytics' batch: img float32 [B,3,H,W] 0..1 and the labels for the loss of the task."""
    if task != "classify":
        return to_labelled(items, task, rng)
    images, labels = zip(*items, strict=True)
    return {"img": to_images(images), "cls": torch.tensor(labels)}


def to_labelled(items: list[scenes.Scene], task: str, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Return img, masks uint8 [B,H/4,W/4] of 1 + index, and for each object batch_idx, cls, keypoints [K,3] and bboxes.

    bboxes: relative cx cy w h, for obb with the angle in radians.
    """
    kind = scenes.KINDS[task]
    items = [mirrored(item, kind.flip) if rng.random() < 0.5 else item for item in items]
    side = items[0].masks.shape[0]
    boxes = [turned_boxes(item, side) if task == "obb" else upright_boxes(item, side) for item in items]
    return {
        "img": to_images([item.image for item in items]),
        "masks": torch.from_numpy(np.stack([item.masks[2::4, 2::4] for item in items])),
        "batch_idx": torch.from_numpy(np.repeat(np.arange(len(items)), [len(each) for each in boxes])).float(),
        "cls": torch.from_numpy(np.concatenate([item.classes for item in items])[:, None]).float(),
        "bboxes": torch.from_numpy(np.concatenate(boxes).astype(np.float32)),
        "keypoints": torch.from_numpy(np.concatenate([item.keypoints / [side, side, 1] for item in items])).float(),
    }


def to_images(images: Sequence[scenes.Image]) -> torch.Tensor:
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return pixels.float().div_(255).contiguous(memory_format=torch.channels_last)


def mirrored(item: scenes.Scene, flip: tuple[int, ...]) -> scenes.Scene:
    """Return the scene mirrored horizontally, with left and right keypoints exchanged."""
    width = item.masks.shape[1]
    boxes = np.stack([width - item.boxes[:, 2], item.boxes[:, 1], width - item.boxes[:, 0], item.boxes[:, 3]], 1)
    across, offset = np.array([-1, 1], np.float32), np.array([width, 0], np.float32)
    keypoints = item.keypoints[:, list(flip)]
    keypoints[..., :2] = keypoints[..., :2] * across + offset
    return scenes.Scene(
        item.image[:, ::-1], boxes, item.classes, item.masks[:, ::-1], item.corners * across + offset, keypoints
    )


def upright_boxes(item: scenes.Scene, side: int) -> NDArray[np.float32]:
    """Return [N, 4]: relative cx cy w h."""
    return np.concatenate([item.boxes[:, :2] + item.boxes[:, 2:], 2 * (item.boxes[:, 2:] - item.boxes[:, :2])], 1) / (
        2 * side
    )


def turned_boxes(item: scenes.Scene, side: int) -> NDArray[np.float32]:
    """Return [N, 5]: relative cx cy w h and the angle in radians."""
    return xyxyxyxy2xywhr(item.corners.reshape(-1, 8)).reshape(-1, 5) / [side, side, side, side, 1]


def to_float(preds: object) -> object:
    if isinstance(preds, torch.Tensor):
        return preds.float()
    if isinstance(preds, dict):
        return {name: to_float(value) for name, value in preds.items()}
    return [to_float(value) for value in preds]


def learning_rate(step: int, steps: int) -> float:
    if step < WARMUP_STEPS:
        return PEAK_LR * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return LAST_LR + (PEAK_LR - LAST_LR) * (1 + math.cos(math.pi * progress)) / 2


def new_model(task: str) -> torch.nn.Module:
    kind, recipe = scenes.KINDS[task], RECIPES[task]
    config = tasks.yaml_model_load(recipe.config) | {"kpt_shape": [len(kind.keypoints), 3]}
    config["scales"]["n"] = [0.33, recipe.width, 1024]
    model = recipe.model(config, nc=len(kind.classes), verbose=False)
    model.names = dict(enumerate(kind.classes))
    model.args = get_cfg()
    return model.to(memory_format=torch.channels_last)


def new_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1 and p.requires_grad]
    return torch.optim.AdamW([{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}])


def save_weights(ema: ModelEMA, path: Path, task: str, step: int) -> None:
    """Write an Ultralytics checkpoint in half precision, as Ultralytics does."""
    recipe = RECIPES[task]
    args = {"task": task, "imgsz": max(recipe.sides), "model": recipe.config}
    model = copy.deepcopy(ema.ema).to(memory_format=torch.contiguous_format).half().eval()
    model.criterion, model.args = None, args
    checkpoint = {
        "epoch": -1,
        "model": model,
        "train_args": args | {"steps": step, "seed": SEED},
        "date": dt.datetime.now(dt.UTC).isoformat(),
        "version": ultralytics.__version__,
        "license": "AGPL-3.0",
    }
    partial = path.with_suffix(".partial")
    torch.save(checkpoint, partial)
    partial.replace(path)


def train(task: str, steps: int, weights: Path, state_path: Path) -> None:
    torch.manual_seed(SEED)
    model, step = new_model(task), 0
    optimizer, ema = new_optimizer(model), ModelEMA(model, decay=0.999, tau=300)
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        step = state["step"]
        model.load_state_dict(state["model"])
        ema.ema.load_state_dict(state["ema"])
        ema.updates = step
        optimizer.load_state_dict(state["optimizer"])
    rng = np.random.default_rng([SEED, step])
    pools = [Pool.generate(task, side, 1_000_000 * (1 + i) + 20 * step) for i, side in enumerate(RECIPES[task].sides)]
    print(f"pools ready, bf16={BF16}, from step {step}", flush=True)
    model.train()
    started, losses = time.monotonic(), []
    while step < steps:
        batch = to_batch(pools[-1 if step % LARGE_EVERY == 0 else 0].draw(rng), task, rng)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
            preds = model(batch["img"])
        loss, parts = model.loss(batch, to_float(preds))
        loss.sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update(model)
        step += 1
        losses.append([float(value) for value in parts.values()])
        if step % 50 == 0:
            seconds, started = time.monotonic() - started, time.monotonic()
            means = " ".join(f"{name} {value:.3f}" for name, value in zip(parts, np.mean(losses, 0), strict=True))
            losses.clear()
            print(f"{step}/{steps} {means} {seconds / 50:.2f} s a step", flush=True)
        if step % 100 == 0 or step == steps:
            save_weights(ema, weights, task, step)
            state = {
                "step": step,
                "model": model.state_dict(),
                "ema": ema.ema.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            torch.save(state, state_path.with_suffix(".partial"))
            state_path.with_suffix(".partial").replace(state_path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=RECIPES, default="detect")
    parser.add_argument("--steps", type=int, help="default: those of the task")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", type=Path, help="default: models/demo/yolov8*-demo*.pt")
    parser.add_argument("--state", type=Path, help="default: models/demo/train-state.TASK.pt")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recipe = RECIPES[args.task]
    train(
        args.task,
        args.steps or recipe.steps,
        args.weights or HERE / recipe.weights,
        args.state or HERE / f"train-state.{args.task}.pt",
    )
