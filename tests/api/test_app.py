"""The application put together: images go straight to their route, all else through FastAPI, and all answer alike."""

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

# What is no POST of an image


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_other_methods_of_the_images_path_are_refused_in_the_one_shape_and_counted(serve, method):
    live = serve()
    assert error(live.client.request(method, "/v1/detect")) == (405, "method_not_allowed")
    assert live.value("requests_total", protocol="v1", code="405") == 1
    assert live.service.predictor.pending == 0


def test_head_of_the_images_path_is_refused_without_a_body(serve):
    answer = serve().client.head("/v1/detect")
    assert (answer.status_code, answer.content) == (405, b"")
    assert answer.headers["x-request-id"]


def test_a_trailing_slash_leads_to_the_path_without_it(serve):
    live = serve()
    answer = post(live, path="/v1/detect/?conf=0.7")
    assert answer.status_code == 307
    assert httpx.URL(answer.headers["location"]).raw_path == b"/v1/detect?conf=0.7"
    followed = post(live, path="/v1/detect/?conf=0.7", follow_redirects=True)
    assert names(followed) == ["dog"]


@pytest.mark.parametrize("path", ["/v1/detec", "/v1/detect/x", "/V1/detect", "/v1", "//v1/detect"])
def test_paths_near_the_images_are_not_theirs(serve, path):
    assert error(serve().client.post(path, content=jpeg())) == (404, "not_found")


def test_an_encoded_path_is_the_same_path(serve):
    assert names(post(serve(), path="/v1/%64etect")) == ["dog", "cat"]


def test_a_websocket_is_turned_away_and_the_server_goes_on(serve, caplog):
    live = serve()
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as client:
        client.sendall(
            b"GET /v1/detect HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        status = int(client.recv(1000).split()[1])
    assert 400 <= status < 500
    assert names(post(live)) == ["dog", "cat"]


def test_the_other_routes_answer_and_count_for_no_protocol(serve):
    live = serve()
    for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/v1/models", "/metrics"):
        answer = live.client.get(path)
        assert (path, answer.status_code) == (path, 200)
        assert answer.headers["x-request-id"]
    assert live.value("requests_total") is None


def test_docs_describe_the_images_route_as_if_fastapi_ran_it(serve):
    described = serve().client.get("/openapi.json").json()
    operation = described["paths"]["/v1/detect"]["post"]
    by_name = {parameter["name"]: parameter for parameter in operation["parameters"]}
    assert by_name.keys() == DetectQuery.model_fields.keys()
    assert all(parameter["in"] == "query" and not parameter["required"] for parameter in by_name.values())
    assert (by_name["conf"]["schema"]["default"], by_name["conf"]["schema"]["maximum"]) == (0.25, 1)
    assert by_name["format"]["schema"]["enum"] == ["json", "image"]
    assert operation["responses"].keys() == {"200", "default"}


# Errors on the short way


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
def test_what_is_wrong_with_a_query_is_told_by_name(serve, query, message):
    response = post(serve(), path=f"/v1/detect?{query}")
    assert error(response) == (422, "bad_parameter")
    assert response.json()["error"]["message"].startswith(message)


def test_a_wrong_query_is_refused_before_the_body_has_come(serve):
    asking = http.client.HTTPConnection("127.0.0.1", serve().port, timeout=10)
    asking.putrequest("POST", "/v1/detect?conf=7")
    asking.putheader("Content-Length", "1000000")
    asking.endheaders()
    assert asking.getresponse().status == 422
    asking.close()


def test_a_defect_on_the_short_way_is_a_500_with_its_id_in_answer_and_log(serve, monkeypatch, caplog):
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


def test_a_client_that_is_gone_is_counted_as_such(serve, device):
    live = serve()
    with socket.create_connection(("127.0.0.1", live.port)) as gone:
        gone.sendall(b"POST /v1/detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n\xff\xd8")
        wait_for(lambda: live.service.inflight.waiting == 1)
    wait_for(lambda: live.value("requests_total", protocol="v1", code="499") == 1)
    assert live.value("rejected_total", reason="client_gone") == 1


def test_images_that_would_not_be_answered_in_time_are_refused_before_their_body_with_retry_after(serve, device):
    measured = fakes.capacity(4, device_s=8)  # 2 s an image
    live = serve(max_pending=64, capacity=measured)
    device.gate.clear()
    with ThreadPoolExecutor(4) as clients:
        inside = [clients.submit(post, live) for _ in range(4)]
        wait_for(lambda: live.service.predictor._images == 4)
        asking = http.client.HTTPConnection("127.0.0.1", live.port, timeout=10)
        asking.putrequest("POST", "/v1/detect")
        asking.putheader("Content-Length", "1000000")
        asking.putheader("X-Deadline-Ms", "5000")
        asking.endheaders()
        answer = asking.getresponse()
        assert answer.status == 503
        assert answer.getheader("Retry-After") in ("8", "9")  # 8 s, what decoding takes, less what has passed of them
        assert b"overloaded" in answer.read()
        asking.close()
        device.gate.set()
        assert [names(future.result()) for future in inside] == [["dog", "cat"]] * 4
    assert live.value("rejected_total", reason="overloaded") == 1
    assert sum(len(batch) for batch in device.batches) == 4


# Queries are parsed once


def test_a_query_is_parsed_as_fastapi_parses_it():
    query = parse_query(b"conf=0.5&conf=0.6&classes=a,b&classes=c%2Cd&agnostic=yes&format=image")
    assert query == DetectQuery(conf=0.6, classes=["a,b", "c,d"], agnostic=True, format="image")
    assert parse_query(b"") == DetectQuery()


def test_a_query_that_came_before_is_not_parsed_again_but_a_wrong_one_is_refused_again():
    assert parse_query(b"conf=0.125") is parse_query(b"conf=0.125")
    for _ in range(2):
        with pytest.raises(BadParameter, match=r"^conf: "):
            parse_query(b"conf=125")


def test_queries_that_never_end_fill_no_memory():
    for i in range(1000):
        parse_query(b"max_det=%d" % (i % 1000 + 1))
    assert parse_query.cache_info().currsize <= 256


# Ids


def test_ids_are_never_given_twice_also_at_the_same_time(serve):
    live = serve()
    with ThreadPoolExecutor(8) as clients:
        ids = list(clients.map(lambda _: live.client.get("/healthz").headers["x-request-id"], range(200)))
    assert len(set(ids)) == 200
    assert {len(each) for each in ids} == {20}
    assert len({each[:12] for each in ids}) == 1  # of this process


def test_ids_after_the_counter_has_run_far_are_still_ids(monkeypatch):
    monkeypatch.setattr(context, "_COUNT", itertools.count(2**32 - 1))
    given = [context._request_id({"headers": []}) for _ in range(2)]
    assert [each[12:] for each in given] == ["ffffffff", "100000000"]
    assert all(context._ID.fullmatch(each.encode()) for each in given)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([(b"x-request-id", b"mine-1")], "mine-1"),
        ([(b"host", b"x"), (b"x-request-id", b"a b"), (b"x-request-id", b"second")], "second"),
    ],
)
def test_the_client_s_own_id_is_the_first_harmless_one(headers, expected):
    assert context._request_id({"headers": headers}) == expected
