"""The engine without a model: it takes the configured time, returns fixed rows, and is reported as simulated."""

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
    """Replaces the module time: sleep() advances the clock and returns at once."""

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
def test_a_batch_takes_the_time_per_batch_and_the_time_of_each_image(clock, a, b, count, seconds):
    engine = SimulatedEngine(a, b, 64, 1)
    engine.infer(0, [FRAME] * count)
    assert clock.slept == [pytest.approx(seconds)]
    assert engine.device_seconds(0) == pytest.approx(seconds)


def test_an_engine_with_zero_times_never_sleeps(clock):
    engine = SimulatedEngine(0, 0, 64, 2)
    for _ in range(3):
        engine.infer(1, [FRAME] * 64)
    assert (clock.slept, engine.device_seconds(1)) == ([], 0)


def test_idle_time_does_not_shorten_the_next_batch(clock):
    engine = SimulatedEngine(0.010, 0, 64, 1)
    engine.infer(0, [FRAME])
    clock.now += 5
    engine.infer(0, [FRAME])
    assert clock.slept == pytest.approx([0.010, 0.010])


def test_a_batch_begins_when_the_previous_one_ends_even_if_its_thread_wakes_late(clock):
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


def test_instances_take_turns_in_real_time():
    engine = SimulatedEngine(0.004, 0.001, 64, 2)
    started = time.perf_counter()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda instance: [engine.infer(instance, [FRAME] * 2) for _ in range(5)], range(2)))
    assert time.perf_counter() - started >= 10 * 0.006
    assert engine.device_seconds(0) == engine.device_seconds(1) == pytest.approx(0.006)


def test_inference_uses_no_cpu():
    engine = SimulatedEngine(0.2, 0, 64, 1)
    before = time.process_time()
    engine.infer(0, [FRAME])
    assert time.process_time() - before < 0.1


def test_device_seconds_are_those_of_the_instance(clock):
    engine = SimulatedEngine(0.001, 0.001, 64, 2)
    engine.infer(0, [FRAME])
    engine.infer(1, [FRAME] * 3)
    assert (engine.device_seconds(0), engine.device_seconds(1)) == (pytest.approx(0.002), pytest.approx(0.004))


def test_rows_do_not_depend_on_image_instance_or_batch(clock):
    engine = SimulatedEngine(0, 0, 64, 2)
    rows = rows_of(engine.infer(0, [FRAME]))
    assert (rows.shape, rows.dtype) == ((1, K, 6), np.float32)
    others = rows_of(engine.infer(1, [np.full_like(FRAME, 200)] * 3, low_latency=True))
    assert others.shape == (3, K, 6)
    assert all(np.array_equal(each, rows[0]) for each in others)


def test_rows_are_five_boxes_inside_the_frame_and_nms_keeps_them_all():
    found = select(SimulatedEngine(0, 0, 640, 1).infer(0, [FRAME])[0], Thresholds(), MODEL)
    assert len(found) == 5
    assert found.boxes.min() >= 0
    assert found.boxes.max() <= 640
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


# The source


def test_source_describes_the_engine_and_reports_no_evaluation():
    reported = []
    stored = Source(5, 6.9, 320, 64).run(reported.append)
    fingerprint, model = stored.manifest.fingerprint, stored.manifest.model
    assert (fingerprint.backend, fingerprint.precision, fingerprint.batch) == ("simulated", "none", 64)
    assert fingerprint.device == "simulated: 5 ms a batch and 6.9 ms an image"
    assert (model.name, model.imgsz, model.shapes) == ("simulated", 320, None)
    assert stored.manifest.gate.figures is None
    assert stored.manifest.gate.on == "nothing: a simulated engine runs no model"
    assert [str(progress) for progress in reported] == ["[3/6] simulated: engine, runs no model, the boxes are fixed"]


def test_engines_with_different_times_have_different_keys():
    keys = {Source(a, b, 640, 8).run(lambda _: None).manifest.fingerprint.key for a, b in ((0, 0), (5, 0), (0, 5))}
    assert len(keys) == 3


