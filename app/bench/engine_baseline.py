"""What the parts do alone, on this machine, with the very images that are posted: the engine; decode and letterbox."""

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

_deployed: LoadedEngine | None = None


class EngineBaseline:
    """A process of its own that holds the same engine as the server, and is idle unless it is asked."""

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
        """The one that is served, which need not be the one that was asked for."""
        return self._pool.submit(_precision).result()

    def engine(self, seconds: float) -> float:
        """Images per second of the engine, given frames: all instances busy, at the size of batch that is served."""
        return self._pool.submit(_engine, self._settings, self._files, seconds).result()

    def shares_cores(self) -> bool:
        """Whether the engine works on the cores that decode."""
        return self._pool.submit(_shares_cores).result()

    def latency(self, seconds: float) -> float:
        """Seconds, median: decode, letterbox and the engine with all cores for it, one image after the other."""
        return self._pool.submit(_latency, self._settings, self._files, seconds).result()

    def decode(self, seconds: float) -> float:
        """Images per second of decode and letterbox alone, on every core."""
        return self._pool.submit(_decode, self._settings, self._files, seconds).result()


def _load(engine_provider: Open, settings: Settings) -> None:
    global _deployed  # noqa: PLW0603  # the process's own
    processes.exit_with_parent()
    host.keep_freed_memory()
    source = engine_provider(settings, settings.model.backend)
    _deployed = load(source, lambda _: None, instances=settings.model.instances, threads=settings.server.threads)


def _close() -> None:
    assert _deployed is not None
    _deployed.engine.close()


def _precision() -> str:
    assert _deployed is not None
    return _deployed.built.manifest.fingerprint.precision


def _shares_cores() -> bool:
    assert _deployed is not None
    return not _deployed.one_device


def _prepare(settings: Settings, data: bytes) -> Pixels:
    assert _deployed is not None
    return preprocessor(settings, _deployed.built.manifest.model)(data)[1]


def _engine(settings: Settings, files: list[bytes], seconds: float) -> float:
    assert _deployed is not None
    size, instances = _deployed.capacity.batch, _deployed.instances
    rates = []
    for frame in [_prepare(settings, data) for data in files]:

        def work(instance: int, batch: list[Pixels] = [frame] * size) -> None:
            assert _deployed is not None
            _deployed.engine.infer(instance, batch)

        guess = profile.images_per_second(instances, size, work, rounds=1)
        rounds = max(1, round(seconds / len(files) * guess / size / instances))
        rates.append(profile.images_per_second(instances, size, work, rounds=rounds))
    return len(rates) / sum(1 / rate for rate in rates)


def _latency(settings: Settings, files: list[bytes], seconds: float) -> float:
    assert _deployed is not None
    took, ends = list[float](), time.perf_counter() + seconds
    while time.perf_counter() < ends or len(took) < 2 * len(files):
        started = time.perf_counter()
        _deployed.engine.infer(0, [_prepare(settings, files[len(took) % len(files)])], low_latency=True)
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
