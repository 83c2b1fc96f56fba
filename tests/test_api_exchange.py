"""Request ids, the access log, and what a defect looks like from outside."""

import json
import logging
import socket

import pytest
from test_api_detect import wait_for

from app.log import JsonLines


def test_every_answer_carries_a_request_id(serve):
    live = serve()
    first, second = (live.client.get("/healthz").headers["x-request-id"] for _ in range(2))
    assert first != second


def test_request_id_of_the_client_is_kept_if_it_is_harmless(serve):
    live = serve()
    assert live.client.get("/healthz", headers={"X-Request-Id": "abc-1.2:3"}).headers["x-request-id"] == "abc-1.2:3"
    for bad in ("a b", "x" * 129, '"><script>'):
        assert live.client.get("/healthz", headers={"X-Request-Id": bad}).headers["x-request-id"] != bad


def test_no_line_a_request_unless_asked_for(serve, caplog):
    with caplog.at_level(logging.INFO):
        serve().client.get("/healthz")
    assert [record for record in caplog.records if record.name == "yolopard.access"] == []


def test_access_log_has_one_line_a_request_with_its_id_and_no_image_bytes(serve, sample, caplog):
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


def test_a_defect_is_a_500_with_its_id_in_answer_and_log_but_no_trace_outside(serve, monkeypatch, caplog):
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
def test_refusals_of_a_protocol_are_counted_by_their_code(serve, path, code):
    live = serve()
    live.client.get(path)
    assert live.value("requests_total", protocol="v1", code=code) == 1
    assert live.value("request_duration_seconds_count", protocol="v1") == 1


def test_no_http_behind_a_request_that_is_being_answered_is_no_defect(serve, device, sample, caplog):
    """uvicorn closes the connection and tells only its newest request; uvloop then refuses what the first one sends."""
    live = serve()
    device.gate.clear()
    with socket.create_connection(("127.0.0.1", live.port)) as connection:
        head = b"POST /v1/detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
        connection.sendall(head + b"%d\r\n\r\n" % len(sample) + sample + head + b"5\r\n\r\nabcde\0\0 no HTTP\r\n\r\n")
        assert device.busy.acquire(timeout=10)
        while connection.recv(1 << 16):
            pass
    device.gate.set()
    wait_for(lambda: live.value("requests_total", protocol="v1") is not None)
    assert live.service.predictor.pending == 0
    assert [record for record in caplog.records if record.name == "yolopard.crash"] == []
