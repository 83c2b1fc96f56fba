"""Starting, being ready, failing and stopping."""

import dataclasses
import logging
import os

import fakes
import pytest

from app.errors import (
    BackendUnavailable,
    BuildFailed,
    EngineFailed,
    EngineStale,
    GateFailed,
    SettingsError,
    StoreError,
    WeightsError,
)
from app.serving import profile
from app.serving.profile import measure
from app.serving.service import SHADOW_NICE


def test_healthz_answers_and_readyz_shows_progress_while_the_engine_is_built(serve):
    source = fakes.Source(fakes.stored())
    source.go.clear()
    live = serve(source, wait=False)
    assert source.reported.wait(10)
    assert live.client.get("/healthz").status_code == 200
    ready = live.client.get("/readyz")
    assert ready.status_code == 503
    assert ready.json() == {"phase": "engine", "step": 3, "of": 6, "model": "pets"}
    assert live.client.get("/v1/models").json() == {"models": []}


def test_images_are_refused_with_retry_after_until_ready(serve):
    source = fakes.Source(fakes.stored())
    source.go.clear()
    live = serve(source, wait=False)
    response = live.client.post("/v1/detect", content=b"x")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")
    assert int(response.headers["Retry-After"]) >= 1
    assert live.value("ready") == 0
    assert live.value("rejected_total", reason="not_ready") == 1


def test_the_server_is_ready_after_warm_up_of_one_frame_and_of_batches(serve, device, monkeypatch):
    monkeypatch.setattr(profile, "measure", measure)  # the real function
    live = serve(wait=False)
    for _ in range(4):  # one low-latency frame, then batches of 1, 2 and maybe 4
        assert device.busy.acquire(timeout=10)
    while not live.service.ready:
        pass
    assert {1, 2} <= {shape[0] for shape in device.shapes} <= {1, 2, 4}
    assert device.low_latency[0]
    assert not any(device.low_latency[1:])
    assert live.client.get("/readyz").json() == {"phase": "ready", "model": "pets"}
    assert live.value("ready") == 1
    assert live.value("engine_images_per_second", model="pets", engine="fake") > 0


@pytest.mark.parametrize("error", [BuildFailed("no space"), RuntimeError("a defect")])
def test_a_failed_start_keeps_its_reason_and_is_not_ready(serve, error, caplog):
    with caplog.at_level(logging.CRITICAL):
        live = serve(fakes.Source(error))
    assert str(error) in str(live.service.failure)
    assert live.client.get("/readyz").status_code == 503


def test_stop_during_a_build_cancels_it(serve):
    source = fakes.Source(BuildFailed("the build was cancelled"))
    source.go.clear()
    live = serve(source, wait=False)
    assert source.reported.wait(10)
    live.stop()
    assert source.cancelled
    assert live.service.failure is None


def test_models_list_the_engine_and_its_gate_result(serve):
    (model,) = serve().client.get("/v1/models").json()["models"]
    assert model["name"] == "pets"
    assert model["names"] == {"0": "cat", "1": "dog", "2": "red, large cat"}
    assert model["ready"] is True
    assert model["engine"]["backend"] == "fake"
    assert model["engine"]["gate"]["on"] == "2 images"
    assert model["engine"]["gate"]["figures"]["agreement"] == 1.0
    assert (model["compared_with"], model["fallback"]) == ([], None)


def test_engine_info_describes_the_engine(serve):
    labels = {
        "model": "pets",
        "backend": "fake",
        "precision": "fp32",
        "imgsz": "64",
        "batch": "4",
        "device": "cpu test",
    }
    assert serve().value("engine_info", **labels) == 1


def test_metrics_are_in_the_format_that_the_scraper_accepts(serve):
    live = serve()
    assert live.client.get("/metrics").headers["content-type"].startswith("text/plain")
    wanted = {"Accept": "application/openmetrics-text; version=1.0.0"}
    response = live.client.get("/metrics", headers=wanted)
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


def test_openapi_describes_the_body_the_response_and_every_parameter(serve):
    operation = serve().client.get("/openapi.json").json()["paths"]["/v1/detect"]["post"]
    assert {"multipart/form-data", "image/*"} <= operation["requestBody"]["content"].keys()
    assert {parameter["name"] for parameter in operation["parameters"]} == {
        "conf", "iou", "max_det", "classes", "agnostic", "masks", "engine", "compare", "format",
    }  # fmt: skip
    examples = operation["responses"]["200"]["content"]["application/json"]["examples"]
    assert {"detect", "segment", "pose", "classify", "obb"} <= examples.keys()
    assert all(example["value"]["images"] for example in examples.values())


