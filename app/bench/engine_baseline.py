"""Baselines on this machine without a server, with the images of the load: engine only, decode and letterbox only."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType
from typing import Self

from app.serving import profile
from app.serving.loader import EngineProvider, LoadedEngine, load, preprocessor
from app.settings import Settings
from app.system import host, processes
from app.vision.preprocess import Pixels

Open = Callable[[Settings, str], EngineProvider]

_loaded: LoadedEngine | None = None


class EngineBaseline:
    """A separate process with the same engine as the server. It is idle between measurements."""

    def __init__(self, engine_provider: Open, settings: Settings, files: Sequence[bytes]) -> None:
        self._pool = ProcessPoolExecutor(1, processes.SPAWN, _load, (engine_provider, settings))
        self._settings, self._files = settings, list(files)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.submit(_close)
        self._pool.shutdown()

    def precision(self) -> str:
        """Return the precision of the engine, which may differ from the requested one."""
        return self._pool.submit(_precision).result()

    def engine(self, seconds: float) -> float:
        """Return the images per second of only the engine, with all instances busy and the server's batch size."""
        return self._pool.submit(_engine, self._settings, self._files, seconds).result()

    def shares_cores(self) -> bool:
        """Return True if the engine uses the cores that decode."""
        return self._pool.submit(_shares_cores).result()

    def latency(self, seconds: float) -> float:
        """Return the median seconds for one image (decode, letterbox and engine), one at a time, with all cores."""
        return self._pool.submit(_latency, self._settings, self._files, seconds).result()

    def decode(self, seconds: float) -> float:
        """Return the images per second of only decode and letterbox, on all cores."""
        return self._pool.submit(_decode, self._settings, self._files, seconds).result()


def _load(engine_provider: Open, settings: Settings) -> None:
    global _loaded  # noqa: PLW0603  # only in the child process
    processes.exit_with_parent()
    host.keep_freed_memory()
    source = engine_provider(settings, settings.model.backend)
    _loaded = load(source, lambda _: None, instances=settings.model.instances, threads=settings.server.threads)


def _close() -> None:
    assert _loaded is not None
    _loaded.engine.close()


def _precision() -> str:
    assert _loaded is not None
    return _loaded.stored.manifest.fingerprint.precision


def _shares_cores() -> bool:
    assert _loaded is not None
    return not _loaded.one_device


def _prepare(settings: Settings, data: bytes) -> Pixels:
    assert _loaded is not None
    return preprocessor(settings, _loaded.stored.manifest.model)(data)[1]


def _engine(settings: Settings, files: list[bytes], seconds: float) -> float:
    assert _loaded is not None
    size, instances = _loaded.profile.batch, _loaded.instances
    rates = []
    for frame in [_prepare(settings, data) for data in files]:

        def work(instance: int, batch: list[Pixels] = [frame] * size) -> None:
            assert _loaded is not None
            _loaded.engine.infer(instance, batch)

        guess = profile.images_per_second(instances, size, work, rounds=1)
        rounds = max(1, round(seconds / len(files) * guess / size / instances))
        rates.append(profile.images_per_second(instances, size, work, rounds=rounds))
    return len(rates) / sum(1 / rate for rate in rates)


def _latency(settings: Settings, files: list[bytes], seconds: float) -> float:
    assert _loaded is not None
    took, ends = list[float](), time.perf_counter() + seconds
    while time.perf_counter() < ends or len(took) < 2 * len(files):
        started = time.perf_counter()
        _loaded.engine.infer(0, [_prepare(settings, files[len(took) % len(files)])], low_latency=True)
        took.append(time.perf_counter() - started)
    return sorted(took[len(files) :])[len(took[len(files) :]) // 2]


def _decode(settings: Settings, files: list[bytes], seconds: float) -> float:
    threads = settings.server.threads or host.cpus()

    def work(_: int) -> None:
        for data in files:
            _prepare(settings, data)

    guess = profile.images_per_second(threads, len(files), work, rounds=1)
    rounds = max(1, round(seconds * guess / len(files) / threads))
    return profile.images_per_second(threads, len(files), work, rounds=rounds)
