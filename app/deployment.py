"""An engine of the store -> a loaded, warm engine."""

import logging
import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from app import backends, machine, store
from app.backends import Engine
from app.errors import EngineFailed, EngineStale, SetupError
from app.metrics import Engine as EngineLabels
from app.progress import Progress, Report
from app.store import Built

log = logging.getLogger("yolopard.deployment")

WARM_UP_S = 3.0  # batch sizes whose run is expected to take longer are not tried at warm-up


class EngineSource(Protocol):
    """Where the engine comes from: app/build_process.py, or a test."""

    def run(self, report: Report) -> Built:
        """Find or build the engine; blocks. Raises a SetupError."""

    def cancel(self) -> None:
        """Make `run` give up; called from another thread."""


@dataclass(frozen=True, slots=True)
class Deployed:
    """An engine that is ready for batches."""

    built: Built
    engine: Engine
    lanes: int
    images_per_second: float  # alone, at warm-up

    @property
    def name(self) -> str:
        """What tells it apart from another engine of the same model."""
        return self.built.manifest.fingerprint.backend

    @property
    def labels(self) -> EngineLabels:
        fingerprint, model = self.built.manifest.fingerprint, self.built.manifest.model
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
        """For /v1/models."""
        manifest, fingerprint = self.built.manifest, self.built.manifest.fingerprint
        return {
            "name": self.name,
            "key": fingerprint.key,
            "backend": fingerprint.backend,
            "version": fingerprint.backend_version,
            "precision": fingerprint.precision,
            "batch": fingerprint.batch,
            "device": fingerprint.device,
            "lanes": self.lanes,
            "images_per_second": round(self.images_per_second, 2),
            "gate": manifest.gate.to_json(),
            "built": manifest.built,
        }


def deploy(source: EngineSource, report: Report, *, lanes: int | None, threads: int | None) -> Deployed:
    """Blocks. A stored engine that does not load here is built again, once. Raises a SetupError."""
    built = source.run(report)
    report(Progress.at("warm-up", built.manifest.model.name))
    try:
        return _open(built, lanes, threads)
    except EngineStale as stale:
        log.warning("%s: building it again", stale)
        store.discard(built)
    built = source.run(report)
    report(Progress.at("warm-up", built.manifest.model.name))
    return _open(built, lanes, threads)


def _open(built: Built, lanes: int | None, threads: int | None) -> Deployed:
    backend = backends.get(built.manifest.fingerprint.backend)
    lanes = lanes or backend.LANES
    try:
        engine = backend.load(built.folder, lanes, threads or machine.cpus())
    except SetupError:
        raise
    except Exception as error:  # each library has its own words for a file that it cannot read
        reason = str(error).strip().partition("\n")[0]
        raise EngineStale(f"{built.folder} does not load: {type(error).__name__}: {reason}") from error
    try:
        rate = _warm_up(engine, lanes, built.manifest.model.imgsz, built.manifest.fingerprint.batch)
    except Exception as error:
        engine.close()
        raise EngineFailed(f"{built.folder} fails in its first batches: {type(error).__name__}: {error}") from error
    return Deployed(built, engine, lanes, rate)


def _warm_up(engine: Engine, lanes: int, side: int, largest: int) -> float:
    """Images per second of the best batch size."""
    frame = np.zeros((side, side, 3), np.uint8)
    for lane in range(lanes):
        engine.infer(lane, [frame])
    best, size = 0.0, 1
    while True:
        started = time.perf_counter()
        engine.infer(0, [frame] * size)
        seconds = time.perf_counter() - started
        best = max(best, size / seconds)
        if size == largest or seconds * 2 > WARM_UP_S:
            return best
        size = min(size * 2, largest)
