"""The engine without a model: it takes its time, answers fixed rows, and says everywhere what it is."""

import gc
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import Live
from fakes import MODEL, rows_of

from app import __main__, backends, providers
from app.backends import simulated
from app.backends.simulated import SimulatedEngine, Source
from app.errors import BuildFailed
from app.serving.service import Service
from app.serving.spec import BuildRequest
from app.settings import Settings
from app.vision.postprocess import K, Thresholds, select

FRAME = np.zeros((64, 64, 3), np.uint8)


class Clock:
    """Of an engine that nobody really waits for: it goes on when somebody sleeps."""

    def __init__(self) -> None:
        self.now, self.slept = 100.0, []

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(simulated, "time", clock)
    return clock


# The engine


@pytest.mark.parametrize(("a", "b", "count", "seconds"), [(0.005, 0.002, 1, 0.007), (0.005, 0.002, 16, 0.037)])
def test_a_batch_takes_its_own_time_and_that_of_its_images(clock, a, b, count, seconds):
    engine = SimulatedEngine(a, b, 64, 1)
    engine.infer(0, [FRAME] * count)
    assert clock.slept == [pytest.approx(seconds)]
    assert engine.device_seconds(0) == pytest.approx(seconds)


def test_an_engine_of_no_time_never_sleeps(clock):
    engine = SimulatedEngine(0, 0, 64, 2)
    for _ in range(3):
        engine.infer(1, [FRAME] * 64)
    assert (clock.slept, engine.device_seconds(1)) == ([], 0)


def test_a_device_that_was_idle_makes_up_for_nothing(clock):
    engine = SimulatedEngine(0.010, 0, 64, 1)
    engine.infer(0, [FRAME])
    clock.now += 5
    engine.infer(0, [FRAME])
    assert clock.slept == pytest.approx([0.010, 0.010])


def test_a_batch_begins_when_the_one_before_ends_however_late_its_thread_wakes(clock):
    engine = SimulatedEngine(0.010, 0, 64, 2)
    instances = threading.Barrier(2)
    sleep = clock.sleep

    def sleep_when_both_are_on_the_device(seconds: float) -> None:
        instances.wait(10)
        sleep(seconds)

    clock.sleep = sleep_when_both_are_on_the_device
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda instance: engine.infer(instance, [FRAME]), range(2)))
    assert sorted(clock.slept) == pytest.approx([0.010, 0.020])  # one after the other


def test_lanes_take_turns_in_real_time():
    engine = SimulatedEngine(0.004, 0.001, 64, 2)
    started = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda instance: [engine.infer(instance, [FRAME] * 2) for _ in range(5)], range(2)))
    assert time.perf_counter() - started >= 10 * 0.006
    assert engine.device_seconds(0) == engine.device_seconds(1) == pytest.approx(0.006)


def test_it_takes_no_cpu():
    engine = SimulatedEngine(0.2, 0, 64, 1)
    before = time.process_time()
    engine.infer(0, [FRAME])
    assert time.process_time() - before < 0.1


def test_each_lane_tells_its_own_time(clock):
    engine = SimulatedEngine(0.001, 0.001, 64, 2)
    engine.infer(0, [FRAME])
    engine.infer(1, [FRAME] * 3)
    assert (engine.device_seconds(0), engine.device_seconds(1)) == (pytest.approx(0.002), pytest.approx(0.004))


def test_rows_are_the_same_whatever_the_images_the_lane_and_the_batch(clock):
    engine = SimulatedEngine(0, 0, 64, 2)
    rows = rows_of(engine.infer(0, [FRAME]))
    assert (rows.shape, rows.dtype) == ((1, K, 6), np.float32)
    others = rows_of(engine.infer(1, [np.full_like(FRAME, 200)] * 3, low_latency=True))
    assert others.shape == (3, K, 6)
    assert all(np.array_equal(each, rows[0]) for each in others)


def test_rows_are_five_boxes_inside_the_frame_that_nms_keeps():
    found = select(SimulatedEngine(0, 0, 640, 1).infer(0, [FRAME])[0], Thresholds(), MODEL)
    assert len(found) == 5
    assert found.boxes.min() >= 0
    assert found.boxes.max() <= 640
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


# Where it comes from


def test_source_gives_an_engine_that_says_what_it_is_and_was_never_judged():
    reported = []
    built = Source(5, 6.9, 320, 64).run(reported.append)
    fingerprint, model = built.manifest.fingerprint, built.manifest.model
    assert (fingerprint.backend, fingerprint.precision, fingerprint.batch) == ("simulated", "none", 64)
    assert fingerprint.device == "simulated: 5 ms a batch and 6.9 ms an image"
    assert (model.name, model.imgsz, model.shapes) == ("simulated", 320, None)
    assert built.manifest.gate.figures is None
    assert built.manifest.gate.on == "nothing: a simulated engine looks at no image"
    assert [str(progress) for progress in reported] == [
        "[3/6] simulated: engine, no image is looked at, the boxes are made up"
    ]


