"""The API of Roboflow's SDK and of older snippets, over a real socket, with a device that the test controls."""

import base64
import io
import pickle
import uuid
from pathlib import Path

import fakes
import pytest
from PIL import Image
from posts import jpeg, wait_for

from app.api.protocols.roboflow import ALIASES, model_ids
from app.model import ModelInfo

TEXT = base64.b64encode(jpeg()).decode()
IMAGE = {"type": "base64", "value": TEXT}


def infer(live, **more):
    return live.client.post("/infer/object_detection", json={"model_id": "pets", "image": IMAGE} | more)


def classes(answer) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [each["class"] for each in answer.json()["predictions"]]


def refused(answer) -> tuple[int, str]:
    body = answer.json()
    assert body.keys() == {"message", "code", "request_id"}
    assert body["message"]
    return answer.status_code, body["code"]


def test_the_response_has_box_centres_in_px_and_the_image_size(serve):
    live = serve()
    answer = infer(live, image={"type": "base64", "value": base64.b64encode(jpeg(128, 64)).decode()})
    body = answer.json()
    assert body.keys() == {"inference_id", "time", "image", "predictions"}
    assert body["inference_id"] == answer.headers["x-request-id"]
    assert body["image"] == {"width": 128, "height": 64}
    first = body["predictions"][0]
    assert uuid.UUID(first.pop("detection_id"))
    assert first.pop("confidence") == pytest.approx(0.9)
    assert first == {"x": 40, "y": 52, "width": 40, "height": 24, "class": "dog", "class_id": 1}
    wait_for(lambda: live.value("requests_total", protocol="roboflow", code="200", engine="fake") == 1)


def test_a_list_of_images_gets_a_list_in_its_order_and_shares_a_batch(serve, device):
    live = serve(max_wait_ms=10_000)
    sizes = [(64, 64), (32, 32), (16, 16), (8, 8)]
    images = [{"type": "base64", "value": base64.b64encode(jpeg(*size)).decode()} for size in sizes]
    answers = infer(live, image=images).json()
    assert [(each["image"]["width"], each["image"]["height"]) for each in answers] == sizes
    assert [len(batch) for batch in device.batches] == [4]


def test_a_list_of_one_image_gets_a_list(shared_server):
    assert len(infer(shared_server, image=[IMAGE]).json()) == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["dog", "cat"]),
        ({"confidence": 0.7}, ["dog"]),
        ({"max_detections": 1}, ["dog"]),
        ({"class_filter": ["cat"]}, ["cat"]),
        ({"class_filter": None, "class_agnostic_nms": True, "iou_threshold": 0.5}, ["dog", "cat"]),
        ({"source": "x", "visualize_predictions": False, "disable_active_learning": True}, ["dog", "cat"]),
    ],
)
def test_options_filter_the_results_and_unknown_options_are_ignored(shared_server, options, expected):
    assert classes(infer(shared_server, **options)) == expected


def test_an_image_with_the_boxes_is_returned_on_request(shared_server):
    body = infer(shared_server, visualize_predictions=True).json()
    assert Image.open(io.BytesIO(base64.b64decode(body["visualization"]))).size == (64, 64)


def test_the_registry_lists_every_name_of_the_model_and_add_returns_the_same(shared_server):
    models = {"models": [{"model_id": name, "task_type": "object-detection"} for name in ("pets", "pets/1")]}
    assert shared_server.client.get("/model/registry", params={"api_key": "x"}).json() == models
    assert shared_server.client.post("/model/add", json={"model_id": "pets/1", "api_key": "x"}).json() == models
    assert refused(shared_server.client.post("/model/add", json={"model_id": "birds"})) == (404, "not_found")
    assert shared_server.client.get("/info").json().keys() == {"name", "version", "uuid"}


@pytest.mark.parametrize(
    ("name", "imgsz", "alias"),
    [("yolov8n", 640, "coco/3"), ("yolov8x", 1280, "coco/13"), ("yolov8n", 320, None), ("pets", 640, None)],
)
def test_a_model_of_ultralytics_has_its_roboflow_name_as_alias(name, imgsz, alias):
    model = ModelInfo(name, "detect", {0: "cat"}, stride=32, imgsz=imgsz, shapes=None)
    assert model_ids(model) == [name, f"{name}/1", *([alias] if alias else [])]
    assert len(set(ALIASES.values())) == len(ALIASES) == 10


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_id": "birds"}, (404, "not_found")),
        ({"model_id": None}, (422, "bad_parameter")),
        ({"image": None}, (422, "bad_parameter")),
        ({"image": []}, (413, "too_many_files")),
        ({"image": [IMAGE] * 3}, (413, "too_many_files")),
        ({"image": {"type": "multipart", "value": "file"}}, (422, "bad_parameter")),
        ({"image": {"type": "base64", "value": "!"}}, (422, "undecodable_image")),
        ({"image": {"type": "base64", "value": ""}}, (400, "empty_body")),
        ({"image": {"type": "base64", "value": "AAAA"}}, (422, "undecodable_image")),
        ({"image": {"type": "url", "value": "http://example.com/a.jpg"}}, (403, "url_not_allowed")),
        ({"confidence": 101}, (422, "bad_parameter")),
        ({"class_filter": ["bird"]}, (422, "bad_parameter")),
        ({"disable_preproc_auto_orient": True}, (422, "bad_parameter")),
    ],
    ids=str,
)
def test_each_bad_request_gets_its_error_in_the_roboflow_format_and_the_next_works(serve, changes, expected):
    live = serve(max_files=2)
    assert refused(infer(live, **changes)) == expected
    assert classes(infer(live)) == ["dog", "cat"]


