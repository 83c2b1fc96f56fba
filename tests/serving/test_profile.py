"""What an engine does alone: which size of batch pays, and what a batch of each size takes."""

import json
import threading
from collections.abc import Callable

import fakes
import numpy as np
import pytest

from app.serving import profile
from app.serving.profile import HANDLING_S, MAX_BATCH_S, MIN_GAIN_RATIO, EngineProfile, images_per_second, measure

FRAME = np.zeros((2, 2, 3), np.uint8)


class Device(fakes.Device):
    """A batch of n takes `seconds_of(n)` by the clock that is its own, one at a time over all instances."""

    def __init__(
        self, seconds_of: Callable[[int], float], *, first: float = 0, handover_s: float | None = None
    ) -> None:
        super().__init__()
        self.taken: list[tuple[int, int]] = []  # instance, size
        self.now = first  # the clock counts on from the start
        self._seconds_of, self._first, self._handover_s = seconds_of, first, handover_s
        self._counting = threading.Lock()

    def infer(self, instance, frames, *, low_latency=False):
        assert not low_latency
        size = len(frames)
        with self._counting:
            slow = self._first if size not in {taken for _, taken in self.taken} else 0
            self.taken.append((instance, size))
            self.now += self._seconds_of(size) + slow + (self._handover_s or 0)
        return super().infer(instance, frames)

    def device_seconds(self, instance):
        return None if self._handover_s is None else self._seconds_of(self.taken[-1][1])

    def perf_counter(self) -> float:
        return self.now

    @property
    def sizes(self) -> list[int]:
        """In the order in which they were first tried."""
        return list(dict.fromkeys(size for _, size in self.taken))


@pytest.fixture
def on(monkeypatch) -> Callable[..., Device]:
    """A device whose clock is that of the measurement."""

    def make(seconds_of, **options) -> Device:
        device = Device(seconds_of, **options)
        monkeypatch.setattr(profile, "time", device)
        return device

    return make


def found(*device_s: float, handover_s: list[float] | None = None) -> EngineProfile:
    """Of sizes 1, 2, 4, ..."""
    return EngineProfile([2**i for i in range(len(device_s))], device_s, handover_s or [0.0] * len(device_s))


# The size that pays


@pytest.mark.parametrize(
    ("device_s", "batch"),
    [
        ([0.01], 1),
        ([0.01, 0.02, 0.04], 1),  # no more images per second: nothing is gained
        ([0.01, 0.01, 0.01], 4),
        ([0.01, 0.012, 0.03], 2),
        ([0.01, 0.03, 0.02], 4),  # the one between was a bad one
        ([0.01, 0.03, 0.045], 1),  # better than that one is not good enough
        ([0.01, 0.008, 0.0078, 0.0079], 8),
    ],
)
def test_the_batch_is_the_largest_size_that_pays(device_s, batch):
    assert found(*device_s).batch == batch


def test_a_gain_within_the_noise_does_not_pay():
    def second(factor: float) -> EngineProfile:
        """Two images, at this many times the images per second of one, handling included."""
        return found(1, 2 * (1 + HANDLING_S) / factor - HANDLING_S)

    assert second(MIN_GAIN_RATIO * 0.999).batch == 1
    assert second(MIN_GAIN_RATIO * 1.001).batch == 2


def test_a_larger_batch_saves_what_each_takes_the_service_itself():
    assert found(1e-6, 2e-6, 4e-6).batch == 4
    assert found(1, 2, 4).batch == 1


def test_the_rate_is_that_of_the_size_that_is_served():
    assert found(0.01, 0.0125, 0.04).images_per_second == pytest.approx(160)
    assert found(0.01, 0.02, 0.04).images_per_second == pytest.approx(100)


# What a batch takes


@pytest.mark.parametrize(("size", "seconds"), [(1, 0.1), (2, 0.3), (3, 0.4), (4, 0.5), (5, 0.5)])
def test_between_the_sizes_that_were_tried_a_line_is_drawn(size, seconds):
    assert found(0.1, 0.3, 0.5).busy_s(size) == pytest.approx(seconds)


@pytest.mark.parametrize(("size", "lead_s"), [(1, 0.1), (2, 0.2), (3, 0.4), (4, 0.4), (5, 0.4)])
def test_the_lead_is_that_of_the_next_larger_size(size, lead_s):
    assert found(1, 1, 1, handover_s=[0.1, 0.2, 0.4]).lead_s(size) == lead_s


