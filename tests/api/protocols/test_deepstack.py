"""DeepStack's calls and CodeProject.AI's, over a real socket, with a device that the test holds."""

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


def ask(live, path=PATH, files=None, **fields):
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


def test_answer_has_the_keys_of_both_and_whole_pixels_of_the_original(serve):
    live = serve()
    answer = ask(live, files={"image": ("a.jpg", jpeg(128, 128))})
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


def test_an_image_of_nothing_is_answered_with_an_empty_list(shared_server):
    body = ask(shared_server, min_confidence="0.95").json()
    assert (body["success"], body["predictions"], body["count"], body["message"]) == (True, [], 0, "No objects found")


def test_the_best_come_first_and_there_are_twenty_at_most(serve, device):
    device.rows = np.zeros((40, 6), np.float32)
    device.rows[:, 0] = device.rows[:, 1] = np.arange(40)
    device.rows[:, 2:4] = device.rows[:, :2] + 1
    device.rows[:, 4] = np.linspace(0.9, 0.5, 40)
    scores = [each["confidence"] for each in ask(serve()).json()["predictions"]]
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
def test_min_confidence_is_read_leniently_and_other_fields_do_not_matter(shared_server, fields, expected):
    assert labels(ask(shared_server, **fields)) == expected


def test_without_min_confidence_it_is_0_4(serve, device):
    device.rows = fakes.ROWS.copy()
    device.rows[1, 4] = 0.39
    assert labels(ask(serve())) == ["dog"]


@pytest.mark.parametrize("name", ["pets", "general"])
def test_the_model_has_its_own_path_and_one_that_is_general(shared_server, name):
    assert labels(ask(shared_server, f"/v1/vision/custom/{name}")) == ["dog", "cat"]


def test_another_model_is_not_found_and_the_one_that_is_there_is_named(shared_server):
    answer = ask(shared_server, "/v1/vision/custom/ipcam-combined")
    assert refused(answer) == 404
    assert "the model is pets" in answer.json()["error"]


def test_list_of_models_needs_no_body(shared_server):
    assert shared_server.client.post("/v1/vision/custom/list").json() == {
        "success": True,
        "models": ["pets"],
        "code": 200,
    }


@pytest.mark.parametrize("path", ["/v1/status/ping", "/v1/server/status/ping"])
def test_ping_is_answered_whatever_state_the_engine_is_in(serve, path):
    live = serve(fakes.Source(BackendUnavailable("no")))
    body = live.client.get(path).json()
    assert body["success"] is True
    assert body["message"]
    assert refused(ask(live)) == 503
    assert refused(live.client.post("/v1/vision/custom/list")) == 503


@pytest.mark.parametrize("data", [b"no image", b"", jpeg()[:-80]])
def test_frigate_s_call_gets_json_whatever_it_sends(serve, data):
    """frigate/detectors/plugins/deepstack.py, `detect_raw`, at e3fa70189: no status is looked at."""
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
def test_no_answer_is_chunked(shared_server, image):
    asking = http.client.HTTPConnection("127.0.0.1", shared_server.port, timeout=10)
    head = {"Content-Type": "multipart/form-data; boundary=x"}
    body = b'--x\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n\r\n%s\r\n--x--\r\n' % image
    asking.request("POST", PATH, body, head)
    answer = asking.getresponse()
    assert answer.getheader("Transfer-Encoding") is None
    assert int(answer.getheader("Content-Length")) == len(answer.read())
    assert answer.getheader("Content-Type") == "application/json"
    asking.close()


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
def test_bad_input_is_refused_in_deepstack_s_shape_and_harms_nobody(shared_server, body, status):
    assert refused(shared_server.client.post(PATH, **body)) == status
    assert labels(ask(shared_server)) == ["dog", "cat"]


def test_a_full_house_refuses_in_deepstack_s_shape_with_retry_after(serve, device):
    shared_server = serve(max_pending=1)
    device.gate.clear()
    with ThreadPoolExecutor(1) as clients:
        inside = clients.submit(post, shared_server)
        assert device.busy.acquire(timeout=10)
        answer = ask(shared_server)
        assert refused(answer) == 503
        assert int(answer.headers["retry-after"]) >= 1
        device.gate.set()
        assert inside.result().status_code == 200


def test_a_client_that_hangs_up_is_counted_also_on_a_path_with_a_name_in_it(serve):
    live = serve()
    with socket.create_connection(("127.0.0.1", live.port)) as gone:
        gone.sendall(b"POST /v1/vision/custom/pets HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n\xff\xd8")
        wait_for(lambda: live.service.inflight.waiting == 1)
    wait_for(lambda: live.value("requests_total", protocol="deepstack", code="499") == 1)
    assert live.value("rejected_total", reason="client_gone") == 1
