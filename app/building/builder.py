"""Builds engines: weights -> serving graph -> engine -> gate -> engines/<key>/. Falls back to a safer precision.

Runs in its own process (building/process.py), which frees all memory at its end; a crash is only a failed build.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import ModuleType

from app import __version__, backends
from app.backends import Backend, BuildContext
from app.errors import BackendUnavailable, SettingsError
from app.evaluation import compare, datasets
from app.evaluation.datasets import Dataset
from app.model import ModelInfo, Shape, format_shapes
from app.progress import PHASES, Progress, Report
from app.serving.spec import BuildRequest, BuildSpec, local_weights, resolve, revision
from app.serving.stored import accepted, refused
from app.settings import DEMO
from app.store import permissions, store
from app.store.manifest import Damaged, Fingerprint, GateResult, Manifest, StoredEngine, sha256
from app.system import host
from app.vision.preprocess import Pixels

log = logging.getLogger("yolopard.builder")

CALIBRATION_IMAGES = 48  # 30 are as good as 300 (loadtest/RESULTS.md)
PACKAGES = ("building", "evaluation")  # their code determines calibration and evaluation
UNCHECKED = "nothing: there are no weights to compare it with"


def find(request: BuildRequest) -> StoredEngine | None:
    """Return the stored engine for the request, with every byte checked; None if it has to be built.

    Logs why a stored engine is not used. Needs neither torch nor ultralytics. Raises GateFailed if the gate has refused
    every precision already.
    """
    if request.gate:
        datasets.digest(request.gate, "GATE_DIR")  # raises for a wrong folder now, not after minutes of building
    path = local_weights(request)
    if path is None:
        return None
    spec = resolve(request, path)
    for fingerprint in _fingerprints(spec):
        manifest = _stored(spec, fingerprint, logging.WARNING)
        if manifest is None:
            return None
        if accepted(spec, manifest):
            return StoredEngine(spec.engines / fingerprint.key, manifest)
    raise refused(spec)


def build(request: BuildRequest, report: Report) -> StoredEngine:
    """Build the engine, unless another process has built it meanwhile. Raises a SetupError."""
    _import_graphs()
    spec = resolve(request, local_weights(request) or _fetch(request))
    waiting = Progress("waiting for another process that builds this engine", 1, len(PHASES), spec.name)
    for fingerprint in _fingerprints(spec):
        with store.lock(spec.engines, fingerprint.key, lambda: report(waiting)):
            manifest = _stored(spec, fingerprint, logging.DEBUG)  # `find` has logged it already
            if manifest is None:
                if other := store.difference(spec.engines, fingerprint):
                    log.warning("%s: building an engine", other)
                manifest = _build(spec, fingerprint, report)
        if accepted(spec, manifest):
            return StoredEngine(spec.engines / fingerprint.key, manifest)
    raise refused(spec)


def _fingerprints(spec: BuildSpec) -> list[Fingerprint]:
    """Return the fingerprints of the requested engine and of those with safer precisions, in this order."""
    evaluation = revision(PACKAGES, DEMO / "scenes.py")
    return [
        spec.fingerprint(
            precision, calibration=_calibration_digest(spec) if precision == "int8" else "", evaluation=evaluation
        )
        for precision in spec.precisions
    ]


def _calibration_digest(spec: BuildSpec) -> str:
    if spec.prebuilt:
        return ""
    if spec.calibration:
        return datasets.digest(spec.calibration, "CALIBRATION_DIR")
    if datasets.is_demo(spec.sha256):
        return f"{CALIBRATION_IMAGES} scenes"
    raise SettingsError(
        "PRECISION=int8 is calibrated on images like those to be served: set CALIBRATION_DIR to a folder of about 50"
    )


def _stored(spec: BuildSpec, fingerprint: Fingerprint, level: int) -> Manifest | None:
    """Return the manifest of the stored engine. None, with the reason in the log, if it is damaged, or was evaluated on
    other images or with stricter limits.
    """
    folder = spec.engines / fingerprint.key
    try:
        manifest = store.find(spec.engines, fingerprint)
    except Damaged as damage:
        log.log(level, "%s: building the engine again; if this happens again, check the disk", damage)
        return None
    if manifest is None:
        return None
    if spec.gate and manifest.gate.figures and manifest.gate.images != datasets.digest(spec.gate, "GATE_DIR"):
        log.log(level, "%s was evaluated on other images than GATE_DIR's: building it again", folder)
        return None
    if not manifest.files and not manifest.gate.shortcomings(fingerprint.precision, spec.limits):
        log.log(level, "%s was refused with stricter limits than these: building it again", folder)
        return None
    return manifest


def _build(spec: BuildSpec, fingerprint: Fingerprint, report: Report) -> Manifest:
    """Build one precision and publish it; without the engine files if the gate refuses it."""
    backend, started, precision = backends.get(spec.backend), time.monotonic(), fingerprint.precision

    def begin(phase: str, detail: str = "") -> None:
        report(Progress.at(phase, spec.name, f"{precision} {detail}".strip()))

    with store.workplace(spec.engines, fingerprint.key) as place:
        (scratch := place / "scratch").mkdir()
        (engine := place / "engine").mkdir()
        begin("graph")
        graphs, model = _graphs(spec, backend, scratch)

        def calibration(shapes: Sequence[Shape] | None) -> Iterator[Pixels]:
            return (frame for _, _, frame in compare.frames(_calibration(spec, model), model, shapes))

        begin("engine")
        context = BuildContext(
            weights=spec.path,
            graphs=graphs,
            model=model,
            precision=precision,
            batch=spec.batch,
            instances=backends.instances(backend, spec.instances, host.cpus()),
            calibration=calibration,
            folder=engine,
            cache=store.subfolder(spec.engines, ".cache"),
            report=partial(begin, "engine"),
        )
        facts = backend.build(context)
        begin("check")
        gate_result = _evaluate(spec, backend, engine, model, precision)
        begin("publish")
        if gate_result.shortcomings(precision, spec.limits):
            for path in engine.iterdir():
                path.unlink()
        files = {path.name: sha256(path) for path in sorted(engine.iterdir())}
        facts |= {"engine_bytes": sum(path.stat().st_size for path in engine.iterdir())}
        manifest = Manifest(fingerprint, model, gate_result, _build_facts(started) | facts, files)
        store.publish(spec.engines, engine, manifest)
        return manifest


def _graphs(spec: BuildSpec, backend: Backend, scratch: Path) -> tuple[list[Path], ModelInfo]:
    """Return the serving graphs, each in its own folder, and the model info that they share."""
    export, graph = _import_graphs()
    if spec.prebuilt:
        return [], backend.describe(spec.path, spec.name, spec.imgsz, spec.shapes)

    def make(folder: Path, imgsz: int | None, shapes: tuple[Shape, ...] | None) -> ModelInfo:
        folder.mkdir()
        size = shapes[0] if shapes and backend.STATIC else imgsz
        plain = export.to_plain_onnx(spec.path, size, folder, static=backend.STATIC)
        model: ModelInfo = graph.to_serving_graph(plain, spec.name, imgsz, folder / "graph.onnx", shapes, spec.path)
        return model

    if not (spec.shapes and backend.STATIC):
        return [scratch / "any" / "graph.onnx"], make(scratch / "any", spec.imgsz, spec.shapes)
    folders = [scratch / format_shapes(shape) for shape in spec.shapes]
    models = [make(folder, None, (shape,)) for folder, shape in zip(folders, spec.shapes, strict=True)]
    longest = max(model.imgsz for model in models)
    return [folder / "graph.onnx" for folder in folders], replace(models[0], imgsz=longest, shapes=spec.shapes)


def _import_graphs() -> tuple[ModuleType, ModuleType]:
    """Import app.graphs.export and app.graphs.serving_graph, which only a build needs. Raises BackendUnavailable."""
    try:
        from app.graphs import export, serving_graph
    except ImportError as error:
        raise BackendUnavailable(
            f"an engine has to be built, and building needs {error.name}: pip install 'yolopard[build]', or build it "
            "elsewhere with `yolopard build` and copy the engines folder here"
        ) from error
    return export, serving_graph


def _fetch(request: BuildRequest) -> Path:
    folder = store.subfolder(request.engines, "weights")
    with store.explained(request.engines):
        permissions.make_folder(folder)
        path: Path = _import_graphs()[0].fetch(request.weights, folder)
    return path


def _calibration(spec: BuildSpec, model: ModelInfo) -> Dataset:
    if spec.calibration:
        return datasets.folder(spec.calibration, model, "CALIBRATION_DIR", CALIBRATION_IMAGES, labelled=False)
    return datasets.calibration_scenes(model, CALIBRATION_IMAGES)


def _evaluate(spec: BuildSpec, backend: Backend, engine: Path, model: ModelInfo, precision: str) -> GateResult:
    if spec.prebuilt:
        return GateResult(UNCHECKED, "", None)
    dataset = _gate_images(spec, model)
    report = compare.figures(backend, engine, spec.path, model, precision, dataset, spec.batch)
    shapes = model.shapes or ()
    on = f"{dataset.name}, the worst of {format_shapes(*shapes)}" if len(shapes) > 1 else dataset.name
    images = datasets.digest(spec.gate, "GATE_DIR") if spec.gate else ""
    return GateResult(on, images, report, spec.reference)


def _gate_images(spec: BuildSpec, model: ModelInfo) -> Dataset:
    if spec.gate:
        return datasets.folder(spec.gate, model, "GATE_DIR")
    return datasets.gate_scenes(model) if datasets.is_demo(spec.sha256) else datasets.samples()


def _build_facts(started: float) -> dict[str, object]:
    packages = ("torch", "ultralytics", "onnx", "onnxslim", "openvino", "onnxruntime", "nncf", "numpy")
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - started, 1),
        "cpu": host.cpu_name(),
        "cpus": host.cpus(),
        "yolopard": __version__,
        "versions": host.versions(*packages),
    }