def test_json_tells_milliseconds_by_size():
    assert json.loads(json.dumps(found(0.0123456, 0.02).to_json())) == {"1": 12.346, "2": 20}


# Measuring


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_every_doubling_up_to_the_largest_is_tried_and_nothing_beyond(on, largest, sizes):
    device = on(lambda _: 0.01)
    assert measure(device, 1, FRAME, largest).sizes == device.sizes == sizes


@pytest.mark.parametrize("instances", [1, 2, 3])
def test_every_lane_works_at_every_size(on, instances):
    device = on(lambda _: 0.01)
    measure(device, instances, FRAME, 4)
    assert set(device.taken) == {(instance, size) for instance in range(instances) for size in (1, 2, 4)}


@pytest.mark.parametrize("instances", [1, 2, 3])
def test_seconds_are_those_of_the_device_with_every_lane_busy(on, instances):
    device = on(lambda size: 0.01 + 0.001 * size)
    measured = measure(device, instances, FRAME, 8)
    assert measured.device_s == pytest.approx([0.011, 0.012, 0.014, 0.018])
    assert (measured.batch, measured.images_per_second) == (8, pytest.approx(8 / 0.018))


def test_two_sizes_in_vain_end_it(on):
    device = on(lambda size: 0.01 * size)
    measured = measure(device, 1, FRAME, 64)
    assert (device.sizes, measured.batch) == ([1, 2, 4], 1)


def test_one_size_in_vain_does_not_end_it(on):
    steps = {1: 0.01, 2: 0.02, 4: 0.02, 8: 0.04, 16: 0.04, 32: 0.08, 64: 0.16}
    measured = measure(on(steps.__getitem__), 1, FRAME, 64)
    assert (list(measured.sizes), measured.batch) == ([1, 2, 4, 8, 16, 32, 64], 16)


def test_sizes_that_would_take_too_long_are_not_tried(on):
    """The next size is expected to take at most twice as long as the one before."""
    device = on(lambda size: MAX_BATCH_S / 5)
    assert measure(device, 1, FRAME, 64).sizes == device.sizes == [1, 2, 4, 8, 16, 32, 64]
    device = on(lambda size: MAX_BATCH_S / 5 * size**0.9)
    assert measure(device, 1, FRAME, 64).sizes == device.sizes == [1, 2, 4]


def test_what_is_too_long_counts_every_lane_s_turn(on):
    device = on(lambda size: MAX_BATCH_S / 5 * size**0.9)
    assert measure(device, 2, FRAME, 64).sizes == device.sizes == [1, 2]


def test_the_first_batch_of_a_size_does_not_count(on):
    """It is when kernels are chosen and memory is found."""
    measured = measure(on(lambda _: 0.01, first=50.0), 2, FRAME, 2)
    assert measured.device_s == pytest.approx([0.01, 0.01])


def test_the_lead_is_what_a_batch_takes_outside_of_the_device(on):
    measured = measure(on(lambda size: 0.01 * size, first=50.0, handover_s=0.003), 1, FRAME, 2)
    assert measured.handover_s == pytest.approx([0.003, 0.003])


def test_there_is_no_lead_where_the_device_does_not_tell_its_time(on):
    assert measure(on(lambda _: 0.01), 1, FRAME, 2).handover_s == [0, 0]


def test_a_device_that_tells_more_than_its_batch_took_has_no_negative_lead(on):
    assert measure(on(lambda _: 0.01, handover_s=-0.001), 1, FRAME, 1).handover_s == [0]


def test_a_failure_in_any_lane_ends_it(on):
    device = on(lambda _: 0.01)

    def infer(instance, frames, *, low_latency=False):
        if instance == 2:
            raise RuntimeError("no context for instance 2")
        return fakes.Device.infer(device, instance, frames)

    device.infer = infer
    with pytest.raises(RuntimeError, match="no context for instance 2"):
        measure(device, 3, FRAME, 4)


def test_lanes_work_at_the_same_time():
    together = threading.Barrier(3)
    assert images_per_second(3, 1, lambda _: together.wait(10), rounds=4) > 0


def test_each_lane_does_its_rounds_and_one_before_they_count():
    done: list[int] = []
    images_per_second(2, 1, done.append, rounds=5)
    assert sorted(done) == [0] * 6 + [1] * 6
