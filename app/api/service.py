"""From nothing to ready and down again: engine, warm-up, batcher, predictor. What /readyz speaks of."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from app import backends, machine
from app.backends import Engine
from app.batcher import Batcher
from app.errors import NotReady, SetupError
from app.metrics import Engine as EngineLabels
from app.metrics import Metrics
from app.predictor import Predictor
from app.progress import Progress, Report
from app.settings import Settings
from app.store import Built

log = logging.getLogger("yolopard.service")

WARM_UP_S = 3.0  # batch sizes whose run is expected to take longer are not tried at warm-up


class EngineSource(Protocol):
    """Where the engine comes from: app/build_process.py, or a test."""

    def run(self, report: Report) -> Built:
        """Find or build the engine; blocks. Raises a SetupError."""

    def cancel(self) -> None:
        """Make `run` give up; called from another thread."""


class Service:
    """One model behind one predictor."""

    def __init__(
        self,
        settings: Settings,
        source: EngineSource,
        *,
        on_ready: Callable[[Built], None],
        on_failure: Callable[[], None],
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.built: Built | None = None
        self.failure: SetupError | None = None
        self.images_per_second = 0.0
        self._source = source
        self._on_ready, self._on_failure = on_ready, on_failure
        self._progress: Progress | None = None
        self._predictor: Predictor | None = None
        self._engine: Engine | None = None
        self._stopping = False
        self._starting: asyncio.Task[None] | None = None
        self.metrics.ready.set_function(lambda: float(self.ready))

    @property
    def ready(self) -> bool:
        """True when images are answered."""
        return self._predictor is not None and self._predictor.alive and not self._stopping

    @property
    def predictor(self) -> Predictor:
        """Raises NotReady while there is none."""
        if self._predictor is None:
            phase = self._progress.phase if self._progress else "starting"
            raise NotReady(f"the server is not ready yet ({phase}): watch /readyz")
        return self._predictor

    def readiness(self) -> dict[str, Any]:
        """The body of /readyz."""
        model = self.built.manifest.model.name if self.built else None
        if self._stopping:
            return {"phase": "stopping", "model": model}
        if self.ready:
            return {"phase": "ready", "model": model}
        if self._predictor is not None:
            return {"phase": "dead", "model": model, "reason": "the engine has stopped working"}
        return self._progress.to_json() if self._progress else {"phase": "starting", "model": model}

    def start(self) -> None:
        """Begin in the background; the server answers meanwhile."""
        self._starting = asyncio.create_task(self._start(), name="start")

    async def stop(self) -> None:
        """Finish what was admitted, or give up the start."""
        self._stopping = True
        self._source.cancel()
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._predictor is not None:
            await self._predictor.close()
        if self._engine is not None:
            self._engine.close()

    async def _start(self) -> None:
        loop = asyncio.get_running_loop()

        def report(progress: Progress) -> None:  # called from the thread of `run`
            loop.call_soon_threadsafe(self._report, progress)

        try:
            built = await asyncio.to_thread(self._source.run, report)
            self._report(Progress.at("warm-up", built.manifest.model.name))
            engine, rate = await asyncio.to_thread(self._open, built)
        except SetupError as error:
            self._fail(error)
        except Exception as error:
            log.exception("the start failed")
            self._fail(SetupError(f"the start failed: {type(error).__name__}: {error}"))
        else:
            self._engine = engine
            self._open_doors(built, engine, rate)

    def _report(self, progress: Progress) -> None:
        self._progress = progress
        log.info("[%d/%d] %s: %s", progress.step, progress.of, progress.model, progress.phase)

    def _fail(self, error: SetupError) -> None:
        if not self._stopping:
            self.failure = error
            self._on_failure()

    def _open(self, built: Built) -> tuple[Engine, float]:
        """Load and warm the engine; the images per second that it does alone."""
        settings, model = self.settings, built.manifest.model
        backend = backends.get(built.manifest.fingerprint.backend)
        engine = backend.load(built.folder, settings.lanes, settings.threads or machine.cpus())
        frames = np.zeros((settings.batch, model.imgsz, model.imgsz, 3), np.uint8)
        best = 0.0
        for lane in range(settings.lanes):
            engine.infer(lane, frames[:1])
        size = 1
        while True:
            started = time.perf_counter()
            engine.infer(0, frames[:size])
            seconds = time.perf_counter() - started
            best = max(best, size / seconds)
            if size == settings.batch or seconds * 2 > WARM_UP_S:
                return engine, best
            size = min(size * 2, settings.batch)

    def _open_doors(self, built: Built, engine: Engine, rate: float) -> None:
        settings, model, fingerprint = self.settings, built.manifest.model, built.manifest.fingerprint
        labels = EngineLabels(
            model=model.name,
            engine=fingerprint.backend,
            backend=fingerprint.backend,
            precision=fingerprint.precision,
            imgsz=model.imgsz,
            batch=fingerprint.batch,
            device=fingerprint.device,
        )
        self.metrics.announce(labels, rate)
        batcher = Batcher(
            engine.infer,
            lanes=settings.lanes,
            max_batch=fingerprint.batch,
            max_wait_s=settings.max_wait_ms / 1000,
            metrics=self.metrics,
            model=model.name,
            engine=labels.engine,
        )
        batcher.start()
        self._predictor = Predictor(
            model,
            batcher,
            self.metrics,
            threads=settings.threads or machine.cpus(),
            rect=settings.rect,
            max_pixels=settings.max_pixels,
            max_pending=settings.max_pending,
            images_per_second=rate,
        )
        self.built, self.images_per_second = built, rate
        log.info("ready: %s on %s, %.1f images per second alone", model.name, fingerprint.backend, rate)
        self._on_ready(built)
