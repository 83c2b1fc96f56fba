"""weights -> serving graph -> engine -> check against the reference -> engines/<key>/.

Runs in a process of its own (app/build_process.py): its memory goes back whole, and a crash is only a failed build.
"""

import inspect
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata, util
from pathlib import Path
from types import ModuleType

import numpy as np

from app import __version__, backends, images, machine, parity, store
from app.errors import BackendUnavailable, SettingsError, WeightsError
from app.images import Pixels
from app.model import ModelInfo
from app.progress import PHASES, Progress, Report
from app.results import Rows
from app.store import Built

log = logging.getLogger("yolopard.builder")

SAMPLES = Path(__file__).parents[1] / "models" / "demo" / "samples"


@dataclass(frozen=True, slots=True)
class Order:
    """What to build."""

    weights: str  # a path, or a name that Ultralytics can download
    imgsz: int | None  # longest side of a frame, px; None = the model's own
    batch: int
    precision: str  # auto | fp32 | fp16 | int8
    backend: str  # auto | a file of app/backends
    engines: Path

    @property
    def name(self) -> str:
        return Path(self.weights).stem


def find(order: Order) -> Built | None:
    """The stored engine that fits the order, every byte checked. Needs neither torch nor ultralytics.

    None, and one line in the log if it was damaged, when it has to be built.
    """
    weights = _local(order)
    if weights is None:
        return None
    fingerprint = _fingerprint(order, weights)
    try:
        manifest = store.find(order.engines, fingerprint)
    except store.Damaged as damage:
        log.warning("%s: building the engine again; if this comes back, check that disk", damage)
        return None
    return Built(order.engines / fingerprint.key, manifest) if manifest else None


def build(order: Order, report: Report) -> Built:
    """Build the order's engine, or find it built by somebody else meanwhile. Raises a SetupError."""
    _build_rooms()
    weights = _local(order) or _fetch(order)
    fingerprint = _fingerprint(order, weights)
    waiting = Progress("waiting for another process that builds this engine", 1, len(PHASES), order.name)
    with store.lock(order.engines, fingerprint.key, lambda: report(waiting)):
        return find(order) or _build(order, weights, fingerprint, lambda phase: report(Progress.at(phase, order.name)))


def _build(order: Order, weights: Path, fingerprint: store.Fingerprint, begin: Callable[[str], None]) -> Built:
    export, graph = _build_rooms()
    backend = backends.get(fingerprint.backend)
    started = time.monotonic()
    with store.workplace(order.engines, fingerprint.key) as place:
        (scratch := place / "scratch").mkdir()
        (engine := place / "engine").mkdir()
        begin("graph")
        plain = export.to_plain_onnx(weights, order.imgsz, scratch)
        model = graph.to_serving_graph(plain, order.name, order.imgsz, scratch / "graph.onnx")
        begin("engine")
        backend.build(weights, scratch / "graph.onnx", engine)
        begin("check")
        outcome = _check(backend, engine, weights, model, order.batch)
        outcome.require()
        begin("publish")
        files = {path.name: store.sha256(path) for path in sorted(engine.iterdir())}
        manifest = store.Manifest(fingerprint, model, outcome.to_json(), _circumstances(started), files)
        return Built(store.publish(order.engines, engine, manifest), manifest)


def _build_rooms() -> tuple[ModuleType, ModuleType]:
    """app.export and app.graph, imported only when something is built."""
    try:
        from app import export, graph
    except ImportError as error:
        raise BackendUnavailable(
            f"an engine has to be built, and building needs {error.name}: pip install 'yolopard[build]', or build it "
            "elsewhere with `yolopard build` and bring the engines folder here"
        ) from error
    return export, graph


def _local(order: Order) -> Path | None:
    """Where the weights lie on this machine."""
    for path in (Path(order.weights), order.engines / "weights" / order.weights):
        if path.is_file():
            return path
    if Path(order.weights).name != order.weights:
        raise WeightsError(f"{order.weights}: no such file")
    return None


