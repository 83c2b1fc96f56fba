"""Train the demo model from scratch: a full-width YOLOv8n on generated scenes, on a CPU.

Most batches are 320 px scenes and every fifth one is 640 px, at the same pixel scale, so that the model works at 640
for little more than the cost of 320. Scenes come from a pool in memory of which each batch renews a little: the set is
endless.
Stopping is safe: it goes on from `--state` when started again.

    python models/demo/train.py [--steps 4000] [--threads 2]
"""

import argparse
import copy
import datetime as dt
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scenes
import torch
import ultralytics
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.torch_utils import ModelEMA

HERE = Path(__file__).parent
SEED = 8
BATCHES = {320: 32, 640: 8}  # image side: images a batch
POOL = {320: 5000, 640: 800}  # image side: scenes kept in memory
LARGE_EVERY = 5
WARMUP_STEPS = 200
PEAK_LR, LAST_LR = 2e-3, 1e-5
BF16 = torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001  # twice as fast where the CPU has it


@dataclass
class Pool:
    """Scenes of one size; `draw` gives a batch and replaces its first scenes with new ones."""

    side: int
    next_seed: int
    items: list[scenes.Scene]

    @classmethod
    def generate(cls, side: int, first_seed: int) -> "Pool":
        count = POOL[side]
        with torch.multiprocessing.Pool(torch.get_num_threads()) as workers:
            seeds = [(seed, side, side) for seed in range(first_seed, first_seed + count)]
            return cls(side, first_seed + count, workers.starmap(scenes.scene, seeds, chunksize=50))

    def draw(self, rng: np.random.Generator) -> list[scenes.Scene]:
        size = BATCHES[self.side]
        picks = rng.choice(len(self.items), size, replace=False)
        for pick in picks[: max(1, size // 16)]:
            self.items[pick] = scenes.scene(self.next_seed, self.side, self.side)
            self.next_seed += 1
        return [self.items[pick] for pick in picks]


def to_batch(items: list[scenes.Scene], rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Ultralytics' batch: img float32 [B,3,H,W] 0..1, and per box batch_idx, cls, bboxes (cx cy w h, relative)."""
    images, index, classes, boxes = [], [], [], []
    for i, item in enumerate(items):
        flip = rng.random() < 0.5
        side = item.image.shape[0]
        corners = item.boxes / side
        if flip:
            corners = np.stack([1 - corners[:, 2], corners[:, 1], 1 - corners[:, 0], corners[:, 3]], 1)
        images.append(item.image[:, ::-1] if flip else item.image)
        index.append(np.full(len(corners), i, np.float32))
        classes.append(item.classes.astype(np.float32))
        boxes.append(np.concatenate([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return {
        "img": pixels.float().div_(255).contiguous(memory_format=torch.channels_last),
        "batch_idx": torch.from_numpy(np.concatenate(index)),
        "cls": torch.from_numpy(np.concatenate(classes)[:, None]),
        "bboxes": torch.from_numpy(np.concatenate(boxes).astype(np.float32)),
    }


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


def new_model() -> DetectionModel:
    model = DetectionModel("yolov8n.yaml", nc=len(scenes.NAMES), verbose=False)
    model.names = dict(enumerate(scenes.NAMES))
    model.args = get_cfg()
    return model.to(memory_format=torch.channels_last)


def new_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1 and p.requires_grad]
    return torch.optim.AdamW([{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}])


def save_weights(ema: ModelEMA, path: Path, step: int) -> None:
    """An ordinary Ultralytics checkpoint, in half precision as theirs are."""
    model = copy.deepcopy(ema.ema).to(memory_format=torch.contiguous_format).half().eval()
    model.criterion, model.args = None, {"task": "detect", "imgsz": 640, "model": "yolov8n.yaml"}
    checkpoint = {
        "epoch": -1,
        "model": model,
        "train_args": {"task": "detect", "imgsz": 640, "model": "yolov8n.yaml", "steps": step, "seed": SEED},
        "date": dt.datetime.now(dt.UTC).isoformat(),
        "version": ultralytics.__version__,
        "license": "AGPL-3.0",
    }
    partial = path.with_suffix(".partial")
    torch.save(checkpoint, partial)
    partial.replace(path)


def train(steps: int, weights: Path, state_path: Path) -> None:
    torch.manual_seed(SEED)
    model, step = new_model(), 0
    optimizer, ema = new_optimizer(model), ModelEMA(model, decay=0.999, tau=300)
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        step = state["step"]
        model.load_state_dict(state["model"])
        ema.ema.load_state_dict(state["ema"])
        ema.updates = step
        optimizer.load_state_dict(state["optimizer"])
    rng = np.random.default_rng([SEED, step])
    pools = {side: Pool.generate(side, 1_000_000 * (1 + i) + 20 * step) for i, side in enumerate(POOL)}
    print(f"pools ready, bf16={BF16}, from step {step}", flush=True)
    model.train()
    started, losses = time.monotonic(), []
    while step < steps:
        batch = to_batch(pools[640 if step % LARGE_EVERY == 0 else 320].draw(rng), rng)
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
        if step % 200 == 0 or step == steps:
            save_weights(ema, weights, step)
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
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--weights", type=Path, default=HERE / "yolov8n-demo.pt")
    parser.add_argument("--state", type=Path, default=HERE / "train-state.pt")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.steps, args.weights, args.state)
