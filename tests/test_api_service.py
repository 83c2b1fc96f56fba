"""Starting, being ready, failing and stopping."""

import logging

import fakes
import pytest

from app.errors import BuildFailed


def test_healthz_answers_and_readyz_shows_progress_while_the_engine_is_built(serve):
    source = fakes.Source(fakes.built())
    source.go.clear()
    live = serve(source, wait=False)
    assert source.reported.wait(10)
    assert live.client.get("/healthz").status_code == 200
    ready = live.client.get("/readyz")
    assert ready.status_code == 503
    assert ready.json() == {"phase": "engine", "step": 3, "of": 6, "model": "pets"}
    assert live.client.get("/v1/models").json() == {"models": []}


def test_images_are_refused_with_retry_after_until_ready(serve):
    source = fakes.Source(fakes.built())
    source.go.clear()
    live = serve(source, wait=False)
    response = live.client.post("/v1/detect", content=b"x")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")
    assert int(response.headers["Retry-After"]) >= 1
    assert live.value("ready") == 0
    assert live.value("rejected_total", reason="not_ready") == 1


def test_ready_after_warm_up_of_one_frame_and_of_the_full_batch(serve, device):
    live = serve(wait=False)
    for _ in range(4):  # lane check, then batches of 1, 2, 4
        assert device.busy.acquire(timeout=10)
    while not live.service.ready:
        pass
    assert {shape[0] for shape in device.shapes} == {1, 2, 4}
    assert live.client.get("/readyz").json() == {"phase": "ready", "model": "pets"}
    assert live.value("ready") == 1
    assert live.value("engine_images_per_second", model="pets", engine="fake") > 0


@pytest.mark.parametrize("error", [BuildFailed("no space"), RuntimeError("a defect")])
def test_failed_start_is_told_and_asks_the_server_to_end(serve, error, caplog):
    with caplog.at_level(logging.CRITICAL):
        live = serve(fakes.Source(error))
    assert str(error) in str(live.service.failure)
    assert live.client.get("/readyz").status_code == 503


def test_stop_while_building_cancels_the_build(serve):
    source = fakes.Source(BuildFailed("the build was cancelled"))
    source.go.clear()
    live = serve(source, wait=False)
    assert source.reported.wait(10)
    live.stop()
    assert source.cancelled
    assert live.service.failure is None


def test_models_tell_what_is_served_and_how_it_was_checked(serve):
    (model,) = serve().client.get("/v1/models").json()["models"]
    assert model["name"] == "pets"
    assert model["names"] == {"0": "cat", "1": "dog", "2": "red, large cat"}
    assert model["ready"] is True
    assert model["engine"]["backend"] == "fake"
    assert model["engine"]["gate"]["on"] == "2 pictures"
    assert model["engine"]["gate"]["figures"]["agreement"] == 1.0
    assert (model["compared_with"], model["fallback"]) == ([], None)


def test_engine_info_names_the_engine(serve):
    labels = {
        "model": "pets",
        "backend": "fake",
        "precision": "fp32",
        "imgsz": "64",
        "batch": "4",
        "device": "cpu test",
    }
    assert serve().value("engine_info", **labels) == 1


def test_metrics_come_in_the_format_that_the_scraper_asks_for(serve):
    live = serve()
    assert live.client.get("/metrics").headers["content-type"].startswith("text/plain")
    wanted = {"Accept": "application/openmetrics-text; version=1.0.0"}
    response = live.client.get("/metrics", headers=wanted)
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


def test_openapi_describes_the_body_the_answer_and_every_parameter(serve):
    operation = serve().client.get("/openapi.json").json()["paths"]["/v1/detect"]["post"]
    assert {"multipart/form-data", "image/*"} <= operation["requestBody"]["content"].keys()
    assert {parameter["name"] for parameter in operation["parameters"]} == {
        "conf", "iou", "max_det", "classes", "agnostic", "engine", "compare", "format",
    }  # fmt: skip
    assert operation["responses"]["200"]["content"]["application/json"]["example"]["images"]