def error_lines(caplog) -> list[str]:
    """Return the log lines of level ERROR and above."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("kind", [BackendUnavailable, BuildFailed, EngineFailed, GateFailed])
def test_a_fallback_serves_and_is_shown_in_log_metrics_readyz_and_models(serve, device, second, caplog, kind):
    live = serve(fakes.Source(kind("this is why")), backend="tensorrt", fallback="pytorch")
    text = f"pytorch serves instead of tensorrt ({kind.code}), because this is why"
    assert error_lines(caplog) == [f"FALLBACK: {text}"]
    assert live.value("fallback", model="yolov8n-demo", reason=kind.code) == 1
    ready = live.client.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"phase": "ready", "model": "pets", "fallback": text})
    (model,) = live.client.get("/v1/models").json()["models"]
    assert (model["fallback"], model["engine"]["name"]) == (text, "pytorch")
    assert live.client.post("/v1/detect", content=b"x").status_code == 422
    assert device.shapes == []


def test_a_fallback_serves_if_a_rebuilt_engine_is_stale_again(serve, monkeypatch, tmp_path, caplog):
    load = fakes.Backend.load

    def stale(self, folder, instances, threads):
        if folder == tmp_path / "accelerated":
            raise EngineStale("it was built for another GPU")
        return load(self, folder, instances, threads)

    monkeypatch.setattr(fakes.Backend, "load", stale)
    (tmp_path / "accelerated").mkdir()
    accelerated = fakes.Source(dataclasses.replace(fakes.stored(), folder=tmp_path / "accelerated"))
    run = accelerated.run

    def build(report):
        (tmp_path / "accelerated").mkdir(exist_ok=True)
        return run(report)

    accelerated.run = build
    live = serve(accelerated, backend="tensorrt", fallback="pytorch")
    assert error_lines(caplog) == [
        "FALLBACK: pytorch serves instead of tensorrt (engine_stale), because it was built for another GPU"
    ]
    assert live.value("fallback", reason="engine_stale") == 1
    assert live.value("ready") == 1


@pytest.mark.parametrize("kind", [BackendUnavailable, BuildFailed, EngineFailed, EngineStale, GateFailed])
def test_without_a_fallback_the_start_ends_with_the_reason(serve, caplog, kind):
    live = serve(fakes.Source(kind("this is why")), backend="tensorrt", fallback="none")
    assert type(live.service.failure) is kind
    assert str(live.service.failure) == "this is why"
    assert live.value("fallback") is None
    assert not live.service.ready
    assert error_lines(caplog) == []  # the caller logs it


@pytest.mark.parametrize("kind", [SettingsError, WeightsError, StoreError])
def test_an_error_of_settings_weights_or_store_never_falls_back(serve, kind, caplog):
    live = serve(fakes.Source(kind("this is why")), backend="tensorrt", fallback="pytorch")
    assert str(live.service.failure) == "this is why"
    assert not live.service.ready
    assert error_lines(caplog) == []


def test_a_failed_fallback_ends_the_start_with_both_reasons(serve):
    live = serve(
        fakes.Source(BackendUnavailable("no GPU")),
        sources={"pytorch": fakes.Source(WeightsError("not a .pt file"))},
        backend="tensorrt",
        fallback="pytorch",
    )
    assert type(live.service.failure) is WeightsError
    assert str(live.service.failure) == (
        "FALLBACK=pytorch failed too: not a .pt file; before it BACKEND=tensorrt: no GPU"
    )
    assert live.client.get("/readyz").status_code == 503


def test_a_loaded_engine_is_not_a_fallback(serve, caplog):
    live = serve(backend="tensorrt", fallback="pytorch")
    assert live.value("fallback") is None
    assert "fallback" not in live.client.get("/readyz").json()
    assert error_lines(caplog) == []


def test_a_safer_precision_than_requested_is_shown_like_a_fallback(serve, caplog):
    live = serve(fakes.Source(fakes.stored(precision="fp32")), precision="fp16")
    text = "fp32 is served, because the accuracy gate refused fp16"
    assert error_lines(caplog) == [f"FALLBACK: {text}"]
    assert live.value("fallback", reason="gate_failed") == 1
    assert live.client.get("/readyz").json()["fallback"] == text
    assert live.client.get("/v1/models").json()["models"][0]["fallback"] == text


def test_a_safer_precision_than_the_default_of_the_backend_is_a_fallback(serve, monkeypatch):
    monkeypatch.setattr(fakes.Backend, "PRECISIONS", ("fp16", "fp32"))
    assert serve().service.fallback == "fp32 is served, because the accuracy gate refused fp16"


def test_an_imported_engine_keeps_its_precision_without_a_fallback(serve):
    live = serve(fakes.Source(fakes.stored(precision="int8", figures=None)))
    assert live.service.fallback is None
    assert live.value("fallback") is None
    assert live.value("gate") is None


def test_stop_during_the_build_of_the_fallback_cancels_it(serve):
    building = fakes.Source(BuildFailed("the build was cancelled"))
    building.go.clear()
    first = fakes.Source(BackendUnavailable("no GPU"))
    live = serve(first, sources={"pytorch": building}, wait=False, backend="tensorrt", fallback="pytorch")
    assert building.reported.wait(10)
    live.stop()
    assert (first.cancelled, building.cancelled) == (False, True)
    assert live.service.failure is None


def test_a_cancelled_build_does_not_fall_back(serve, caplog):
    source = fakes.Source(BuildFailed("the build was cancelled"))
    source.go.clear()
    other = fakes.Source(fakes.stored(backend="pytorch"))
    live = serve(source, sources={"pytorch": other}, wait=False, backend="tensorrt", fallback="pytorch")
    assert source.reported.wait(10)
    live.stop()
    assert not other.reported.is_set()
    assert error_lines(caplog) == []


def test_stop_during_the_build_of_the_second_engine_cancels_it_and_closes_the_first(serve, device):
    building = fakes.Source(BuildFailed("the build was cancelled"))
    building.go.clear()
    live = serve(sources={"pytorch": building}, wait=False, compare="pytorch")
    assert building.reported.wait(10)
    assert live.client.get("/readyz").status_code == 503
    live.stop()
    assert building.cancelled
    assert device.closed
    assert live.service.failure is None


def test_models_metrics_and_gate_show_both_engines(serve, device, second):
    live = serve(compare="pytorch")
    (model,) = live.client.get("/v1/models").json()["models"]
    assert model["engine"]["name"] == "fake"
    assert [other["name"] for other in model["compared_with"]] == ["pytorch"]
    for engine in ("fake", "pytorch"):
        assert live.value("engine_info", engine=engine, backend=engine) == 1
        assert live.value("engine_images_per_second", model="pets", engine=engine) > 0
        assert live.value("gate", model="pets", engine=engine, figure="agreement") == 1
        assert live.value("gate", engine=engine, figure="map50") is None  # the dataset has no labels
    live.stop()
    assert (device.closed, second.closed) == (True, True)


def test_a_second_engine_that_cannot_be_loaded_ends_the_start_and_names_the_setting(serve):
    live = serve(sources={"pytorch": fakes.Source(WeightsError("needs .pt weights"))}, compare="pytorch")
    assert str(live.service.failure) == "COMPARE=pytorch cannot be loaded: needs .pt weights"
    assert not live.service.ready


def test_a_second_engine_that_already_serves_as_fallback_is_not_compared(serve, caplog):
    first = fakes.Source(BackendUnavailable("no GPU"))
    live = serve(first, backend="tensorrt", fallback="pytorch", compare="pytorch", shadow=1)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == ["COMPARE=pytorch: pytorch serves already, there is nothing to compare it with"]
    (model,) = live.client.get("/v1/models").json()["models"]
    assert (model["engine"]["name"], model["compared_with"]) == ("pytorch", [])


@pytest.mark.parametrize(("shadow", "expected"), [(0, 0), (0.5, SHADOW_NICE)])
def test_a_second_engine_that_shadows_runs_at_low_priority(serve, device, second, sample, shadow, expected):
    live = serve(compare="pytorch", shadow=shadow)
    assert live.client.post("/v1/detect?compare=1", content=sample).status_code == 200
    assert device.nice == os.getpriority(os.PRIO_PROCESS, 0)
    assert second.nice == max(expected, device.nice)
