"""The whole application: /v1/detect bypasses FastAPI, everything else passes through it, and errors have one format."""

import http.client
import itertools
import logging
import socket
from concurrent.futures import ThreadPoolExecutor

import fakes
import httpx
import pytest
from posts import error, jpeg, names, post, wait_for

from app.api import context
from app.api.protocols import predict
from app.api.protocols.predict import DetectQuery, parse_query
from app.errors import BadParameter

# Requests that are not a POST of an image


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_other_methods_on_v1_detect_are_refused_as_json_errors_and_counted(serve, method):
    live = serve()
    assert error(live.client.request(method, "/v1/detect")) == (405, "method_not_allowed")
    assert live.value("requests_total", protocol="v1", code="405") == 1
    assert live.service.predictor.pending == 0


def test_head_on_v1_detect_is_refused_without_a_body(serve):
    answer = serve().client.head("/v1/detect")
    assert (answer.status_code, answer.content) == (405, b"")
    assert answer.headers["x-request-id"]


def test_a_trailing_slash_redirects_to_the_path_without_it(serve):
    live = serve()
    answer = post(live, path="/v1/detect/?conf=0.7")
    assert answer.status_code == 307
    assert httpx.URL(answer.headers["location"]).raw_path == b"/v1/detect?conf=0.7"
    followed = post(live, path="/v1/detect/?conf=0.7", follow_redirects=True)
    assert names(followed) == ["dog"]


@pytest.mark.parametrize("path", ["/v1/detec", "/v1/detect/x", "/V1/detect", "/v1", "//v1/detect"])
def test_paths_similar_to_v1_detect_are_not_found(serve, path):
    assert error(serve().client.post(path, content=jpeg())) == (404, "not_found")


def test_a_percent_encoded_path_is_decoded(serve):
    assert names(post(serve(), path="/v1/%64etect")) == ["dog", "cat"]


def test_a_websocket_is_refused_and_the_server_continues(serve, caplog):
    live = serve()
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as client:
        client.sendall(
            b"GET /v1/detect HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        status = int(client.recv(1000).split()[1])
    assert 400 <= status < 500
    assert names(post(live)) == ["dog", "cat"]


def test_routes_without_a_protocol_answer_and_are_not_counted_as_requests(serve):
    live = serve()
    for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/v1/models", "/metrics"):
        answer = live.client.get(path)
        assert (path, answer.status_code) == (path, 200)
        assert answer.headers["x-request-id"]
    assert live.value("requests_total") is None


def test_openapi_describes_v1_detect_as_if_fastapi_handled_it(serve):
    described = serve().client.get("/openapi.json").json()
    operation = described["paths"]["/v1/detect"]["post"]
    by_name = {parameter["name"]: parameter for parameter in operation["parameters"]}
    assert by_name.keys() == DetectQuery.model_fields.keys()
    assert all(parameter["in"] == "query" and not parameter["required"] for parameter in by_name.values())
    assert (by_name["conf"]["schema"]["default"], by_name["conf"]["schema"]["maximum"]) == (0.25, 1)
    assert by_name["format"]["schema"]["enum"] == ["json", "image"]
    assert operation["responses"].keys() == {"200", "default"}


# Errors of /v1/detect, which bypasses FastAPI


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("confidence=0.5", "confidence: no such parameter"),
        ("conf=0.5&conf_=1&x=", "conf_: no such parameter; x: no such parameter"),
        ("conf=2&iou=x", "conf: Input should be less than or equal to 1; iou: Input should be a valid number"),
        ("conf=", "conf: Input should be a valid number"),
        ("CONF=0.5", "CONF: no such parameter"),
    ],
)
def test_every_wrong_query_parameter_is_named_in_the_error(serve, query, message):
    response = post(serve(), path=f"/v1/detect?{query}")
    assert error(response) == (422, "bad_parameter")
    assert response.json()["error"]["message"].startswith(message)


def test_a_wrong_query_is_refused_before_the_body_arrives(serve):
    connection = http.client.HTTPConnection("127.0.0.1", serve().port, timeout=10)
    connection.putrequest("POST", "/v1/detect?conf=7")
    connection.putheader("Content-Length", "1000000")
    connection.endheaders()
    assert connection.getresponse().status == 422
    connection.close()


