"""Loading a stored engine and its warm-up. A stale engine is rebuilt once."""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import fakes
import pytest

from app import backends
from app.errors import BuildFailed, EngineFailed, EngineStale
from app.model import ModelInfo
from app.progress import Progress
from app.serving import profile
from app.serving.loader import LoadedEngine, load, preprocessor
from app.serving.profile import EngineProfile
from app.settings import Settings
from app.store.manifest import StoredEngine
from app.system import host
from app.system.metrics import Engine as EngineLabels


class Device(fakes.Device):
    """Records (instance, number of images) of every batch."""

    def __init__(self) -> None:
        super().__init__(fakes.ROWS)
        self.taken: list[tuple[int, int]] = []

    def infer(self, instance, frames, *, low_latency=False):
        self.taken.append((instance, len(frames)))
        return super().infer(instance, frames, low_latency=low_latency)


class Backend(fakes.Backend):
    """Records what it loads. Raises the `refusals` first."""

    def __init__(self, device: fakes.Device) -> None:
        super().__init__(device)
        self.loads: list[tuple[Path, int, int]] = []
        self.refusals: list[Exception] = []

    def load(self, folder, instances, threads):
        self.loads.append((folder, instances, threads))
        if self.refusals:
            raise self.refusals.pop(0)
        return super().load(folder, instances, threads)


class Source(fakes.Source):
    """Counts its runs."""

    runs = 0

    def run(self, report):
        self.runs += 1
        if isinstance(self.outcome, StoredEngine):
            self.outcome.folder.mkdir(exist_ok=True)
        return super().run(report)


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def backend(device, monkeypatch) -> Backend:
    backend = Backend(device)
    monkeypatch.setattr(backends, "get", {"fake": backend}.__getitem__)
    return backend


@pytest.fixture
def store(tmp_path) -> Path:
    (folder := tmp_path / "engines").mkdir()
    return folder


@pytest.fixture
def source(store) -> Callable[..., Source]:
    """Return a function that makes a source of an engine in the store. Its folder exists after a run."""

    def make(**fields: object) -> Source:
        return Source(dataclasses.replace(fakes.stored(**fields), folder=store / "pets"))

    return make


def run(source: fakes.Source, **options: int | None) -> LoadedEngine:
    return load(source, lambda _: None, **({"instances": None, "threads": None} | options))


# Warming up


@pytest.fixture
def clock(device, monkeypatch) -> Callable[[float], None]:
    """Return a function that sets the duration of a batch in seconds, independent of its size."""

    def take(seconds: float) -> None:
        monkeypatch.setattr(profile, "time", SimpleNamespace(perf_counter=lambda: seconds * len(device.taken)))

    return take


def test_warm_up_starts_with_one_low_latency_frame(backend, device, source):
    run(source(batch=6), instances=3)
    assert device.taken[0] == (0, 1)
    assert device.low_latency == [True] + [False] * (len(device.taken) - 1)


def test_warm_up_runs_every_power_of_two_batch_size_in_every_instance(backend, device, source, clock):
    clock(0.1)
    run(source(batch=6), instances=3)
    assert set(device.taken) == {(instance, size) for instance in range(3) for size in (1, 2, 4, 6)}
    assert {shape[1:] for shape in device.shapes} == {(64, 64, 3)}


def test_warm_up_runs_every_shape_in_every_instance_and_measures_the_largest(backend, device, source, clock):
    clock(0.1)
    run(source(batch=6, imgsz=96, shapes=((96, 96), (64, 96), (96, 32))), instances=3)
    assert {
        shape[1:3] for shape, low_latency in zip(device.shapes, device.low_latency, strict=True) if low_latency
    } == {
        (96, 96),
        (64, 96),
        (96, 32),
    }
    taken = {(instance, *shape[:3]) for (instance, _), shape in zip(device.taken, device.shapes, strict=True)}
    assert taken == {
        *((instance, 1, *shape) for instance in range(3) for shape in ((64, 96), (96, 32))),
        *((instance, size, 96, 96) for instance in range(3) for size in (1, 2, 4, 6)),
    }


@pytest.mark.parametrize(("batch", "sizes"), [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 5]), (8, [1, 2, 4, 8])])
def test_warm_up_ends_with_the_largest_batch_size(backend, device, source, clock, batch, sizes):
    clock(0.25)
    run(source(batch=batch))
    assert list(dict.fromkeys(size for _, size in device.taken)) == sizes


def test_the_engine_profile_holds_the_best_batch_size_and_its_throughput(backend, device, source, clock):
    clock(0.25)
    found = run(source(batch=6)).profile
    assert (found.batch, found.images_per_second) == (6, pytest.approx(24))


@pytest.mark.parametrize("one_device", [False, True])
def test_the_backend_decides_if_instances_share_a_device(backend, source, monkeypatch, one_device):
    monkeypatch.setattr(Backend, "ONE_DEVICE", one_device)
    assert run(source()).one_device is one_device


def test_an_engine_that_fails_at_warm_up_is_not_stale(backend, device, source, store):
    device.failure = EngineFailed("no memory is left")
    given = source()
    with pytest.raises(EngineFailed, match="no memory is left"):
        run(given)
    assert given.runs == 1
    assert (store / "pets").exists()


# Instances and threads


