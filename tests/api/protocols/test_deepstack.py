"""The API of DeepStack and CodeProject.AI, over a real socket, with a device that the test controls."""

import http.client
import io
import socket
from concurrent.futures import ThreadPoolExecutor

import fakes
import numpy as np
import pytest
import requests
from posts import jpeg, post, wait_for

from app.api.protocols.deepstack import MAX_BOXES
from app.errors import BackendUnavailable

PATH = "/v1/vision/detection"


def detect(live, path=PATH, files=None, **fields):
    return live.client.post(path, files=files or {"image": ("a.jpg", jpeg())}, data=fields)


def labels(answer) -> list[str]:
    body = answer.json()
    assert (answer.status_code, body["success"], body["code"], body["duration"]) == (200, True, 200, 0)
    assert body["count"] == len(body["predictions"])
    return [each["label"] for each in body["predictions"]]


def refused(answer) -> int:
    body = answer.json()
    assert body["success"] is False
    assert body["error"]
    assert body["code"] == answer.status_code
    assert "predictions" not in body
    return answer.status_code


def test_the_response_has_the_keys_of_both_servers_and_integer_pixels_of_the_original_image(serve):
    live = serve()
    answer = detect(live, files={"image": ("a.jpg", jpeg(128, 128))})
    body = answer.json()
    assert labels(answer) == ["dog", "cat"]
    assert body["predictions"][0] == {
        "confidence": 0.9,
        "label": "dog",
        "x_min": 20,
        "y_min": 40,
        "x_max": 60,
        "y_max": 80,
    }
    assert all(isinstance(body["predictions"][0][side], int) for side in ("x_min", "y_min", "x_max", "y_max"))
    assert body["message"] == "Found dog, cat"
    assert body.keys() > {"processMs", "inferenceMs", "analysisRoundTripMs", "moduleId", "command", "timestampUTC"}
    assert body["requestId"] == answer.headers["x-request-id"]
    wait_for(lambda: live.value("requests_total", protocol="deepstack", code="200", engine="fake") == 1)


def test_an_image_without_objects_gets_an_empty_list(shared_server):
    body = detect(shared_server, min_confidence="0.95").json()
    assert (body["success"], body["predictions"], body["count"], body["message"]) == (True, [], 0, "No objects found")


def test_predictions_are_sorted_by_confidence_and_limited_to_20(serve, device):
    device.rows = np.zeros((40, 6), np.float32)
    device.rows[:, 0] = device.rows[:, 1] = np.arange(40)
    device.rows[:, 2:4] = device.rows[:, :2] + 1
    device.rows[:, 4] = np.linspace(0.9, 0.5, 40)
    scores = [each["confidence"] for each in detect(serve()).json()["predictions"]]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == 0.9
    assert len(scores) == MAX_BOXES == 20


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ["dog", "cat"]),
        ({"min_confidence": ""}, ["dog", "cat"]),
        ({"min_confidence": "0"}, ["dog", "cat"]),
        ({"min_confidence": "0.7"}, ["dog"]),
        ({"min_confidence": "0,7"}, ["dog"]),
        ({"min_confidence": " 1 "}, []),
        ({"api_key": ""}, ["dog", "cat"]),
        ({"api_key": "of another server", "typo": "x"}, ["dog", "cat"]),
    ],
)
def test_min_confidence_is_parsed_leniently_and_other_fields_are_ignored(shared_server, fields, expected):
    assert labels(detect(shared_server, **fields)) == expected


def test_min_confidence_defaults_to_0_4(serve, device):
    device.rows = fakes.ROWS.copy()
    device.rows[1, 4] = 0.39
    assert labels(detect(serve())) == ["dog"]


@pytest.mark.parametrize("name", ["pets", "general"])
def test_the_model_answers_at_its_own_name_and_at_general(shared_server, name):
    assert labels(detect(shared_server, f"/v1/vision/custom/{name}")) == ["dog", "cat"]


def test_an_unknown_model_is_not_found_and_the_served_model_is_named(shared_server):
    answer = detect(shared_server, "/v1/vision/custom/ipcam-combined")
    assert refused(answer) == 404
    assert "the model is pets" in answer.json()["error"]


def test_the_list_of_models_needs_no_body(shared_server):
    assert shared_server.client.post("/v1/vision/custom/list").json() == {
        "success": True,
        "models": ["pets"],
        "code": 200,
    }


