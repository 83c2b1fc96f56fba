"""Stored engine -> loaded engine that is warmed up."""

import logging
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from app import backends
from app.backends import Engine
from app.errors import EngineFailed, EngineStale, SetupError
from app.model import ModelInfo
from app.progress import Progress, Report
from app.serving import profile
from app.serving.profile import EngineProfile
from app.settings import Settings
from app.store import store
from app.store.manifest import StoredEngine
from app.system import host
from app.system.metrics import Engine as EngineLabels
from app.vision.preprocess import Preprocessor

log = logging.getLogger("yolopard.loader")

PATIENCE = {
    True: 2,
    False: 1,
}  # by one_device: batch sizes tried without a gain. A GPU may gain from the next size, busy cores do not


class EngineProvider(Protocol):
    """Provides the stored engine: app/building/process.py, app/serving/stored.py, or a test."""

    def run(self, report: Report) -> StoredEngine:
        """Find or build the engine and return it; blocks. Raises a SetupError."""

    def cancel(self) -> None:
        """Make `run` stop early; called from another thread."""


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine that is ready for batches."""

    stored: StoredEngine
    engine: Engine
    instances: int
    one_device: bool  # True: the instances share one device
    profile: EngineProfile

    @property
    def name(self) -> str:
        """The backend, which differs between the engines of one model."""
        return self.stored.manifest.fingerprint.backend

    @property
    def labels(self) -> EngineLabels:
        fingerprint, model = self.stored.manifest.fingerprint, self.stored.manifest.model
        return EngineLabels(
            model=model.name,
            engine=self.name,
            backend=fingerprint.backend,
            precision=fingerprint.precision,
            imgsz=model.imgsz,
            batch=fingerprint.batch,
            device=fingerprint.device,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the engine's entry in /v1/models."""
        manifest, fingerprint = self.stored.manifest, self.stored.manifest.fingerprint
        return {
            "name": self.name,
            "key": fingerprint.key,
            "backend": fingerprint.backend,
            "version": fingerprint.backend_version,
            "precision": fingerprint.precision,
            "batch": fingerprint.batch,
            "device": fingerprint.device,
            "instances": self.instances,
            "images_per_second": round(self.profile.images_per_second, 2),
            "best_batch": self.profile.batch,
            "batch_ms": self.profile.to_json(),
            "gate": manifest.gate.to_json(),
            "built": manifest.built,
        }


def load(source: EngineProvider, report: Report, *, instances: int | None, threads: int | None) -> LoadedEngine:
    """Return the engine, loaded and warmed up; blocks. Rebuilds it once if it does not load. Raises a SetupError."""
    stored = source.run(report)
    report(Progress.at("warm-up", stored.manifest.model.name))
    try:
        return _open(stored, instances, threads)
    except EngineStale as stale:
        log.warning("%s: building it again", stale)
        store.discard(stored)
    stored = source.run(report)
    report(Progress.at("warm-up", stored.manifest.model.name))
    return _open(stored, instances, threads)


def _open(stored: StoredEngine, instances: int | None, threads: int | None) -> LoadedEngine:
    manifest, threads = stored.manifest, threads or host.cpus()
    backend = backends.get(manifest.fingerprint.backend)
    instances = backends.instances(backend, instances, threads)
    try:
        engine = backend.load(stored.folder, instances, threads)
    except SetupError:
        raise
    except Exception as error:  # each library raises its own error for a file that it cannot read
        reason = str(error).strip().partition("\n")[0]
        raise EngineStale(f"{stored.folder} does not load: {type(error).__name__}: {reason}") from error
    try:
        found = _warm_up(engine, instances, backend.ONE_DEVICE, manifest.model, manifest.fingerprint.batch)
    except Exception as error:
        engine.close()
        raise EngineFailed(f"{stored.folder} fails in its first batches: {type(error).__name__}: {error}") from error
    return LoadedEngine(stored, engine, instances, backend.ONE_DEVICE, found)


def _warm_up(engine: Engine, instances: int, one_device: bool, model: ModelInfo, largest: int) -> EngineProfile:
    """Run frames of every shape, with low latency and in every instance. Return the profile of the largest shape."""
    shapes = sorted(model.shapes or [(model.imgsz, model.imgsz)], key=math.prod)
    frames = [np.zeros((*shape, 3), np.uint8) for shape in shapes]
    for frame in frames:
        engine.infer(0, [frame], low_latency=True)
    for frame in frames[:-1]:
        for instance in range(instances):
            engine.infer(instance, [frame])
    return profile.measure(engine, instances, frames[-1], largest, PATIENCE[one_device])


def preprocessor(settings: Settings, model: ModelInfo) -> Preprocessor:
    """Return the preprocessor that makes images into the model's frames."""
    server, middle = settings.server, model.task == "classify"
    fast = settings.model.decode == "fast" and not middle
    return Preprocessor(model.imgsz, model.stride, model.shapes, fast, server.max_pixels, middle, server.max_side)
