"""First contact with a machine: every backend and precision that runs here, built, evaluated, stressed and timed.

Each engine is tried in a process of its own, so that one that crashes is a failed row and not the end.
"""

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from app import __version__, backends
from app.backends import Engine
from app.building.process import BuildProcess
from app.errors import BackendUnavailable, GateFailed, SetupError
from app.evaluation import compare, datasets
from app.model import ModelInfo
from app.serving import profile
from app.serving.spec import BuildRequest
from app.store.manifest import MANIFEST, Manifest, read_manifest
from app.system import gpu, host, processes
from app.system.processes import ChildDied
from app.vision import matching, postprocess
from app.vision.postprocess import Outputs, Thresholds
from app.vision.preprocess import Pixels

MIXED = 8  # images in the batches that mix them
TIMED_S = 2.0  # a batch size is timed for so long, and at least three times
MAX_BOX_PX, MAX_SCORE = 0.5, 0.01  # between an image alone and in a batch; kernels differ with the batch

OK = "ok"


@dataclass(slots=True)
class Row:
    """One backend in one precision."""

    backend: str
    precision: str
    problem: str = ""  # why it failed, or why it was not tried
    failed: bool = False
    manifest: dict[str, Any] | None = None
    checks: dict[str, str] = field(default_factory=dict)  # "ok" or what is wrong
    images_per_second: dict[int, float] = field(default_factory=dict)  # by batch size, the engine alone

    def fail(self, problem: str) -> None:
        self.failed, self.problem = True, problem