def test_a_defect_in_v1_detect_is_a_500_with_its_id_in_response_and_log(serve, monkeypatch, caplog):
    live = serve()
    monkeypatch.setattr(predict, "to_json", lambda *_, **__: 1 / 0)
    with caplog.at_level(logging.ERROR):
        response = post(live)
    assert error(response) == (500, "internal")
    assert "division" not in response.text
    (record,) = [record for record in caplog.records if record.name == "yolopard.crash"]
    assert record.request_id == response.headers["x-request-id"]
    assert isinstance(record.exc_info[1], ZeroDivisionError)
    assert live.service.predictor.pending == 0
    assert live.value("requests_total", protocol="v1", code="500") == 1
    monkeypatch.undo()
    assert names(post(live)) == ["dog", "cat"]


def test_a_client_that_disconnects_is_counted_as_client_gone(serve, device):
    live = serve()
    with socket.create_connection(("127.0.0.1", live.port)) as gone:
        gone.sendall(b"POST /v1/detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n\xff\xd8")
        wait_for(lambda: live.service.inflight.waiting == 1)
    wait_for(lambda: live.value("requests_total", protocol="v1", code="499") == 1)
    assert live.value("rejected_total", reason="client_gone") == 1


def test_a_request_that_would_miss_its_deadline_is_refused_before_its_body_with_retry_after(serve, device):
    measured = fakes.profile(4, device_s=8)  # 2 s per image
    live = serve(max_pending=64, profile=measured)
    device.gate.clear()
    with ThreadPoolExecutor(4) as clients:
        inside = [clients.submit(post, live) for _ in range(4)]
        wait_for(lambda: live.service.predictor._images == 4)
        connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=10)
        connection.putrequest("POST", "/v1/detect")
        connection.putheader("Content-Length", "1000000")
        connection.putheader("X-Deadline-Ms", "5000")
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 503
        assert answer.getheader("Retry-After") in ("8", "9")  # 8 s and the decoding time, minus the time so far
        assert b"overloaded" in answer.read()
        connection.close()
        device.gate.set()
        assert [names(future.result()) for future in inside] == [["dog", "cat"]] * 4
    assert live.value("rejected_total", reason="overloaded") == 1
    assert sum(len(batch) for batch in device.batches) == 4


# Queries are parsed once


def test_a_query_is_parsed_as_fastapi_parses_it():
    query = parse_query(b"conf=0.5&conf=0.6&classes=a,b&classes=c%2Cd&agnostic=yes&format=image")
    assert query == DetectQuery(conf=0.6, classes=["a,b", "c,d"], agnostic=True, format="image")
    assert parse_query(b"") == DetectQuery()


def test_a_repeated_query_is_cached_and_a_repeated_wrong_query_is_refused_again():
    assert parse_query(b"conf=0.125") is parse_query(b"conf=0.125")
    for _ in range(2):
        with pytest.raises(BadParameter, match=r"^conf: "):
            parse_query(b"conf=125")


def test_the_query_cache_is_limited():
    for i in range(1000):
        parse_query(b"max_det=%d" % (i % 1000 + 1))
    assert parse_query.cache_info().currsize <= 256


# Ids


def test_concurrent_requests_get_unique_ids(serve):
    live = serve()
    with ThreadPoolExecutor(8) as clients:
        ids = list(clients.map(lambda _: live.client.get("/healthz").headers["x-request-id"], range(200)))
    assert len(set(ids)) == 200
    assert {len(each) for each in ids} == {20}
    assert len({each[:12] for each in ids}) == 1  # the prefix of this process


def test_request_ids_stay_valid_after_the_counter_exceeds_32_bits(monkeypatch):
    monkeypatch.setattr(context, "_COUNT", itertools.count(2**32 - 1))
    ids = [context._request_id({"headers": []}) for _ in range(2)]
    assert [each[12:] for each in ids] == ["ffffffff", "100000000"]
    assert all(context._ID.fullmatch(each.encode()) for each in ids)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([(b"x-request-id", b"mine-1")], "mine-1"),
        ([(b"host", b"x"), (b"x-request-id", b"a b"), (b"x-request-id", b"second")], "second"),
    ],
)
def test_the_first_valid_request_id_of_the_client_is_used(headers, expected):
    assert context._request_id({"headers": headers}) == expected