def test_engines_of_other_times_have_other_keys():
    keys = {Source(a, b, 640, 8).run(lambda _: None).manifest.fingerprint.key for a, b in ((0, 0), (5, 0), (0, 5))}
    assert len(keys) == 3


def test_what_the_source_gives_is_loaded_with_its_times(clock):
    source = Source(5, 2, 320, 4)
    engine = backends.get("simulated").load(source.run(lambda _: None).folder, 3, 2)
    rows = engine.infer(2, [FRAME] * 4)
    assert engine.device_seconds(2) == pytest.approx(0.013)
    assert rows[0][0][0, 2] == pytest.approx(0.3 * 320)


def test_a_source_leaves_nothing_behind():
    source = Source(0, 0, 640, 8)
    folder = source.run(lambda _: None).folder
    assert folder.exists()
    del source
    gc.collect()
    assert not folder.exists()


def test_it_is_never_chosen_by_itself():
    assert "simulated" not in backends.PREFERRED


def test_like_a_gpu_it_has_two_lanes_that_take_turns():
    assert backends.instances(simulated, None, 16) == 2
    assert simulated.ONE_DEVICE


# Served


@pytest.fixture
def serve(caplog):
    """A server of `yolopard serve`'s own making, but for its socket."""
    lives = []

    def start(**fields: object) -> Live:
        caplog.set_level(logging.INFO)
        settings = Settings.of(backend="simulated", weights="no/such.pt", **fields)
        ready = threading.Event()
        service = Service(
            settings,
            lambda backend: providers.engine_provider(settings, backend),
            on_ready=lambda _: ready.set(),
            on_failure=ready.set,
        )
        lives.append(Live(service))
        assert ready.wait(20)
        assert service.failure is None
        return lives[-1]

    yield start
    for live in lives:
        live.stop()


def test_it_serves_without_weights_and_finds_five_boxes_in_anything(serve, sample):
    body = serve(batch=4).client.post("/v1/detect", content=sample).json()
    assert len(body["images"][0]["results"]) == 5
    assert body["images"][0]["shape"] == [480, 640]
    assert (body["metadata"]["model"], body["metadata"]["version"]["simulated"]) == ("simulated", "1")


def test_models_the_metrics_and_the_log_say_what_it_is(serve, caplog):
    live = serve(batch=2, simulated_ms="3,0.5")
    (model,) = live.client.get("/v1/models").json()["models"]
    engine = model["engine"]
    device = "simulated: 3 ms a batch and 0.5 ms an image"
    assert model["name"] == "simulated"
    assert (engine["backend"], engine["precision"], engine["device"]) == ("simulated", "none", device)
    on = "nothing: a simulated engine looks at no image"
    assert engine["gate"] == {"on": on, "images": "", "reference": "", "figures": None}
    assert live.value("engine_info", backend="simulated", device=device) == 1
    assert live.value("fallback") is None
    assert "[3/6] simulated: engine, no image is looked at, the boxes are made up" in caplog.messages
    assert any(line.startswith("ready: simulated on simulated, ") for line in caplog.messages)


def test_its_pace_is_found_at_warm_up(serve):
    live = serve(batch=8, simulated_ms="4,1")
    (loaded,) = live.service.loaded
    assert (loaded.instances, loaded.one_device, loaded.capacity.batch) == (2, True, 8)
    assert loaded.capacity.busy_s(8) >= 0.012
    assert loaded.capacity.images_per_second <= 8 / 0.012


def test_full_batches_form_under_load(serve, sample):
    live = serve(batch=4, simulated_ms="20,1", max_pending=64)
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda _: live.client.post("/v1/detect", content=sample), range(64)))
    assert {answer.status_code for answer in answers} == {200}
    assert live.value("batch_size_sum") == 64
    assert live.value("batch_size_count") <= 40
    assert live.value("batches_total", reason="full") >= 4


# Nothing is built of it


@pytest.mark.parametrize("command", ["build", "selftest"])
def test_what_builds_engines_refuses_it_by_name(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(__main__.log, "configure", lambda *_: None)
    options = ["--backend", "simulated", "--engines-dir", str(tmp_path)]
    assert __main__.main([command, *options]) == 1
    assert capsys.readouterr().err.strip().endswith("BACKEND=simulated runs no model: there is nothing to build")
    assert list(tmp_path.iterdir()) == []


def test_the_backend_itself_refuses_to_build(tmp_path):
    context = object()
    with pytest.raises(BuildFailed, match="BACKEND=simulated runs no model"):
        backends.get("simulated").build(context)


def test_another_engine_beside_it_is_built_as_ever():
    settings = Settings.of(backend="simulated", weights="my.pt", compare="pytorch")
    order = providers.build_request(settings, "pytorch")
    assert isinstance(order, BuildRequest)
    assert (order.weights, order.backend) == ("my.pt", "pytorch")
