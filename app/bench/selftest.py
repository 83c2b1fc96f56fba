"""`yolopard selftest`: builds, evaluates, stress-tests and times every backend and precision that runs here.

Each engine runs in its own process, so a crash is only a failed row.
"""

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from app import backends
from app.backends import Engine
from app.bench.context import circumstances, markdown
from app.building.process import BuildProcess
from app.errors import BackendUnavailable, GateFailed, SetupError
from app.evaluation import compare, datasets
from app.model import ModelInfo
from app.serving import profile
from app.serving.spec import BuildRequest
from app.store.manifest import MANIFEST, Manifest, read_manifest
from app.system import host, processes
from app.system.processes import ChildDied
from app.vision import matching, postprocess
from app.vision.postprocess import Outputs, Thresholds
from app.vision.preprocess import Pixels

TEST_IMAGES = 8  # different images, which are combined to batches
TIMED_S = 2.0  # time per batch size; at least three batches
MAX_BOX_PX, MAX_SCORE = 0.5, 0.01  # between a single image and a batch: kernels depend on the size

OK = "ok"


@dataclass(slots=True)
class Row:
    """One backend in one precision."""

    backend: str
    precision: str
    problem: str = ""  # the reason why it failed, or was not tried
    failed: bool = False
    manifest: dict[str, Any] | None = None
    checks: dict[str, str] = field(default_factory=dict)  # "ok" or the problem
    images_per_second: dict[int, float] = field(default_factory=dict)  # of only the engine, by batch size

    def fail(self, problem: str) -> None:
        self.failed, self.problem = True, problem


