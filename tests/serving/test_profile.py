"""The profile of an engine: the best batch size, and the duration of a batch of each size."""

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
    """Runs one batch at a time over all instances. A batch of n takes `seconds_of(n)` on the clock of this device."""

    def __init__(
        self, seconds_of: Callable[[int], float], *, first: float = 0, handover_s: float | None = None
    ) -> None:
        super().__init__()
        self.taken: list[tuple[int, int]] = []  # instance, size
        self.now = first  # the clock continues from here
        self._seconds_of, self._first, self._handover_s = seconds_of, first, handover_s
        self._counting = threading.Lock()

    def infer(self, instance, frames, *, low_latency=False):
        assert not low_latency
        size = len(frames)
        with self._counting:
            slow = self._first if size not in {ran for _, ran in self.taken} else 0
            self.taken.append((instance, size))
            self.now += self._seconds_of(size) + slow + (self._handover_s or 0)
        return super().infer(instance, frames)

    def device_seconds(self, instance):
        return None if self._handover_s is None else self._seconds_of(self.taken[-1][1])

    def perf_counter(self) -> float:
        return self.now

    @property
    def sizes(self) -> list[int]:
        """The batch sizes in the order of their first run."""
        return list(dict.fromkeys(size for _, size in self.taken))


@pytest.fixture
def on(monkeypatch) -> Callable[..., Device]:
    """Return a function that makes a device. The measurement reads the clock of that device."""

    def make(seconds_of, **options) -> Device:
        device = Device(seconds_of, **options)
        monkeypatch.setattr(profile, "time", device)
        return device

    return make


def found(*device_s: float, handover_s: list[float] | None = None) -> EngineProfile:
    """Return a profile of the batch sizes 1, 2, 4, ..."""
    return EngineProfile([2**i for i in range(len(device_s))], device_s, handover_s or [0.0] * len(device_s))


# The best batch size


@pytest.mark.parametrize(
    ("device_s", "batch"),
    [
        ([0.01], 1),
        ([0.01, 0.02, 0.04], 1),  # no more images per second
        ([0.01, 0.01, 0.01], 4),
        ([0.01, 0.012, 0.03], 2),
        ([0.01, 0.03, 0.02], 4),  # size 2 is slow, size 4 is not
        ([0.01, 0.03, 0.045], 1),  # size 4 is better than size 2, but not than size 1
        ([0.01, 0.008, 0.0078, 0.0079], 8),
    ],
)
def test_the_batch_size_is_the_largest_that_raises_throughput(device_s, batch):
    assert found(*device_s).batch == batch


def test_a_gain_below_min_gain_ratio_does_not_enlarge_the_batch():
    def second(factor: float) -> EngineProfile:
        """Return a profile whose size 2 has `factor` times the images per second of size 1, handling included."""
        return found(1, 2 * (1 + HANDLING_S) / factor - HANDLING_S)

    assert second(MIN_GAIN_RATIO * 0.999).batch == 1
    assert second(MIN_GAIN_RATIO * 1.001).batch == 2


def test_a_larger_batch_saves_the_handling_time_of_each_batch():
    assert found(1e-6, 2e-6, 4e-6).batch == 4
    assert found(1, 2, 4).batch == 1


def test_images_per_second_is_the_throughput_of_the_chosen_batch_size():
    assert found(0.01, 0.0125, 0.04).images_per_second == pytest.approx(160)
    assert found(0.01, 0.02, 0.04).images_per_second == pytest.approx(100)


# The duration of a batch


@pytest.mark.parametrize(("size", "seconds"), [(1, 0.1), (2, 0.3), (3, 0.4), (4, 0.5), (5, 0.5)])
def test_busy_s_is_interpolated_linearly_between_measured_sizes(size, seconds):
    assert found(0.1, 0.3, 0.5).busy_s(size) == pytest.approx(seconds)


@pytest.mark.parametrize(("size", "lead_s"), [(1, 0.1), (2, 0.2), (3, 0.4), (4, 0.4), (5, 0.4)])
def test_lead_s_is_that_of_the_next_larger_measured_size(size, lead_s):
    assert found(1, 1, 1, handover_s=[0.1, 0.2, 0.4]).lead_s(size) == lead_s