def test_the_backend_sets_the_number_of_instances_unless_it_is_configured(backend, device, source, monkeypatch):
    monkeypatch.setattr(Backend, "INSTANCES", 2)
    assert run(source()).instances == 2
    assert run(source(), instances=3).instances == 3
    assert [instances for _, instances, _ in backend.loads] == [2, 3]
    assert {instance for instance, _ in device.taken} == {0, 1, 2}


def test_a_backend_without_a_number_of_instances_gets_one_per_core(backend, source, monkeypatch):
    monkeypatch.setattr(Backend, "INSTANCES", None)
    monkeypatch.setattr(host, "cpus", lambda: 5)
    assert [run(source()).instances, run(source(), threads=3).instances, run(source(), instances=2).instances] == [
        5,
        3,
        2,
    ]
    assert [loaded[1:] for loaded in backend.loads] == [(5, 5), (3, 3), (2, 5)]


def test_threads_default_to_the_number_of_cores(backend, source, store, monkeypatch):
    monkeypatch.setattr(host, "cpus", lambda: 5)
    run(source())
    run(source(), threads=3)
    assert backend.loads == [(store / "pets", 1, 5), (store / "pets", 1, 3)]


# Progress reports


def test_the_warm_up_is_reported_after_the_progress_of_the_source(backend, source):
    reported: list[Progress] = []
    load(source(), reported.append, instances=None, threads=None)
    assert [(progress.phase, progress.model) for progress in reported] == [("engine", "pets"), ("warm-up", "pets")]


def test_an_error_of_the_source_ends_the_start(backend):
    with pytest.raises(BuildFailed, match="the builder died"):
        run(Source(BuildFailed("the builder died")))
    assert backend.loads == []


# Staleness


def test_a_stale_engine_is_rebuilt_once_and_the_reason_is_logged(backend, source, store, caplog):
    backend.refusals = [EngineStale("the plan is of another TensorRT")]
    given, reported = source(), []
    (store / "pets").mkdir()
    (store / "pets" / "engine.plan").write_bytes(b"old")
    with caplog.at_level(logging.WARNING):
        loaded = load(given, reported.append, instances=None, threads=None)
    assert caplog.messages == ["the plan is of another TensorRT: building it again"]
    assert (given.runs, len(backend.loads)) == (2, 2)
    assert list((store / "pets").iterdir()) == []
    assert loaded.stored == given.outcome
    assert [progress.phase for progress in reported] == ["engine", "warm-up"] * 2


def test_an_engine_that_is_stale_twice_ends_the_start(backend, source):
    backend.refusals = [EngineStale("once"), EngineStale("twice")]
    given = source()
    with pytest.raises(EngineStale, match="twice"):
        run(given)
    assert (given.runs, len(backend.loads)) == (2, 2)


def test_an_engine_that_the_device_refuses_stays_in_the_store(backend, source, store):
    backend.refusals = [EngineFailed("no memory is left")]
    with pytest.raises(EngineFailed):
        run(source())
    assert (store / "pets").exists()


def test_an_engine_that_fails_in_its_first_batches_raises_engine_failed_and_is_closed(backend, source, device):
    device.failure = RuntimeError("no kernel")
    with pytest.raises(EngineFailed, match=r"pets fails in its first batches: RuntimeError: no kernel"):
        run(source())
    assert device.closed


def test_an_engine_file_that_its_library_cannot_read_is_stale(backend, source):
    backend.refusals = [RuntimeError("protobuf parsing failed\nat byte 7")] * 2
    with pytest.raises(EngineStale, match=r"pets does not load: RuntimeError: protobuf parsing failed$"):
        run(source())


# Labels and JSON


@pytest.fixture
def loaded(backend, source) -> LoadedEngine:
    found = EngineProfile([1, 2, 4], [0.0123456, 0.0162, 0.04], [0.0] * 3)
    return dataclasses.replace(run(source(precision="fp16", imgsz=96), instances=2), profile=found)


def test_labels_describe_the_engine(loaded):
    assert loaded.name == "fake"
    assert loaded.labels == EngineLabels(
        model="pets", engine="fake", backend="fake", precision="fp16", imgsz=96, batch=4, device="cpu test"
    )


def test_json_holds_the_engine_its_gate_result_and_its_build(loaded):
    reported = json.loads(json.dumps(loaded.to_json()))
    gate = {"on": "2 images", "images": "", "reference": "PyTorch FP32", "figures": fakes.FIGURES.to_json()}
    assert reported.pop("gate") == gate
    assert reported == {
        "name": "fake",
        "key": loaded.stored.manifest.fingerprint.key,
        "backend": "fake",
        "version": "1.0",
        "precision": "fp16",
        "batch": 4,
        "device": "cpu test",
        "instances": 2,
        "images_per_second": 123.46,
        "best_batch": 2,
        "batch_ms": {"1": 12.346, "2": 16.2, "4": 40.0},
        "built": {},
    }


@pytest.mark.parametrize("shapes", [None, ((640, 640),), ((384, 640), (640, 640))])
def test_the_preprocessor_uses_the_shapes_of_the_model(shapes):
    model = ModelInfo("pets", "detect", {0: "cat"}, stride=32, imgsz=640, shapes=shapes)
    assert preprocessor(Settings(), model).shapes == shapes
