"""Settings -> provider of the engine."""

from functools import partial
from importlib import util

from app.backends import simulated
from app.errors import SettingsError
from app.serving.loader import EngineProvider
from app.serving.spec import BuildRequest
from app.serving.stored import StoredEngines
from app.settings import Settings
from app.store.accuracy import Limits
from app.system import log


def engine_provider(settings: Settings, backend: str) -> EngineProvider:
    """Return the provider that finds or builds the engine of these settings on this backend."""
    model = settings.model
    if backend == simulated.NAME:
        a_ms, b_ms = map(float, model.simulated_ms.split(","))
        return simulated.Source(a_ms, b_ms, model.longest_side or 640, model.batch, model.shapes)
    return builder(settings, backend)


def builder(settings: Settings, backend: str) -> EngineProvider:
    """Return the provider that builds engines; without `app.building`, one that finds engines built elsewhere."""
    request = build_request(settings, backend)
    if util.find_spec("app.building") is None:
        return StoredEngines(request)
    from app.building.process import BuildProcess

    configure_log = partial(log.configure, settings.server.log_level, settings.server.log_format)
    return BuildProcess(request, configure_log, settings.server.build_memory_bytes)


def build_request(settings: Settings, backend: str) -> BuildRequest:
    """Return the build request of these settings. Raises SettingsError for a backend that runs no model."""
    if backend == simulated.NAME:
        raise SettingsError(f"BACKEND={backend} runs no model: there is nothing to build")
    model = settings.model
    return BuildRequest(
        weights=model.weights,
        imgsz=model.longest_side,
        shapes=model.shapes,
        batch=model.batch,
        precision=model.precision if backend == model.backend else "auto",
        backend=backend,
        engines=settings.server.engines_dir,
        instances=model.instances,
        gate=model.gate_dir,
        calibration=model.calibration_dir,
        limits=Limits(model.gate_fp32, model.gate_fp16, model.gate_int8, model.gate_map_loss),
    )
