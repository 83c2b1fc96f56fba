"""Request ids, the access log, the response to a defect, and memory that a request leaves behind."""

import base64
import contextlib
import http.client
import json
import logging
import socket
from pathlib import Path

import orjson
import pytest
from conftest import eventually, without_collector
from posts import wait_for

import app
from app.system.log import JsonLines


def test_every_response_has_a_request_id(serve):
    live = serve()
    first, second = (live.client.get("/healthz").headers["x-request-id"] for _ in range(2))
    assert first != second


def test_a_request_id_of_the_client_is_kept_if_it_is_valid(serve):
    live = serve()
    assert live.client.get("/healthz", headers={"X-Request-Id": "abc-1.2:3"}).headers["x-request-id"] == "abc-1.2:3"
    for bad in ("a b", "x" * 129, '"><script>'):
        assert live.client.get("/healthz", headers={"X-Request-Id": bad}).headers["x-request-id"] != bad


def test_requests_are_not_logged_by_default(serve, caplog):
    with caplog.at_level(logging.INFO):
        serve().client.get("/healthz")
    assert [record for record in caplog.records if record.name == "yolopard.access"] == []


def test_the_access_log_has_one_line_per_request_with_its_id_and_no_image_bytes(serve, sample, caplog):
    live = serve(access_log=True)
    with caplog.at_level(logging.INFO):
        response = live.client.post("/v1/detect?conf=0.5", content=sample)
        live.client.get("/healthz")
    lines = [JsonLines().format(record) for record in caplog.records if record.name == "yolopard.access"]
    assert len(lines) == 2
    line = json.loads(lines[0])
    assert line["request_id"] == response.headers["x-request-id"]
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/detect", 200)
    assert line["ms"] > 0
    assert len(lines[0]) < 400


def test_a_defect_is_a_500_with_its_id_in_response_and_log_and_no_traceback_in_the_response(serve, monkeypatch, caplog):
    live = serve()
    monkeypatch.setattr(type(live.service), "readiness", lambda _: 1 / 0)
    with caplog.at_level(logging.ERROR):
        response = live.client.get("/readyz")
    assert response.status_code == 500
    error = response.json()["error"]
    assert error["code"] == "internal"
    assert "division" not in response.text
    (record,) = [record for record in caplog.records if record.name == "yolopard.crash"]
    assert record.request_id == error["request_id"] == response.headers["x-request-id"]
    assert record.exc_info


@pytest.mark.parametrize(("path", "code"), [("/v1/detect", "405"), ("/v1/detect?conf=7", "405")])
def test_refusals_of_a_protocol_are_counted_by_code(serve, path, code):
    live = serve()
    live.client.get(path)
    assert live.value("requests_total", protocol="v1", code=code) == 1
    assert live.value("request_duration_seconds_count", protocol="v1") == 1


def test_invalid_http_after_a_request_in_progress_is_not_logged_as_a_defect(serve, device, sample, caplog):
    """uvicorn closes the connection and notifies only its newest request; uvloop then refuses the first answer."""
    live = serve()
    device.gate.clear()
    with socket.create_connection(("127.0.0.1", live.port)) as connection:
        head = b"POST /v1/detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
        connection.sendall(head + b"%d\r\n\r\n" % len(sample) + sample + head + b"5\r\n\r\nabcde\0\0 no HTTP\r\n\r\n")
        while connection.recv(1 << 16):
            pass
    device.gate.set()
    wait_for(lambda: live.value("requests_total", protocol="v1") is not None)
    assert live.service.predictor.pending == 0
    assert [record for record in caplog.records if record.name == "yolopard.crash"] == []


# Memory that a request leaves behind

LARGE = 2 << 20


def _multipart(*parts: bytes) -> tuple[bytes, dict[str, str]]:
    heads = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'
    body = b"".join(heads + part + b"\r\n" for part in parts) + b"--b--\r\n"
    return body, {"Content-Type": "multipart/form-data; boundary=b"}


def _of(path: str, body: bytes, **headers: str) -> tuple[str, bytes, dict[str, str]]:
    return path, body, {name.replace("_", "-"): value for name, value in headers.items()}


