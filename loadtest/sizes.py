"""Builds models of every size and task, with other numbers of classes and frame sizes, and compares with PyTorch FP32.

    .venv/bin/python loadtest/sizes.py [words of the models to build]

The weights are random values from a seed in Ultralytics' architectures, so they find no objects: this only checks that
such a model builds and that an engine computes the numbers of PyTorch. The gate and tests/ check accuracy with trained
weights. A row matches if PyTorch has one within 0.5 px, including keypoints, whose score is within 0.5 % plus one
millionth; the order of nearly equal scores is ignored. Prints a Markdown table; exit status 1 if anything is not built
or does not match.
"""

import logging
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from ultralytics import YOLO
from ultralytics.nn.tasks import yaml_model_load

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "models" / "demo")]

import scenes  # noqa: E402

from app import backends  # noqa: E402
from app.backends import BuildContext, pytorch  # noqa: E402
from app.errors import YolopardError  # noqa: E402
from app.graphs import export, serving_graph  # noqa: E402

TASKS = ("", "-seg", "-pose", "-obb", "-cls")
SIDES = {"n": 640, "s": 640, "m": 320, "l": 320, "x": 320}  # px: larger ones take minutes on two cores
MAX_PX, SCORE_RATIO, MIN_SCORE_TOLERANCE = 0.5, 0.005, 1e-6
pytorch.K = 1 << 20  # every anchor, because an engine may choose other rows of nearly equal score than PyTorch


@dataclass(frozen=True)
class Case:
    """An architecture of Ultralytics such as yolov8n-seg; `classes` None means its own number."""

    name: str
    imgsz: int
    classes: int | None = None


CASES = [
    *(Case(f"yolov8{size}{task}", side) for size, side in SIDES.items() for task in TASKS),
    *(Case(f"yolov8n{task}", 320, classes) for task in TASKS for classes in (1, 3, 365)),
    *(Case("yolov8n", side) for side in (32, 160, 416, 1280)),
    *(Case(f"{family}n{task}", 320) for family in ("yolo11", "yolo26") for task in TASKS),
    Case("yolov10n", 320),
]


def make(case: Case, folder: Path) -> Path:
    """Write weights from a seed that keep the variance of their input in every layer; return the path."""
    facts = yaml_model_load(f"{case.name}.yaml")
    described = folder / f"{case.name}.yaml"
    described.write_text(yaml.safe_dump(facts | ({"nc": case.classes} if case.classes else {})))
    torch.manual_seed(0)
    model = YOLO(described)
    for module in model.model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.bias is None:
            torch.nn.init.kaiming_normal_(module.weight)
    weights = folder / f"{case.name}.pt"
    model.save(weights)
    return weights


def difference(ours: tuple[np.ndarray, ...], theirs: tuple[np.ndarray, ...], task: str) -> tuple[float, float, float]:
    """Return the share of matching rows and their maximum difference in px and in score."""
    if task == "classify":
        off = np.abs(ours[0] - theirs[0])
        return float((off <= SCORE_RATIO * theirs[0] + MIN_SCORE_TOLERANCE).mean()), 0.0, float(off.max())
    rows, expected = ours[0], theirs[0]
    place = [i for i in range(rows.shape[1]) if i not in (4, 5)]
    px, score, allowed = (np.zeros(len(rows)) for _ in range(3))
    for i, row in enumerate(rows):
        off = np.abs(expected[:, place] - row[place]).max(1)
        px[i] = off.min()
        wanted = expected[off.argmin(), 4]
        score[i], allowed[i] = abs(wanted - row[4]), SCORE_RATIO * wanted + MIN_SCORE_TOLERANCE
    matching = (px <= MAX_PX) & (score <= allowed)
    for one, other in zip(ours[1:], theirs[1:], strict=True):  # prototypes
        matching &= bool(np.abs(one - other).max() <= 1e-3 * max(1, np.abs(other).max()))
    return float(matching.mean()), float(px[matching].max(initial=0)), float(score[matching].max(initial=0))


def build(case: Case, backend_name: str, weights: Path, folder: Path) -> tuple[backends.Engine, str]:
    """Return a loaded engine and the task of its model."""
    backend = backends.get(backend_name)
    for part in ("plain", "engine"):
        (folder / part).mkdir(parents=True)
    plain = export.to_plain_onnx(weights, case.imgsz, folder / "plain")
    model = serving_graph.to_serving_graph(plain, case.name, case.imgsz, folder / "graph.onnx")
    context = BuildContext(
        weights=weights,
        graphs=[folder / "graph.onnx"],
        model=model,
        precision="fp32",
        batch=2,
        instances=1,
        calibration=lambda _: iter(()),
        folder=folder / "engine",
        cache=folder,
        report=lambda _: None,
    )
    backend.build(context)
    return backend.load(folder / "engine", 1, 2), model.task


def main(words: list[str]) -> int:
    failed = 0
    logging.getLogger("ultralytics").setLevel(logging.WARNING)
    heads = ("model", "classes", "size, px", "parameters", "engine", "build, s", "matching rows")
    print(f"| {' | '.join(heads)} | max difference, px | max difference of score |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for case in CASES:
        if words and not any(word in case.name for word in words):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            weights = make(case, Path(scratch))
            reference = pytorch.open_weights(weights, 2)
            parameters = sum(each.numel() for each in export.load_module(weights).parameters()) / 1e6
            frames = [scenes.scene(seed, case.imgsz, case.imgsz).image for seed in range(2)]
            expected = reference.infer(0, frames)
            for name in ("openvino", "onnxruntime"):
                facts = f"| {case.name} | {case.classes or 'own'} | {case.imgsz} | {parameters:.1f} M | {name} |"
                started = time.monotonic()
                try:
                    engine, task = build(case, name, weights, Path(scratch) / name)
                except YolopardError as error:
                    failed += 1
                    print(f"{facts} **not built**: {error} | | | |", flush=True)
                    continue
                seconds = time.monotonic() - started
                found = engine.infer(0, frames)
                each = [difference(ours, theirs, task) for ours, theirs in zip(found, expected, strict=True)]
                matching, px, score = min(a for a, _, _ in each), max(p for _, p, _ in each), max(s for _, _, s in each)
                failed += matching < 1
                print(f"{facts} {seconds:.1f} | {matching:.2%} | {px:.4f} | {score:.0e} |", flush=True)
                engine.close()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
