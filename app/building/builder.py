"""weights -> serving graph -> engine -> gate -> engines/<key>/, falling back to a safer precision.

Runs in a process of its own (build_process.py): its memory goes back whole, and a crash is only a failed build.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib import metadata, util
from pathlib import Path
from types import ModuleType

from app import __version__, backends
from app.backends import Backend, Recipe
from app.building.order import CALIBRATION_IMAGES, Order, fingerprints, is_demo, sized
from app.errors import BackendUnavailable, GateFailed, WeightsError
from app.evaluation import datasets, judge
from app.evaluation.datasets import Dataset
from app.model import ModelInfo, Shape, spell
from app.progress import PHASES, Progress, Report
from app.store import safe_files, store
from app.store.store import Built, Fingerprint, Manifest, Verdict
from app.system import machine
from app.vision.images import Pixels
from app.weights.weights import identify

log = logging.getLogger("yolopard.builder")

UNCHECKED = "nothing: there are no weights to compare it with"


def find(order: Order) -> Built | None:
    """The stored engine that fits the order, every byte checked. Needs neither torch nor ultralytics.

    None, with one line in the log that tells why if there is more to say than that it was never built, when it has to
    be built. Raises GateFailed when every precision has been refused already.
    """
    if order.gate:
        datasets.digest(order.gate, "GATE_DIR")  # a wrong folder is told before minutes are spent
    path = _local(order)
    if path is None:
        return None
    files = identify(path)
    order = sized(order, files)
    for fingerprint in fingerprints(order, files):
        manifest = _stored(order, fingerprint, logging.WARNING)
        if manifest is None:
            return None
        if _accepted(order, manifest):
            return Built(order.engines / fingerprint.key, manifest)
    raise _refused(order, path)


def build(order: Order, report: Report) -> Built:
    """Build the order's engine, or find it built by somebody else meanwhile. Raises a SetupError."""
    _build_rooms()
    path = _local(order) or _fetch(order)
    files = identify(path)
    order = sized(order, files)
    waiting = Progress("waiting for another process that builds this engine", 1, len(PHASES), order.name)
    for fingerprint in fingerprints(order, files):
        with store.lock(order.engines, fingerprint.key, lambda: report(waiting)):
            manifest = _stored(order, fingerprint, logging.DEBUG)  # `find` has told it already
            if manifest is None:
                if other := store.difference(order.engines, fingerprint):
                    log.warning("%s: building an engine", other)
                manifest = _build(order, path, fingerprint, report)
        if _accepted(order, manifest):
            return Built(order.engines / fingerprint.key, manifest)
    raise _refused(order, path)


def _stored(order: Order, fingerprint: Fingerprint, level: int) -> Manifest | None:
    """What is known of this engine, if it is whole and was judged on the order's images; why not, in the log."""
    folder = order.engines / fingerprint.key
    try:
        manifest = store.find(order.engines, fingerprint)
    except store.Damaged as damage:
        log.log(level, "%s: building the engine again; if this comes back, check that disk", damage)
        return None
    if manifest is None:
        return None
    if order.gate and manifest.gate.figures and manifest.gate.images != datasets.digest(order.gate, "GATE_DIR"):
        log.log(level, "%s was judged on other images than GATE_DIR's: building it again", folder)
        return None
    if not manifest.files and not manifest.gate.shortcomings(fingerprint.precision, order.limits):
        log.log(level, "%s was refused with stricter limits than these: building it again", folder)
        return None
    return manifest


def _accepted(order: Order, manifest: Manifest) -> bool:
    """Whether the engine may be served; one line in the log if not."""
    precision = manifest.fingerprint.precision
    shortcomings = manifest.gate.shortcomings(precision, order.limits)
    if shortcomings:
        log.warning("%s %s is refused by the accuracy gate: %s", order.name, precision, "; ".join(shortcomings))
    elif problem := manifest.gate.nothing_found():
        log.warning("%s %s: %s", order.name, precision, problem)
    elif manifest.gate.figures:
        for doubt in manifest.gate.figures.doubts(precision, order.limits):
            log.warning("%s %s passes the accuracy gate, but %s", order.name, precision, doubt)
    return not shortcomings


def _refused(order: Order, path: Path) -> GateFailed:
    return GateFailed(
        f"{order.name}: no precision of the engine gives the boxes of {judge.reference_name(path)} (the lines above "
        f"say by how much). None was kept; {order.engines} holds the figures"
    )