PADDED = b"\xff\xd8" + b"\xff" * LARGE
SAMPLE = sorted((Path(app.__file__).parents[1] / "models/demo/samples").glob("*.jpg"))[0].read_bytes()
CUT = SAMPLE[: len(SAMPLE) // 2] + bytes(LARGE)
INVALID = {
    "damaged": _of("/v1/detect", PADDED),
    "padded": _of("/v1/detect", SAMPLE[:2] + b"\xff" * LARGE + SAMPLE[2:]),
    "cut short": _of("/v1/detect", CUT),
    "two cut short": ("/v1/detect", *_multipart(CUT, CUT)),
    "DeepStack: cut short": ("/v1/vision/detection", *_multipart(CUT)),
    "two damaged": ("/v1/detect", *_multipart(PADDED, PADDED)),
    "of no kind": _of("/v1/detect", bytes(LARGE)),
    "no multipart": _of("/v1/detect", bytes(LARGE), Content_Type="multipart/form-data; boundary=b"),
    "no gzip": _of("/v1/detect", bytes(LARGE), Content_Encoding="gzip"),
    "too large": _of("/v1/detect", bytes(8 * LARGE)),
    "too late": _of("/v1/detect", PADDED, X_Deadline_Ms="0.01"),
    "JSON for images": _of("/v1/detect", b"[" * LARGE, Content_Type="application/json"),
    "KServe: no JSON": _of("/v2/models/fake/infer", b"[" * LARGE),
    "KServe: wrong JSON": _of("/v2/models/fake/infer", b'{"inputs":[%s]}' % (b"1," * LARGE)[:-1]),
    "Roboflow: no image": _of("/fake/1", bytes(LARGE), Content_Type="application/x-www-form-urlencoded"),
    "DeepStack: damaged": ("/v1/vision/detection", *_multipart(PADDED)),
    "wrong query": _of("/v1/detect?conf=7", PADDED),
    "no route": _of("/nowhere", PADDED),
}


def post(live, path, body, headers) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=20)
    with contextlib.closing(connection):
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        answer.read()
    return answer.status


@pytest.mark.parametrize("name", INVALID)
def test_a_refusal_leaves_no_body_to_the_garbage_collector(serve, name):
    live = serve(max_body_bytes=6 * LARGE)
    post(live, *INVALID[name])
    with without_collector() as left:
        assert post(live, *INVALID[name]) >= 400
        eventually(lambda: live.service.inflight.bytes == 0)
    assert left == []


@pytest.mark.parametrize("name", ["raw", "multipart", "KServe", "Roboflow", "DeepStack", "urlencoded"])
def test_an_answered_request_leaves_no_body_to_the_garbage_collector(serve, name):
    live = serve()
    large = SAMPLE + bytes(LARGE)
    text = base64.b64encode(large)
    valid = {
        "raw": _of("/v1/detect", large),
        "multipart": ("/v1/detect?conf=0.5", *_multipart(large, large)),
        "KServe": _of("/v2/models/pets_image/infer", orjson.dumps(_tensor(text))),
        "Roboflow": _of("/infer/object_detection", orjson.dumps(_roboflow(text))),
        "DeepStack": ("/v1/vision/detection", *_multipart(large)),
        "urlencoded": _of("/pets/1", text, Content_Type="application/x-www-form-urlencoded"),
    }
    for collected in (contextlib.nullcontext([]), without_collector()):
        with collected as left:
            assert post(live, *valid[name]) == 200
            eventually(lambda: len(live.server.connections) == 0)
        assert left == []


def _tensor(text: bytes) -> dict[str, object]:
    return {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [text.decode()]}]}


def _roboflow(text: bytes) -> dict[str, object]:
    return {"model_id": "pets", "image": {"type": "base64", "value": text.decode()}}


def test_a_passed_deadline_leaves_no_body_to_the_garbage_collector(serve, device):
    live = serve()
    valid = _of("/v1/detect", SAMPLE + bytes(LARGE), X_Deadline_Ms="200")
    device.gate.clear()
    with without_collector() as left:
        for each in (valid, ("/v1/detect", *_multipart(valid[1], valid[1])[:1], _multipart()[1] | valid[2])):
            assert post(live, *each) == 504
        eventually(lambda: live.service.inflight.bytes == 0)
        device.gate.set()
        eventually(lambda: live.service.predictor._images == 0)
        assert post(live, *valid) == 200
    assert left == []


def test_a_client_that_disconnects_leaves_no_body_to_the_garbage_collector(serve, device):
    live = serve()
    device.gate.clear()
    with without_collector() as left:
        for path in (b"/v1/detect", b"/v1/detect", b"/v1/vision/detection"):
            head = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (path, LARGE)
            with socket.create_connection(("127.0.0.1", live.port)) as client:
                client.sendall(head)
                client.sendall(bytes(LARGE // 2))
        eventually(lambda: live.value("rejected_total", reason="client_gone") == 3)
        eventually(lambda: live.service.inflight.bytes == 0)
    device.gate.set()
    assert left == []


def test_a_defect_leaves_no_body_to_the_garbage_collector(serve, monkeypatch):
    live = serve()
    monkeypatch.setattr(type(live.service.predictor), "predict", lambda *_, **__: 1 / 0)
    with without_collector() as left:
        assert post(live, *INVALID["damaged"]) == 500
        eventually(lambda: live.service.inflight.bytes == 0)
    assert left == []