@pytest.mark.parametrize("path", ["/infer/object_detection", "/model/add"])
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 50_000])
def test_a_body_that_is_not_the_expected_json_is_refused(shared_server, path, body):
    assert refused(shared_server.client.post(path, content=body))[0] in (400, 422)


@pytest.mark.parametrize("path", ["/infer/object_detection", "/model/add", "/pets/1"])
def test_a_body_over_the_limit_is_refused(serve, path):
    assert refused(serve(max_body_bytes=100).client.post(path, content=b"[" * 101)) == (413, "body_too_large")


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("/tmp/yolopard-was-pickled"),)


def test_a_pickled_array_is_refused_without_unpickling(shared_server):
    value = base64.b64encode(pickle.dumps(Bomb())).decode()
    assert refused(infer(shared_server, image={"type": "numpy", "value": value})) == (422, "bad_parameter")
    assert refused(infer(shared_server, image={"type": "base64", "value": value})) == (422, "undecodable_image")
    assert not Path("/tmp/yolopard-was-pickled").exists()


@pytest.mark.parametrize(
    "body",
    [
        {"content": TEXT, "headers": {"Content-Type": "application/json"}},
        {"content": TEXT, "headers": {"Content-Type": "application/x-www-form-urlencoded"}},
        {"content": "\n".join(TEXT[i : i + 76] for i in range(0, len(TEXT), 76))},
        {"content": TEXT.replace("+", "-").replace("/", "_").rstrip("=")},
        {"content": f"data:image/jpeg;base64,{TEXT}"},
        {"content": jpeg()},
        {"files": {"file": ("a.jpg", jpeg())}},
        {"files": {"file": (None, TEXT)}},
    ],
    ids=lambda body: str(body)[:60],
)
def test_older_snippets_may_send_the_image_in_many_ways(shared_server, body):
    assert classes(shared_server.client.post("/pets/1?api_key=x", **body)) == ["dog", "cat"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("confidence=0.7", ["dog"]),
        ("confidence=70&overlap=30", ["dog"]),
        ("max_detections=1", ["dog"]),
        ("classes=cat", ["cat"]),
        ("labels=on&stroke=2&format=json&image_type=base64", ["dog", "cat"]),
    ],
)
def test_the_query_of_older_snippets_filters_the_results(shared_server, query, expected):
    assert classes(shared_server.client.post(f"/pets/1?{query}", content=TEXT)) == expected


def test_older_snippets_can_request_an_image(shared_server):
    answer = shared_server.client.post("/pets/1?format=image", content=TEXT)
    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).size == (64, 64)


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/birds/1", TEXT, (404, "not_found")),
        ("/pets/2", TEXT, (404, "not_found")),
        ("/pets/1?confidence=x", TEXT, (422, "bad_parameter")),
        ("/pets/1?image=http://example.com/a.jpg", "", (403, "url_not_allowed")),
        ("/pets/1", "", (400, "empty_body")),
        ("/pets/1", "no base64!", (422, "undecodable_image")),
        ("/pets/1", "<html>", (422, "undecodable_image")),
    ],
)
def test_older_snippets_are_refused_in_the_roboflow_format(shared_server, path, body, expected):
    assert refused(shared_server.client.post(path, content=body)) == expected


@pytest.mark.parametrize("path", ["/labelstudio/predict", "/v1/nothing", "/pets/one", "/pets/-1", "/a/b/1"])
def test_paths_without_a_version_number_are_not_found(shared_server, path):
    answer = shared_server.client.post(path, content=TEXT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_a_failing_engine_is_an_error_in_the_roboflow_format(serve, device):
    live = serve()
    device.failure = RuntimeError("secret of the device")
    answer = infer(live)
    assert refused(answer) == (500, "inference_failed")
    assert "secret" not in answer.text


def test_a_model_that_is_not_ready_is_a_503_with_retry_after(serve):
    source = fakes.Source(fakes.stored())
    source.go.clear()
    live = serve(source, wait=False)
    answer = live.client.get("/model/registry")
    assert refused(answer) == (503, "not_ready")
    assert answer.headers["retry-after"] == "1"
    source.go.set()


def test_a_form_without_a_file_is_refused_as_empty(shared_server):
    assert refused(shared_server.client.post("/pets/1", files={"labels": (None, "on")})) == (400, "empty_body")
