"""What an engine does alone: images per second, and what a batch of each size takes."""

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
HANDLING_S = 0.0002  # what a batch takes the service itself
MIN_GAIN_RATIO = 1.05  # times the images per second that a larger batch has to give


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """Seconds by size of batch, with every instance busy: how long the device is taken, and the wait for it on top."""

    sizes: Sequence[int]
    device_s: Sequence[float]
    handover_s: Sequence[float]

    @property
    def images_per_second(self) -> float:
        """At the size that is served."""
        best = self.sizes.index(self.batch)
        return self.sizes[best] / self.device_s[best]

    @property
    def batch(self) -> int:
        """The largest size that pays: each step up to it gave more images per second than a smaller one."""
        best = 0
        for i in range(1, len(self.sizes)):
            if self._rate(i) >= self._rate(best) * MIN_GAIN_RATIO:
                best = i
        return self.sizes[best]

    def to_json(self) -> dict[str, float]:
        """Milliseconds by size."""
        return {str(size): round(seconds * 1000, 3) for size, seconds in zip(self.sizes, self.device_s, strict=True)}

    def busy_s(self, size: int) -> float:
        """How long a batch of this size takes the device."""
        return float(np.interp(size, self.sizes, self.device_s))

    def lead_s(self, size: int) -> float:
        """How long before the device is free a batch of this size had better leave."""
        return self.handover_s[min(bisect_left(self.sizes, size), len(self.sizes) - 1)]

    def _rate(self, i: int) -> float:
        return self.sizes[i] / (self.device_s[i] + HANDLING_S)


def measure(engine: Engine, instances: int, frame: Pixels, largest: int, patience: int = 2) -> EngineProfile:
    """Try sizes 1, 2, 4, ... and `largest`, until `patience` in a row did not pay.

    Each is run once before it counts.
    """
    sizes, device_s, handover_s = list[int](), list[float](), list[float]()
    size = 1
    while True:
        rate, handover = _try(engine, instances, [frame] * size)
        sizes.append(size)
        device_s.append(size / rate)
        handover_s.append(handover)
        found = EngineProfile(sizes, device_s, handover_s)
        in_vain = len(sizes) - 1 - sizes.index(found.batch)
        if size == largest or in_vain == patience or 2 * device_s[-1] * instances > MAX_BATCH_S:
            return found
        size = min(size * 2, largest)


def _try(engine: Engine, instances: int, batch: Sequence[Pixels]) -> tuple[float, float]:
    """Images per second, and the seconds of a batch outside the device."""
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
    """With every instance at work at the same time; each does `work`, of so many images, once before it counts."""
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
