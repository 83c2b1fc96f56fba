"""Starts and stops engines, batchers and predictor, and reports the state for /readyz."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app import backends
from app.errors import (
    BackendUnavailable,
    BuildFailed,
    EngineFailed,
    EngineStale,
    GateFailed,
    NotReady,
    Overloaded,
    ServiceError,
    SetupError,
)
from app.progress import Progress
from app.serving.batcher import Batcher
from app.serving.inflight import Inflight
from app.serving.loader import EngineProvider, LoadedEngine, load, preprocessor
from app.serving.pacing import Pacing
from app.serving.predictor import Predictor
from app.serving.unauthenticated import UnauthenticatedSlots
from app.settings import Settings
from app.store.manifest import Manifest, StoredEngine
from app.system import gpu, host
from app.system.metrics import Metrics

log = logging.getLogger("yolopard.service")

FALLBACK_ERRORS = (BackendUnavailable, BuildFailed, EngineFailed, EngineStale, GateFailed)
SHADOW_NICE = 15  # of the second engine's threads if SHADOW is set: they only use spare CPU time


class Service:
    """One model, its engines and its predictor."""

    def __init__(
        self,
        settings: Settings,
        source_of: Callable[[str], EngineProvider],  # backend name -> provider of its engine
        *,
        on_ready: Callable[[LoadedEngine], None],
        on_failure: Callable[[], None],
    ) -> None:
        self.settings, self.model_settings = settings.server, settings.model
        self.metrics = Metrics()
        self.inflight = Inflight(settings.server.max_inflight_bytes, settings.server.max_inflight_pixels)
        self.unauthenticated = UnauthenticatedSlots()
        self.pacing = Pacing()
        self.loaded: list[LoadedEngine] = []  # first the serving engine, then the one it is compared with
        self.fallback: str | None = None  # why another engine is served than requested
        self.failure: SetupError | None = None
        self._source_of = source_of
        self._source: EngineProvider | None = None  # provider of the engine that is being found or built
        self._on_ready, self._on_failure = on_ready, on_failure
        self._progress: Progress | None = None
        self._predictor: Predictor | None = None
        self._stopping = False
        self._starting: asyncio.Task[None] | None = None
        self.metrics.ready.set_function(lambda: float(self.ready))
        self.metrics.inflight_bytes.set_function(lambda: self.inflight.bytes)
        self.metrics.decoders_stuck.set_function(lambda: self._predictor.stuck if self._predictor else 0)
        self.metrics.inflight_pixels.set_function(lambda: self.inflight.pixels)
        if collector := gpu.open_gpu():
            self.metrics.add(collector)

    @property
    def stored(self) -> StoredEngine | None:
        """The stored engine that is served; None before it is loaded."""
        return self.loaded[0].stored if self.loaded else None

    @property
    def ready(self) -> bool:
        """True if the service can process images."""
        return self._predictor is not None and self._predictor.alive and not self._stopping

    @property
    def predictor(self) -> Predictor:
        """The predictor. Raises NotReady until it exists."""
        if self._predictor is None:
            phase = self._progress.phase if self._progress else "starting"
            raise NotReady(f"the server is not ready yet ({phase}): watch /readyz")
        return self._predictor

    def readiness(self) -> dict[str, Any]:
        """Return the body of /readyz."""
        model = self.stored.manifest.model.name if self.stored else None
        if self._stopping:
            return {"phase": "stopping", "model": model}
        if self.ready:
            stuck = self._predictor.stuck if self._predictor else 0
            more = {"fallback": self.fallback, "decoders_stuck": stuck}
            return {"phase": "ready", "model": model} | {name: value for name, value in more.items() if value}
        if self._predictor is not None:
            return {"phase": "dead", "model": model, "reason": "the engine has stopped working"}
        return self._progress.to_json() if self._progress else {"phase": "starting", "model": model}

    def retry_after_s(self, error: ServiceError) -> int:
        """Return the seconds after which a client that got this error should retry."""
        return self._predictor.retry_after_s if self._predictor and isinstance(error, Overloaded) else 1

    def count_refusal(self, reason: str) -> None:
        """Count a request that was refused or abandoned."""
        model = self.stored.manifest.model.name if self.stored else ""
        self.metrics.rejected.labels(model, reason).inc()

    def start(self) -> None:
        """Start in the background; the server answers /readyz meanwhile."""
        self._starting = asyncio.create_task(self._start(), name="start")

    async def stop(self) -> None:
        """Finish the admitted requests, or cancel the start."""
        self._stopping = True
        if self._source is not None:
            self._source.cancel()
        if self._starting is not None:
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._predictor is not None:
            await self._predictor.close()
        for loaded in self.loaded:
            loaded.engine.close()

    async def _start(self) -> None:
        try:
            first = await self._load_or_fall_back()
            self.loaded.append(first)
            if self.model_settings.compare == first.name:
                log.warning("COMPARE=%s: %s serves already, there is nothing to compare it with", *[first.name] * 2)
            elif self.model_settings.compare != "none":
                self.loaded.append(await self._load_second(self.model_settings.compare))
            self._open_predictor()
        except SetupError as error:
            self._fail(error)
        except Exception as error:
            log.exception("the start failed")
            self._fail(SetupError(f"the start failed: {type(error).__name__}: {error}"))

    async def _load_or_fall_back(self) -> LoadedEngine:
        settings = self.model_settings
        try:
            loaded = await self._load(settings.backend, instances=settings.instances)
        except FALLBACK_ERRORS as error:
            if settings.fallback == "none" or self._stopping:
                raise
            return await self._fall_back(error)
        self._report_downgrade(loaded.stored.manifest)
        return loaded

    async def _fall_back(self, error: SetupError) -> LoadedEngine:
        fallback, requested = self.model_settings.fallback, self.model_settings.backend
        self._set_fallback(error.code, f"{fallback} serves instead of {requested} ({error.code}), because {error}")
        try:
            return await self._load(fallback, instances=None)
        except SetupError as second:
            text = f"FALLBACK={fallback} failed too: {second}; before it BACKEND={requested}: {error}"
            raise type(second)(text) from second

    async def _load_second(self, backend: str) -> LoadedEngine:
        try:
            return await self._load(backend, instances=1)
        except SetupError as error:
            raise type(error)(f"COMPARE={backend} cannot be loaded: {error}") from error

    def _report_downgrade(self, manifest: Manifest) -> None:
        if manifest.gate.figures is None:  # the engine was built elsewhere and not evaluated here
            return
        got, own = manifest.fingerprint.precision, backends.get(manifest.fingerprint.backend).PRECISIONS[0]
        requested = own if self.model_settings.precision == "auto" else self.model_settings.precision
        if got != requested:
            self._set_fallback(GateFailed.code, f"{got} is served, because the accuracy gate refused {requested}")

    def _set_fallback(self, reason: str, text: str) -> None:
        self.fallback = text
        log.error("FALLBACK: %s", text)
        self.metrics.fallback.labels(Path(self.model_settings.weights).stem, reason).set(1)

    async def _load(self, backend: str, instances: int | None) -> LoadedEngine:
        loop = asyncio.get_running_loop()

        def report(progress: Progress) -> None:  # called on the thread of `load`
            loop.call_soon_threadsafe(self._report, progress)

        self._source = self._source_of(backend)
        if self._stopping:
            self._source.cancel()
        return await asyncio.to_thread(load, self._source, report, instances=instances, threads=self.settings.threads)

    def _report(self, progress: Progress) -> None:
        self._progress = progress
        log.info("%s", progress)

    def _fail(self, error: SetupError) -> None:
        if not self._stopping:
            self.failure = error
            self._on_failure()

    def _open_predictor(self) -> None:
        settings, first = self.settings, self.loaded[0]
        model = first.stored.manifest.model
        batchers = {loaded.name: self._open_batcher(loaded) for loaded in self.loaded}
        self._predictor = Predictor(
            model,
            preprocessor(Settings(settings, self.model_settings), model),
            batchers,
            self.metrics,
            threads=settings.threads or host.cpus(),
            max_pending=settings.max_pending,
            shares_cores=not first.one_device,
            shadow=self.model_settings.shadow,
        )
        rate, best = first.profile.images_per_second, first.profile.batch
        log.info("ready: %s on %s, the engine does %.1f images/s in batches of %d", model.name, first.name, rate, best)
        self._on_ready(first)

    def _open_batcher(self, loaded: LoadedEngine) -> Batcher:
        manifest, figures = loaded.stored.manifest, loaded.stored.manifest.gate.figures
        known = {name: value for name, value in figures.to_json().items() if value is not None} if figures else {}
        self.metrics.announce(loaded.labels, loaded.profile.images_per_second, known)
        batcher = Batcher(
            loaded.engine,
            instances=loaded.instances,
            profile=loaded.profile,
            one_device=loaded.one_device,
            max_wait_s=self.model_settings.max_wait_ms / 1000,
            metrics=self.metrics,
            model=manifest.model.name,
            name=loaded.name,
            nice=SHADOW_NICE if self.model_settings.shadow and loaded is not self.loaded[0] else 0,
        )
        batcher.start()
        return batcher