def _build(order: Order, weights: Path, fingerprint: Fingerprint, report: Report) -> Manifest:
    """One precision; published whole, or without its files if the gate refuses it."""
    backend, started, precision = backends.get(fingerprint.backend), time.monotonic(), fingerprint.precision

    def begin(phase: str, detail: str = "") -> None:
        report(Progress.at(phase, order.name, f"{precision} {detail}".strip()))

    with store.workplace(order.engines, fingerprint.key) as place:
        (scratch := place / "scratch").mkdir()
        (engine := place / "engine").mkdir()
        begin("graph")
        graphs, model = _graphs(order, weights, backend, scratch)

        def calibration(shapes: Sequence[Shape] | None) -> Iterator[Pixels]:
            return (frame for _, _, frame in judge.frames(_calibration(order, weights, model), model, shapes))

        begin("engine")
        recipe = Recipe(
            weights=weights,
            graphs=graphs,
            model=model,
            precision=precision,
            batch=order.batch,
            lanes=backends.lanes(backend, order.lanes, machine.cpus()),
            calibration=calibration,
            folder=engine,
            cache=store.subfolder(order.engines, ".cache"),
            report=partial(begin, "engine"),
        )
        facts = backend.build(recipe)
        begin("check")
        verdict = _judge(order, backend, engine, weights, model, precision)
        begin("publish")
        if verdict.shortcomings(precision, order.limits):
            for path in engine.iterdir():
                path.unlink()
        files = {path.name: store.sha256(path) for path in sorted(engine.iterdir())}
        facts |= {"engine_bytes": sum(path.stat().st_size for path in engine.iterdir())}
        manifest = Manifest(fingerprint, model, verdict, _circumstances(started) | facts, files)
        store.publish(order.engines, engine, manifest)
        return manifest


def _graphs(order: Order, weights: Path, backend: Backend, scratch: Path) -> tuple[list[Path], ModelInfo]:
    """The serving graphs, each in a folder of its own, and what they have in common."""
    export, graph = _build_rooms()
    if weights.suffix == ".engine":
        from app.backends import tensorrt

        return [], tensorrt.describe(weights, order.name, order.imgsz, order.shapes)

    def make(folder: Path, imgsz: int | None, shapes: tuple[Shape, ...] | None) -> ModelInfo:
        folder.mkdir()
        size = shapes[0] if shapes and backend.STATIC else imgsz
        plain = export.to_plain_onnx(weights, size, folder, static=backend.STATIC)
        model: ModelInfo = graph.to_serving_graph(plain, order.name, imgsz, folder / "graph.onnx", shapes, weights)
        return model

    if not (order.shapes and backend.STATIC):
        return [scratch / "any" / "graph.onnx"], make(scratch / "any", order.imgsz, order.shapes)
    folders = [scratch / spell(shape) for shape in order.shapes]
    models = [make(folder, None, (shape,)) for folder, shape in zip(folders, order.shapes, strict=True)]
    longest = max(model.imgsz for model in models)
    return [folder / "graph.onnx" for folder in folders], replace(models[0], imgsz=longest, shapes=order.shapes)


def _build_rooms() -> tuple[ModuleType, ModuleType]:
    """app.graphs.export and app.graphs.graph, imported only when something is built."""
    try:
        from app.graphs import export, graph
    except ImportError as error:
        raise BackendUnavailable(
            f"an engine has to be built, and building needs {error.name}: pip install 'yolopard[build]', or build it "
            "elsewhere with `yolopard build` and bring the engines folder here"
        ) from error
    return export, graph


def _local(order: Order) -> Path | None:
    """Where the weights lie on this machine."""
    if (path := Path(order.weights)).exists():
        return path
    if path.name != order.weights or path.suffix != ".pt":
        raise WeightsError(f"{order.weights}: no such file")
    downloaded = order.engines / "weights" / order.weights
    with store.explained(order.engines):
        safe_files.require_safe(downloaded, order.engines)
    return downloaded if downloaded.is_file() else None


def _fetch(order: Order) -> Path:
    folder = store.subfolder(order.engines, "weights")
    with store.explained(order.engines):
        safe_files.make_folder(folder)
        path: Path = _build_rooms()[0].fetch(order.weights, folder)
    return path


def _calibration(order: Order, weights: Path, model: ModelInfo) -> Dataset:
    if order.calibration:
        return datasets.folder(order.calibration, model, "CALIBRATION_DIR", CALIBRATION_IMAGES, labelled=False)
    return datasets.calibration_scenes(model, CALIBRATION_IMAGES)


def _judge(order: Order, backend: Backend, engine: Path, weights: Path, model: ModelInfo, precision: str) -> Verdict:
    if weights.suffix == ".engine":
        return Verdict(UNCHECKED, "", None)
    dataset = _gate_images(order, weights, model)
    figures = judge.figures(backend, engine, weights, model, precision, dataset, order.batch)
    shapes = model.shapes or ()
    on = f"{dataset.name}, the worst of {spell(*shapes)}" if len(shapes) > 1 else dataset.name
    images = datasets.digest(order.gate, "GATE_DIR") if order.gate else ""
    return Verdict(on, images, figures, judge.reference_name(weights))


def _gate_images(order: Order, weights: Path, model: ModelInfo) -> Dataset:
    if order.gate:
        return datasets.folder(order.gate, model, "GATE_DIR")
    return datasets.gate_scenes(model) if is_demo(weights) else datasets.samples()


def _circumstances(started: float) -> dict[str, object]:
    packages = ("torch", "ultralytics", "onnx", "onnxslim", "openvino", "onnxruntime", "nncf", "numpy")
    versions = {name: metadata.version(name) for name in packages if util.find_spec(name)}
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "cpu": machine.cpu_name(),
        "cpus": machine.cpus(),
        "yolopard": __version__,
        "versions": versions,
    }