def run(request: BuildRequest, tell: Callable[[str], None]) -> list[Row]:
    """Try the requested backend and precision; "auto" means all of them. Calls `tell` with the name of each try."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="yolopard-selftest-") as scratch:
        for backend, precision, reason in _candidates(request):
            row = Row(backend, precision, reason, failed=bool(reason) and request.backend == backend)
            if not reason:
                tell(f"{backend} {precision}")
                row_request = replace(request, backend=backend, precision=precision, engines=Path(scratch))
                try:
                    row = processes.call(_try, row, row_request)
                except ChildDied:
                    row.fail("the process crashed")
            rows.append(row)
    return rows


def _candidates(request: BuildRequest) -> Iterator[tuple[str, str, str]]:
    """Yield backend, precision, and the reason why it cannot be tried, if there is one."""
    for name in backends.PREFERRED if request.backend == "auto" else (request.backend,):
        try:
            backend = backends.get(name)
        except BackendUnavailable as error:
            yield name, request.precision, str(error)
            continue
        for precision in backend.PRECISIONS if request.precision == "auto" else (request.precision,):
            yield name, precision, ""


def _try(row: Row, request: BuildRequest) -> Row:
    try:
        manifest = _build(request)
        row.manifest = manifest.to_json()
        shortcomings = manifest.gate.shortcomings(row.precision, request.limits)
        row.checks["gate"] = "; ".join(shortcomings) or OK
        if not shortcomings:
            _stress(row, request, manifest)
    except SetupError as error:
        row.fail(str(error))
    except Exception as error:  # reported in the row; the other rows are still tried
        row.fail(f"{type(error).__name__}: {error}")
    if wrong := [f"{name}: {text}" for name, text in row.checks.items() if text != OK]:
        row.fail("; ".join(wrong))
    return row


def _build(request: BuildRequest) -> Manifest:
    """Build the engine. Returns the manifest of exactly this precision, even if the gate refused it."""
    with contextlib.suppress(GateFailed):
        BuildProcess(request).run(lambda _: None)
    (path,) = request.engines.glob(f"{request.name}-{request.backend}-{request.precision}-*/{MANIFEST}")
    return read_manifest(path.parent)


def _stress(row: Row, request: BuildRequest, manifest: Manifest) -> None:
    backend, folder = backends.get(request.backend), request.engines / manifest.fingerprint.key
    frames = _frames(manifest.model)
    engine = backend.load(folder, 2, host.cpus())
    baseline = [[engine.infer(0, [frame])[0] for frame in of_shape] for of_shape in frames]
    row.checks["mixing"] = _mixing(engine, manifest.model, frames, baseline, min(request.batch, TEST_IMAGES))
    row.checks["instances"] = _instances(engine, manifest.model, frames, baseline)
    engine.close()
    if request.backend == "tensorrt":
        row.checks["graphs"] = _graphs(folder, manifest.model, frames)
    instances = backends.instances(backend, None, host.cpus())
    engine = backend.load(folder, instances, host.cpus())
    for size in sorted({1, min(8, request.batch), request.batch}):
        row.images_per_second[size] = round(_rate(engine, instances, frames[-1], size), 2)
    engine.close()


def _frames(model: ModelInfo) -> list[list[Pixels]]:
    """Return TEST_IMAGES different frames per shape, the largest shape last; square if the model lists no shapes."""
    made = []
    for shape in sorted(model.shapes or [(model.imgsz, model.imgsz)], key=math.prod):
        frames = [frame for _, _, frame in compare.frames(datasets.samples(), model, [shape])]
        made.append([np.roll(frames[i % len(frames)], 32 * i, axis=1) for i in range(TEST_IMAGES)])
    return made


def _mixing(
    engine: Engine, model: ModelInfo, frames: list[list[Pixels]], baseline: list[list[Outputs]], size: int
) -> str:
    """Test each image in each position of a batch with others. Returns "ok" or the problem."""
    for first in range(TEST_IMAGES):
        picked = [(first + i) % TEST_IMAGES for i in range(size)]
        for of_shape, expected in zip(frames, baseline, strict=True):
            found = engine.infer(0, [of_shape[i] for i in picked])
            for outputs, i in zip(found, picked, strict=True):
                if wrong := _difference(expected[i], outputs, model):
                    return f"an image in a batch of {size} {wrong}"
    return OK


def _instances(engine: Engine, model: ModelInfo, frames: list[list[Pixels]], baseline: list[list[Outputs]]) -> str:
    """Test two instances at the same time, with different shapes if there are several. Returns "ok" or the problem."""

    def work(instance: int) -> list[str]:
        wrong = []
        for shape in range(len(frames))[:: 1 - 2 * instance]:
            for i in range(instance, TEST_IMAGES, 2):
                outputs = engine.infer(instance, [frames[shape][i], frames[shape][i - 1]])[0]
                wrong.append(_difference(baseline[shape][i], outputs, model))
        return [text for text in wrong if text]

    with ThreadPoolExecutor(2) as pool:
        wrong = [text for of_instance in pool.map(work, range(2)) for text in of_instance]
    return f"an image in parallel with another instance {wrong[0]}" if wrong else OK


def _graphs(folder: Path, model: ModelInfo, frames: list[list[Pixels]]) -> str:
    """Compare CUDA graphs with the same kernels without graphs. Returns "ok" or the problem."""
    from app.backends.tensorrt.backend import open_plans

    found = {}
    for graphs in (True, False):
        engine = open_plans(folder, 1, graphs=graphs)
        if graphs and not engine.captured:
            return "CUDA graphs could not be captured"
        found[graphs] = [outputs for of_shape in frames for outputs in engine.infer(0, of_shape)]
        engine.close()
    both = zip(found[True], found[False], strict=True)
    wrong = [text for one, other in both if (text := _difference(one, other, model))]
    return f"with CUDA graphs an image {wrong[0]}" if wrong else OK


def _difference(expected: Outputs, outputs: Outputs, model: ModelInfo) -> str:
    """Return a text with the difference of the detections; empty if they are the same."""
    first, second = (postprocess.select(each, Thresholds(), model) for each in (expected, outputs))
    both = matching.pairs(first, second)
    box_px = float(np.abs(first.boxes[both[:, 0]] - second.boxes[both[:, 1]]).max(initial=0))
    score = float(np.abs(first.scores[both[:, 0]] - second.scores[both[:, 1]]).max(initial=0))
    if len(both) == len(first) == len(second) and box_px <= MAX_BOX_PX and score <= MAX_SCORE:
        return ""
    return f"gives {len(both)} of its {len(first)} boxes, off by up to {box_px:.3f} px and {score:.4f} in score"


def _rate(engine: Engine, instances: int, frames: list[Pixels], size: int) -> float:
    """Return the images per second with all instances busy."""
    batch = [frames[i % len(frames)] for i in range(size)]

    def work(instance: int) -> None:
        engine.infer(instance, batch)

    seconds = size / profile.images_per_second(instances, size, work, rounds=1)
    return profile.images_per_second(instances, size, work, rounds=max(3, round(TIMED_S / seconds / instances)))


def report(request: BuildRequest, rows: list[Row]) -> dict[str, Any]:
    """Return all results as JSON."""
    return circumstances() | {
        "weights": request.name,
        "imgsz": request.imgsz,
        "shapes": request.shapes,
        "batch": request.batch,
        "rows": [asdict(row) for row in rows],
    }


def table(rows: list[Row]) -> str:
    """Return the results as a Markdown table."""
    sizes = sorted({size for row in rows for size in row.images_per_second})
    head = [
        "engine",
        "result",
        "build time, s",
        "reference boxes found",
        "max box difference, px",
        "max score difference",
        "mAP50-95",
        "mAP50-95 of the reference",
        "size, MB",
    ]
    head += [f"images/s, batch {size}" for size in sizes]
    lines = []
    for row in rows:
        rates = [f"{row.images_per_second[size]:.1f}" if size in row.images_per_second else "" for size in sizes]
        result = f"FAILED: {row.problem}" if row.failed else row.problem or OK
        lines.append([f"{row.backend} {row.precision}", result, *_cells(row.manifest), *rates])
    return markdown(head, lines)


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