def _fetch(order: Order) -> Path:
    folder = order.engines / "weights"
    with store.explained(order.engines):
        folder.mkdir(parents=True, exist_ok=True)
        path: Path = _build_rooms()[0].fetch(order.weights, folder)
    return path


def _fingerprint(order: Order, weights: Path) -> store.Fingerprint:
    name = backends.choose(order.backend)
    backend = backends.get(name)
    precision = backend.PRECISIONS[0] if order.precision == "auto" else order.precision
    if precision not in backend.PRECISIONS:
        raise SettingsError(f"PRECISION={precision} does not exist on {name}: use {' or '.join(backend.PRECISIONS)}")
    return store.Fingerprint(
        name=order.name,
        weights_sha256=store.sha256(weights),
        graph_revision=_revision(inspect.getsourcefile(backend)),  # type: ignore[arg-type]
        imgsz=order.imgsz,
        batch=order.batch,
        precision=precision,
        backend=name,
        backend_version=backend.version(),
        device=f"cpu {os.uname().machine}",
    )


def _revision(backend_file: str) -> str:
    """Of the code that makes graph and engine: its own digest, which nobody can forget to raise."""
    here = Path(__file__).parent
    digests = [store.sha256(path) for path in (here / "export.py", here / "graph.py", Path(backend_file))]
    return "-".join(digest[:8] for digest in digests)


def _check(backend: backends.Backend, folder: Path, weights: Path, model: ModelInfo, batch: int) -> parity.Parity:
    """Each check image alone in the reference, and in a batch with others in the engine."""
    threads = machine.cpus()
    reference = _reference(weights, threads)
    engine = backend.load(folder, 1, threads)
    pairs: list[tuple[Rows, Rows]] = []
    for frames in _batches(_check_frames(model), batch):
        expected = [reference(frame[None])[0] for frame in frames]
        pairs += zip(expected, engine.infer(0, frames), strict=True)
    engine.close()
    return parity.compare(pairs)


def _reference(weights: Path, threads: int) -> parity.Infer:
    """PyTorch FP32 for .pt; for .onnx, where there is no PyTorch, the plain export in ONNX Runtime."""
    if weights.suffix == ".pt":
        from app.backends import pytorch

        engine = pytorch.open_weights(weights, threads)
        return lambda frames: engine.infer(0, frames)
    from app.backends import onnxruntime

    return onnxruntime.PlainExport(weights, _build_rooms()[1].K, threads).infer


def _check_frames(model: ModelInfo) -> list[Pixels]:
    """The demo samples and, where ultralytics is installed, its two photos."""
    paths = sorted(SAMPLES.glob("*.jpg"))
    if spec := util.find_spec("ultralytics"):
        paths += sorted(Path(str(spec.origin)).parent.glob("assets/*.jpg"))
    frames = []
    for path in paths:
        pixels = images.decode(path.read_bytes(), max_pixels=50_000_000)
        height, width = pixels.shape[:2]
        placement = images.place(height, width, model.imgsz, model.stride, rect=not model.static_shape)
        frames.append(images.letterbox(pixels, placement))
    return frames


def _batches(frames: list[Pixels], size: int) -> Iterator[Pixels]:
    """uint8 [n, H, W, 3] of frames of one shape, n <= size."""
    for shape in dict.fromkeys(frame.shape for frame in frames):
        alike = [frame for frame in frames if frame.shape == shape]
        for start in range(0, len(alike), size):
            yield np.stack(alike[start : start + size])


def _circumstances(started: float) -> dict[str, object]:
    packages = ("torch", "ultralytics", "onnx", "onnxslim", "openvino", "onnxruntime", "numpy")
    versions = {name: metadata.version(name) for name in packages if util.find_spec(name)}
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "cpu": machine.cpu_name(),
        "cpus": machine.cpus(),
        "yolopard": __version__,
        "versions": versions,
    }