def run(order: BuildRequest, tell: Callable[[str], None]) -> list[Row]:
    """Try what the order leaves open: every backend for "auto", every precision for "auto"."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="yolopard-selftest-") as scratch:
        for backend, precision, reason in _candidates(order):
            row = Row(backend, precision, reason, failed=bool(reason) and order.backend == backend)
            if not reason:
                tell(f"{backend} {precision}")
                order_of_row = replace(order, backend=backend, precision=precision, engines=Path(scratch))
                try:
                    row = processes.call(_try, row, order_of_row)
                except ChildDied:
                    row.fail("the process crashed")
            rows.append(row)
    return rows


def _candidates(order: BuildRequest) -> Iterator[tuple[str, str, str]]:
    """Backend, precision, and why it cannot be tried."""
    for name in backends.PREFERRED if order.backend == "auto" else (order.backend,):
        try:
            backend = backends.get(name)
        except BackendUnavailable as error:
            yield name, order.precision, str(error)
            continue
        for precision in backend.PRECISIONS if order.precision == "auto" else (order.precision,):
            yield name, precision, ""


def _try(row: Row, order: BuildRequest) -> Row:
    try:
        manifest = _build(order)
        row.manifest = manifest.to_json()
        shortcomings = manifest.gate.shortcomings(row.precision, order.limits)
        row.checks["gate"] = "; ".join(shortcomings) or OK
        if not shortcomings:
            _stress(row, order, manifest)
    except SetupError as error:
        row.fail(str(error))
    except Exception as error:  # the row tells it; the others go on
        row.fail(f"{type(error).__name__}: {error}")
    if wrong := [f"{name}: {text}" for name, text in row.checks.items() if text != OK]:
        row.fail("; ".join(wrong))
    return row


def _build(order: BuildRequest) -> Manifest:
    """The manifest of this very precision, also of one that the gate refused."""
    with contextlib.suppress(GateFailed):
        BuildProcess(order).run(lambda _: None)
    (path,) = order.engines.glob(f"{order.name}-{order.backend}-{order.precision}-*/{MANIFEST}")
    return read_manifest(path.parent)


def _stress(row: Row, order: BuildRequest, manifest: Manifest) -> None:
    backend, folder = backends.get(order.backend), order.engines / manifest.fingerprint.key
    frames = _frames(manifest.model)
    engine = backend.load(folder, 2, host.cpus())
    baseline = [[engine.infer(0, [frame])[0] for frame in of_shape] for of_shape in frames]
    row.checks["mixing"] = _mixing(engine, manifest.model, frames, baseline, min(order.batch, MIXED))
    row.checks["instances"] = _instances(engine, manifest.model, frames, baseline)
    engine.close()
    if order.backend == "tensorrt":
        row.checks["graphs"] = _graphs(folder, manifest.model, frames)
    instances = backends.instances(backend, None, host.cpus())
    engine = backend.load(folder, instances, host.cpus())
    for size in sorted({1, min(8, order.batch), order.batch}):
        row.images_per_second[size] = round(_rate(engine, instances, frames[-1], size), 2)
    engine.close()


def _frames(model: ModelInfo) -> list[list[Pixels]]:
    """MIXED different ones of each shape, the largest last; square where none are listed."""
    made = []
    for shape in sorted(model.shapes or [(model.imgsz, model.imgsz)], key=math.prod):
        frames = [frame for _, _, frame in compare.frames(datasets.samples(), model, [shape])]
        made.append([np.roll(frames[i % len(frames)], 32 * i, axis=1) for i in range(MIXED)])
    return made


def _mixing(
    engine: Engine, model: ModelInfo, frames: list[list[Pixels]], baseline: list[list[Outputs]], size: int
) -> str:
    """Every image in every place of a batch of others."""
    for first in range(MIXED):
        picked = [(first + i) % MIXED for i in range(size)]
        for of_shape, expected in zip(frames, baseline, strict=True):
            found = engine.infer(0, [of_shape[i] for i in picked])
            for outputs, i in zip(found, picked, strict=True):
                if wrong := _difference(expected[i], outputs, model):
                    return f"an image in a batch of {size} {wrong}"
    return OK


def _instances(engine: Engine, model: ModelInfo, frames: list[list[Pixels]], baseline: list[list[Outputs]]) -> str:
    """Two instances at the same time, with different shapes if there are any."""

    def work(instance: int) -> list[str]:
        wrong = []
        for shape in range(len(frames))[:: 1 - 2 * instance]:
            for i in range(instance, MIXED, 2):
                outputs = engine.infer(instance, [frames[shape][i], frames[shape][i - 1]])[0]
                wrong.append(_difference(baseline[shape][i], outputs, model))
        return [text for text in wrong if text]

    with ThreadPoolExecutor(2) as pool:
        wrong = [text for of_instance in pool.map(work, range(2)) for text in of_instance]
    return f"an image beside another instance's {wrong[0]}" if wrong else OK


def _graphs(folder: Path, model: ModelInfo, frames: list[list[Pixels]]) -> str:
    """CUDA graphs give what the same kernels give when they are enqueued one by one."""
    from app.backends.tensorrt.backend import open_plans

    found = {}
    for graphs in (True, False):
        engine = open_plans(folder, 1, graphs=graphs)
        if graphs and not engine.captured:
            return "not captured; batches are enqueued"
        found[graphs] = [outputs for of_shape in frames for outputs in engine.infer(0, of_shape)]
        engine.close()
    both = zip(found[True], found[False], strict=True)
    wrong = [text for one, other in both if (text := _difference(one, other, model))]
    return f"with CUDA graphs an image {wrong[0]}" if wrong else OK


def _difference(expected: Outputs, outputs: Outputs, model: ModelInfo) -> str:
    """How the detections differ, in words; "" if they do not."""
    first, second = (postprocess.select(each, Thresholds(), model) for each in (expected, outputs))
    both = matching.pairs(first, second)
    box_px = float(np.abs(first.boxes[both[:, 0]] - second.boxes[both[:, 1]]).max(initial=0))
    score = float(np.abs(first.scores[both[:, 0]] - second.scores[both[:, 1]]).max(initial=0))
    if len(both) == len(first) == len(second) and box_px <= MAX_BOX_PX and score <= MAX_SCORE:
        return ""
    return f"gives {len(both)} of its {len(first)} boxes, off by up to {box_px:.3f} px and {score:.4f} in score"


def _rate(engine: Engine, instances: int, frames: list[Pixels], size: int) -> float:
    """Images per second with all instances busy."""
    batch = [frames[i % len(frames)] for i in range(size)]

    def work(instance: int) -> None:
        engine.infer(instance, batch)

    seconds = size / profile.images_per_second(instances, size, work, rounds=1)
    return profile.images_per_second(instances, size, work, rounds=max(3, round(TIMED_S / seconds / instances)))


def report(order: BuildRequest, rows: list[Row]) -> dict[str, Any]:
    """All that was seen, for people who were not there."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "yolopard": __version__,
        "machine": host.facts(),
        "gpu": gpu.facts(),
        "weights": order.name,
        "imgsz": order.imgsz,
        "shapes": order.shapes,
        "batch": order.batch,
        "rows": [asdict(row) for row in rows],
    }


def table(rows: list[Row]) -> str:
    """Markdown."""
    sizes = sorted({size for row in rows for size in row.images_per_second})
    head = ["engine", "result", "build s", "agreement", "box px", "score", "mAP50-95", "reference's", "MB"]
    lines = [[*head, *(f"img/s at {size}" for size in sizes)]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        rates = [f"{row.images_per_second[size]:.1f}" if size in row.images_per_second else "" for size in sizes]
        result = f"FAILED: {row.problem}" if row.failed else row.problem or OK
        lines.append([f"{row.backend} {row.precision}", result, *_cells(row.manifest), *rates])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(manifest: dict[str, Any] | None) -> list[str]:
    if manifest is None or manifest["gate"]["figures"] is None:
        return [""] * 7
    figures, built = manifest["gate"]["figures"], manifest["built"]
    size = built.get("loaded_device_bytes") or built["engine_bytes"]
    precision = [figures[name] for name in ("map50_95", "reference_map50_95")]
    return [
        f"{built['seconds']}",
        f"{figures['agreement']:.4f} of {figures['boxes']}",
        f"{figures['box_px']:.3f}",
        f"{figures['score']:.4f}",
        *("" if value is None else f"{value:.4f}" for value in precision),
        f"{size / 1e6:.1f}",
    ]