def test_the_engine_of_a_source_is_loaded_with_its_times(clock):
    source = Source(5, 2, 320, 4)
    engine = backends.get("simulated").load(source.run(lambda _: None).folder, 3, 2)
    rows = engine.infer(2, [FRAME] * 4)
    assert engine.device_seconds(2) == pytest.approx(0.013)
    assert rows[0][0][0, 2] == pytest.approx(0.3 * 320)


def test_a_source_deletes_its_folder_when_it_is_garbage_collected():
    source = Source(0, 0, 640, 8)
    folder = source.run(lambda _: None).folder
    assert folder.exists()
    del source
    gc.collect()
    assert not folder.exists()


def test_auto_never_chooses_the_simulated_backend():
    assert "simulated" not in backends.PREFERRED


def test_it_has_two_instances_on_one_device_like_a_gpu():
    assert backends.instances(simulated, None, 16) == 2
    assert simulated.ONE_DEVICE


# Serving


@pytest.fixture
def serve(caplog):
    """Starts what `yolopard serve` starts, without the socket."""
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


def test_it_serves_without_weights_and_finds_five_boxes_in_every_image(serve, sample):
    body = serve(batch=4).client.post("/v1/detect", content=sample).json()
    assert len(body["images"][0]["results"]) == 5
    assert body["images"][0]["shape"] == [480, 640]
    assert (body["metadata"]["model"], body["metadata"]["version"]["simulated"]) == ("simulated", "1")


def test_the_models_route_the_metrics_and_the_log_show_that_the_engine_is_simulated(serve, caplog):
    live = serve(batch=2, simulated_ms="3,0.5")
    (model,) = live.client.get("/v1/models").json()["models"]
    engine = model["engine"]
    device = "simulated: 3 ms a batch and 0.5 ms an image"
    assert model["name"] == "simulated"
    assert (engine["backend"], engine["precision"], engine["device"]) == ("simulated", "none", device)
    on = "nothing: a simulated engine runs no model"
    assert engine["gate"] == {"on": on, "images": "", "reference": "", "figures": None}
    assert live.value("engine_info", backend="simulated", device=device) == 1
    assert live.value("fallback") is None
    assert "[3/6] simulated: engine, runs no model, the boxes are fixed" in caplog.messages
    assert any(line.startswith("ready: simulated on simulated, ") for line in caplog.messages)


def test_warm_up_measures_its_engine_profile(serve):
    live = serve(batch=8, simulated_ms="4,1")
    (loaded,) = live.service.loaded
    assert (loaded.instances, loaded.one_device, loaded.profile.batch) == (2, True, 8)
    assert loaded.profile.busy_s(8) >= 0.012
    assert loaded.profile.images_per_second <= 8 / 0.012


def test_full_batches_form_under_load(serve, sample):
    live = serve(batch=4, simulated_ms="20,1", max_pending=64)
    with ThreadPoolExecutor(16) as clients:
        responses = list(clients.map(lambda _: live.client.post("/v1/detect", content=sample), range(64)))
    assert {response.status_code for response in responses} == {200}
    assert live.value("batch_size_sum") == 64
    assert live.value("batch_size_count") <= 40
    assert live.value("batches_total", reason="full") >= 4


# Building


@pytest.mark.parametrize("command", ["build", "selftest"])
def test_commands_that_build_engines_refuse_it_by_name(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(__main__.log, "configure", lambda *_: None)
    options = ["--backend", "simulated", "--engines-dir", str(tmp_path)]
    assert __main__.main([command, *options]) == 1
    assert capsys.readouterr().err.strip().endswith("BACKEND=simulated runs no model: there is nothing to build")
    assert list(tmp_path.iterdir()) == []


def test_the_backend_refuses_to_build(tmp_path):
    context = object()
    with pytest.raises(BuildFailed, match="BACKEND=simulated runs no model"):
        backends.get("simulated").build(context)


def test_another_engine_beside_it_is_built_as_usual():
    settings = Settings.of(backend="simulated", weights="my.pt", compare="pytorch")
    request = providers.build_request(settings, "pytorch")
    assert isinstance(request, BuildRequest)
    assert (request.weights, request.backend) == ("my.pt", "pytorch")