@pytest.mark.parametrize("path", ["/v1/status/ping", "/v1/server/status/ping"])
def test_ping_answers_in_every_state_of_the_engine(serve, path):
    live = serve(fakes.Source(BackendUnavailable("no")))
    body = live.client.get(path).json()
    assert body["success"] is True
    assert body["message"]
    assert refused(detect(live)) == 503
    assert refused(live.client.post("/v1/vision/custom/list")) == 503


@pytest.mark.parametrize("data", [b"no image", b"", jpeg()[:-80]])
def test_the_frigate_client_gets_json_for_any_input(serve, data):
    """frigate/detectors/plugins/deepstack.py, `detect_raw`, at e3fa70189: it does not check the status."""
    live = serve()

    def detect_raw(data: bytes) -> np.ndarray:
        image_bytes = io.BytesIO(data).getvalue()
        response = requests.post(live.url + PATH, data={"api_key": ""}, files={"image": image_bytes}, timeout=10)
        response_json = response.json()
        detections = np.zeros((20, 6), np.float32)
        if response_json.get("predictions") is None:
            return detections
        for i, detection in enumerate(response_json.get("predictions")):
            if detection["confidence"] < 0.4:
                break
            detections[i] = [
                {"dog": 16, "cat": 15}[detection["label"]],
                float(detection["confidence"]),
                detection["y_min"] / 64,
                detection["x_min"] / 64,
                detection["y_max"] / 64,
                detection["x_max"] / 64,
            ]
        return detections

    assert not detect_raw(data).any()
    seen = detect_raw(jpeg())
    assert seen[0] == pytest.approx([16, 0.9, 20 / 64, 10 / 64, 40 / 64, 30 / 64])
    assert seen[:, 0].astype(int).tolist() == [16, 15] + [0] * 18


@pytest.mark.parametrize("image", [jpeg(), b"no image"])
def test_responses_are_not_chunked(shared_server, image):
    connection = http.client.HTTPConnection("127.0.0.1", shared_server.port, timeout=10)
    head = {"Content-Type": "multipart/form-data; boundary=x"}
    body = b'--x\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n\r\n%s\r\n--x--\r\n' % image
    connection.request("POST", PATH, body, head)
    answer = connection.getresponse()
    assert answer.getheader("Transfer-Encoding") is None
    assert int(answer.getheader("Content-Length")) == len(answer.read())
    assert answer.getheader("Content-Type") == "application/json"
    connection.close()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"files": {"image": ("a.jpg", b"no image")}}, 422),
        ({"files": {"min_confidence": (None, "0.5")}}, 400),
        ({"data": {"min_confidence": "0.5"}}, 400),
        ({"content": b""}, 400),
        ({"files": [("image", ("a.jpg", jpeg()))] * 2}, 413),
        ({"files": {"image": ("a.jpg", jpeg())}, "data": {"min_confidence": "1.5"}}, 422),
        ({"files": {"image": ("a.jpg", jpeg())}, "data": {"min_confidence": "high"}}, 422),
        ({"files": {"image": ("a.jpg", jpeg())}, "data": {"min_confidence": "nan"}}, 422),
    ],
    ids=str,
)
def test_bad_input_is_refused_in_the_deepstack_format_and_the_next_request_works(shared_server, body, status):
    assert refused(shared_server.client.post(PATH, **body)) == status
    assert labels(detect(shared_server)) == ["dog", "cat"]


def test_an_overloaded_server_refuses_in_the_deepstack_format_with_retry_after(serve, device):
    shared_server = serve(max_pending=1)
    device.gate.clear()
    with ThreadPoolExecutor(1) as clients:
        inside = clients.submit(post, shared_server)
        assert device.busy.acquire(timeout=10)
        answer = detect(shared_server)
        assert refused(answer) == 503
        assert int(answer.headers["retry-after"]) >= 1
        device.gate.set()
        assert inside.result().status_code == 200


def test_a_client_that_disconnects_is_counted_on_a_path_with_a_model_name(serve):
    live = serve()
    with socket.create_connection(("127.0.0.1", live.port)) as gone:
        gone.sendall(b"POST /v1/vision/custom/pets HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n\xff\xd8")
        wait_for(lambda: live.service.inflight.waiting == 1)
    wait_for(lambda: live.value("requests_total", protocol="deepstack", code="499") == 1)
    assert live.value("rejected_total", reason="client_gone") == 1
