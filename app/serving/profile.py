"""Measures an engine without other load: images per second, and seconds per batch of each size."""

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from app.backends import Engine
from app.vision.preprocess import Pixels

MAX_BATCH_S = 1.0  # sizes whose batch is expected to take longer, with every instance busy, are not tried
HANDLING_S = 0.0002  # of the service's own time per batch
MIN_GAIN_RATIO = 1.05  # in images per second; a larger batch must reach it


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """Seconds by batch size, with every instance busy: the device's time, and the time outside the device."""

    sizes: Sequence[int]
    device_s: Sequence[float]
    handover_s: Sequence[float]

    @property
    def images_per_second(self) -> float:
        """Images per second at the size `batch`."""
        best = self.sizes.index(self.batch)
        return self.sizes[best] / self.device_s[best]

    @property
    def batch(self) -> int:
        """The batch size to serve: the last one with MIN_GAIN_RATIO times the rate of the best size before it."""
        best = 0
        for i in range(1, len(self.sizes)):
            if self._rate(i) >= self._rate(best) * MIN_GAIN_RATIO:
                best = i
        return self.sizes[best]

    def to_json(self) -> dict[str, float]:
        """Return milliseconds of device time by batch size."""
        return {str(size): round(seconds * 1000, 3) for size, seconds in zip(self.sizes, self.device_s, strict=True)}

    def busy_s(self, size: int) -> float:
        """Return the seconds that the device is busy with a batch of this size."""
        return float(np.interp(size, self.sizes, self.device_s))

    def lead_s(self, size: int) -> float:
        """Return how many seconds before the device is free a batch of this size should start."""
        return self.handover_s[min(bisect_left(self.sizes, size), len(self.sizes) - 1)]

    def _rate(self, i: int) -> float:
        return self.sizes[i] / (self.device_s[i] + HANDLING_S)


def measure(engine: Engine, instances: int, frame: Pixels, largest: int, patience: int = 2) -> EngineProfile:
    """Measure sizes 1, 2, 4, ... and `largest`, until `patience` sizes in a row gave no gain.

    Each size runs once before it is measured.
    """
    sizes, device_s, handover_s = list[int](), list[float](), list[float]()
    size = 1
    while True:
        rate, handover = _try(engine, instances, [frame] * size)
        sizes.append(size)
        device_s.append(size / rate)
        handover_s.append(handover)
        found = EngineProfile(sizes, device_s, handover_s)
        without_gain = len(sizes) - 1 - sizes.index(found.batch)
        if size == largest or without_gain == patience or 2 * device_s[-1] * instances > MAX_BATCH_S:
            return found
        size = min(size * 2, largest)


def _try(engine: Engine, instances: int, batch: Sequence[Pixels]) -> tuple[float, float]:
    """Return images per second, and the seconds of one batch outside the device."""
    waits = list[float]()

    def work(instance: int) -> None:
        started = time.perf_counter()
        engine.infer(instance, batch)
        device = engine.device_seconds(instance)
        waits.append(0.0 if device is None else max(0.0, time.perf_counter() - started - device))

    engine.infer(0, batch)
    work(0)
    return images_per_second(instances, len(batch), work, rounds=2), waits[0]


def images_per_second(instances: int, images: int, work: Callable[[int], object], *, rounds: int) -> float:
    """Return images per second with all instances busy. `work` takes `images` images; its first run does not count."""
    started = list[float]()
    start = threading.Barrier(instances, lambda: started.append(time.perf_counter()))

    def instance_work(instance: int) -> None:
        try:
            work(instance)
        finally:
            start.wait()
        for _ in range(rounds):
            work(instance)

    with ThreadPoolExecutor(instances) as pool:
        for each in [pool.submit(partial(instance_work, instance)) for instance in range(instances)]:
            each.result()
    return images * rounds * instances / (time.perf_counter() - started[0])