def test_json_holds_milliseconds_by_size():
    assert json.loads(json.dumps(found(0.0123456, 0.02).to_json())) == {"1": 12.346, "2": 20}


# Measuring


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_powers_of_two_up_to_the_largest_size_are_measured(on, largest, sizes):
    device = on(lambda _: 0.01)
    assert measure(device, 1, FRAME, largest).sizes == device.sizes == sizes


@pytest.mark.parametrize("instances", [1, 2, 3])
def test_every_instance_runs_every_size(on, instances):
    device = on(lambda _: 0.01)
    measure(device, instances, FRAME, 4)
    assert set(device.taken) == {(instance, size) for instance in range(instances) for size in (1, 2, 4)}


@pytest.mark.parametrize("instances", [1, 2, 3])
def test_device_s_is_measured_with_every_instance_busy(on, instances):
    device = on(lambda size: 0.01 + 0.001 * size)
    measured = measure(device, instances, FRAME, 8)
    assert measured.device_s == pytest.approx([0.011, 0.012, 0.014, 0.018])
    assert (measured.batch, measured.images_per_second) == (8, pytest.approx(8 / 0.018))


def test_two_sizes_without_a_gain_end_the_measurement(on):
    device = on(lambda size: 0.01 * size)
    measured = measure(device, 1, FRAME, 64)
    assert (device.sizes, measured.batch) == ([1, 2, 4], 1)


def test_one_size_without_a_gain_does_not_end_the_measurement(on):
    steps = {1: 0.01, 2: 0.02, 4: 0.02, 8: 0.04, 16: 0.04, 32: 0.08, 64: 0.16}
    measured = measure(on(steps.__getitem__), 1, FRAME, 64)
    assert (list(measured.sizes), measured.batch) == ([1, 2, 4, 8, 16, 32, 64], 16)


def test_sizes_that_would_exceed_max_batch_s_are_not_measured(on):
    """The next size is expected to take at most twice as long as the previous one."""
    device = on(lambda size: MAX_BATCH_S / 5)
    assert measure(device, 1, FRAME, 64).sizes == device.sizes == [1, 2, 4, 8, 16, 32, 64]
    device = on(lambda size: MAX_BATCH_S / 5 * size**0.9)
    assert measure(device, 1, FRAME, 64).sizes == device.sizes == [1, 2, 4]


def test_max_batch_s_covers_the_batches_of_all_instances(on):
    device = on(lambda size: MAX_BATCH_S / 5 * size**0.9)
    assert measure(device, 2, FRAME, 64).sizes == device.sizes == [1, 2]


def test_the_first_batch_of_a_size_is_not_measured(on):
    """Kernels are chosen and memory is allocated in the first batch."""
    measured = measure(on(lambda _: 0.01, first=50.0), 2, FRAME, 2)
    assert measured.device_s == pytest.approx([0.01, 0.01])


def test_handover_s_is_the_time_of_a_batch_outside_the_device(on):
    measured = measure(on(lambda size: 0.01 * size, first=50.0, handover_s=0.003), 1, FRAME, 2)
    assert measured.handover_s == pytest.approx([0.003, 0.003])


def test_handover_s_is_zero_if_the_device_reports_no_time(on):
    assert measure(on(lambda _: 0.01), 1, FRAME, 2).handover_s == [0, 0]


def test_handover_s_is_never_negative(on):
    assert measure(on(lambda _: 0.01, handover_s=-0.001), 1, FRAME, 1).handover_s == [0]


def test_a_failure_in_any_instance_ends_the_measurement(on):
    device = on(lambda _: 0.01)

    def infer(instance, frames, *, low_latency=False):
        if instance == 2:
            raise RuntimeError("no context for instance 2")
        return fakes.Device.infer(device, instance, frames)

    device.infer = infer
    with pytest.raises(RuntimeError, match="no context for instance 2"):
        measure(device, 3, FRAME, 4)


def test_instances_run_at_the_same_time():
    together = threading.Barrier(3)
    assert images_per_second(3, 1, lambda _: together.wait(10), rounds=4) > 0


def test_each_instance_runs_its_rounds_and_one_unmeasured_round():
    done: list[int] = []
    images_per_second(2, 1, done.append, rounds=5)
    assert sorted(done) == [0] * 6 + [1] * 6
