"""The HTTP server at the level of bytes: accepted requests, minimum rates, and refusals that the client receives."""

import contextlib
import json
import socket
import time

import cv2
import numpy as np
import pytest
from conftest import eventually, without_collector

from app.http import connection as module
from app.http import connections
from app.http.connections import MAX_PIPELINE

HOST = b"Host: localhost\r\n"


@pytest.fixture(autouse=True)
def frequent_checks(monkeypatch) -> None:
    monkeypatch.setattr(connections, "SWEEP_S", 0.05)


def post(body: bytes, *, path: bytes = b"/v1/detect", more: bytes = b"", host: bytes = HOST, version=b"1.1") -> bytes:
    head = b"POST %s HTTP/%s\r\n%s%sContent-Length: %d\r\n\r\n" % (path, version, host, more, len(body))
    return head + body


def chunked(*chunks: bytes, more: bytes = b"") -> bytes:
    head = b"POST /v1/detect HTTP/1.1\r\n" + HOST + more + b"Transfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def talk(live, *data: bytes, half: bool = False) -> bytes:
    """Send the data and return everything received until the server closes."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as client:
        for piece in data:
            client.sendall(piece)
        if half:
            client.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := client.recv(1 << 16):
            answer += piece
        return answer


def status(answer: bytes) -> int:
    """Return the status of the first response except `100 Continue`, which probes a half-closed client."""
    while answer.startswith(b"HTTP/1.1 100 "):
        answer = answer.partition(b"\r\n\r\n")[2]
    return int(answer.split(b" ", 2)[1]) if answer else 0


def error(answer: bytes) -> tuple[int, str]:
    return status(answer), json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]["code"]


CLOSE = b"Connection: close\r\n"
UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 40_000,
        b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + HOST + b"".join(b"X-%d: aaaaaaaa\r\n" % i for i in range(3000)),
        post(b"", more=b"X: " + b"a" * 40_000 + b"\r\n") + b"x" * 100_000,
    ],
    ids=["one header", "one complete header", "many headers", "with a body after it"],
)
def test_a_head_over_its_limit_is_431(shared_server, head):
    assert error(talk(shared_server, head)) == (431, "head_too_large")


def test_a_request_line_over_its_limit_is_414(shared_server):
    assert error(talk(shared_server, b"GET /" + b"a" * 40_000)) == (414, "url_too_long")


def test_a_client_that_sends_a_head_of_many_megabytes_receives_the_431(shared_server):
    begin = b"GET / HTTP/1.1\r\n" + HOST + b"X: "
    assert error(talk(shared_server, begin, *[b"a" * 1_000_000] * 30)) == (431, "head_too_large")


def test_a_head_after_a_large_body_is_not_counted_as_a_large_head(shared_server, sample):
    first, second = post(sample + b"\0" * 200_000), post(sample, more=CLOSE)
    assert talk(shared_server, first + second[:50], second[50:]).count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize("begin", [b"", b"GET / HT", b"GET / HTTP/1.1\r\n" + HOST + b"X-Slow: "], ids=repr)
def test_the_time_limit_of_a_head_starts_at_connect(serve, begin):
    live = serve(head_timeout_ms=200)
    started = time.monotonic()
    answer = talk(live, begin)
    assert time.monotonic() - started < 5
    assert status(answer) == (408 if begin else 0)


def test_an_idle_connection_is_closed_after_keep_alive_ms(serve):
    live = serve(keep_alive_ms=200)
    answer = talk(live, b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n")
    assert answer.endswith(b'{"status":"ok"}')


@pytest.fixture
def short_window(monkeypatch) -> None:
    monkeypatch.setattr(module, "WINDOW_S", 0.2)


@pytest.mark.parametrize(
    "path", [b"/v1/detect", b"/v1/vision/detection", b"/v1/vision/custom/list", b"/model/add", b"/v2/models/pets/infer"]
)
def test_a_body_below_the_minimum_rate_is_refused_on_every_route(serve, short_window, path):
    live = serve()
    assert error(talk(live, post(b"x" * 60_000, path=path)[:-30_000])) == (408, "too_slow")
    eventually(lambda: live.service.inflight.bytes == 0 and live.service.inflight.waiting == 0)


def test_a_client_that_expects_100_continue_and_sends_no_body_gets_408(serve, short_window):
    request = post(b"x" * 1000, more=b"Expect: 100-continue\r\n")[:-1000]
    assert b"408" in talk(serve(), request)


@pytest.mark.parametrize("more", [UPGRADE, UPGRADE + b"Expect: 100-continue\r\n"], ids=["upgrade", "and expect"])
def test_every_upgrade_of_pipelined_requests_is_ignored(shared_server, sample, more, caplog):
    """The second upgrade in the same bytes caused an error in the server."""
    answer = talk(shared_server, post(sample, more=more) + post(sample, more=more) + post(sample, more=more + CLOSE))
    assert answer.count(b"HTTP/1.1 200 OK") == 3
    assert caplog.records == []


def test_no_100_continue_is_sent_for_a_body_that_is_already_refused(shared_server, caplog):
    """The route started to read, and `100 Continue` was written after the answer."""
    head = b"POST /v1/detect HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"
    for _ in range(5):
        assert error(talk(shared_server, head + b"no chunk\r\n")) == (400, "bad_http")
    assert caplog.records == []


@pytest.fixture(scope="module")
def noise() -> bytes:
    """A JPEG whose PNG, 8 MB, does not fit into the buffers of a socket."""
    pixels = np.random.default_rng(0).integers(0, 255, (1700, 1700, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


@pytest.mark.parametrize("minimum", [1024, 0])
def test_a_client_that_does_not_read_its_response_is_disconnected(serve, noise, minimum):
    """The response was small enough for the socket's buffers, and the idle connection was closed instead.

    MIN_BYTES_PER_S=0 switched SEND_TIMEOUT_MS off.
    """
    live = serve(send_timeout_ms=300, keep_alive_ms=3_600_000, min_bytes_per_s=minimum)
    with socket.create_connection(("127.0.0.1", live.port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(post(noise, path=b"/v1/predict?format=image", more=b"Accept: image/png\r\n"))
        eventually(lambda: live.service.inflight.bytes > 0)
        eventually(lambda: len(live.server.connections) == 0)
        assert live.service.inflight.bytes == 0


@pytest.mark.parametrize("connection", [CLOSE, b""], ids=["close", "keep-alive"])
@pytest.mark.parametrize(
    ("path", "expected"),
    [(b"/nowhere", 404), (b"/v1/detect?conf=2", 422), (b"/v1/detect", 413), (b"/v2/models/none/infer", 404)],
    ids=str,
)
def test_a_client_that_sends_its_whole_body_first_receives_an_early_refusal(serve, path, expected, connection):
    live = serve(max_body_bytes=1_000_000, max_tensor_bytes=1_000_000)
    for _ in range(5):
        request = post(b"x" * 8_000_000, path=path, more=connection)
        assert status(talk(live, request, half=not connection)) == expected


def test_the_connection_stays_usable_after_an_early_refusal(shared_server, sample):
    refused, served = post(b"x" * 3_000_000, path=b"/nowhere"), post(sample, more=CLOSE)
    answer = talk(shared_server, refused, served)
    assert status(answer) == 404
    assert answer.count(b"HTTP/1.1 200") == 1


def test_a_client_that_keeps_sending_a_refused_body_is_disconnected(serve, short_window, monkeypatch):
    monkeypatch.setattr(module, "LINGER_S", 0.5)
    live = serve()
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as client:
        client.sendall(b"POST /nowhere HTTP/1.1\r\n" + HOST + b"Content-Length: 999999999999\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 404"
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            send_forever(client)


def send_forever(client: socket.socket) -> None:
    while True:
        client.sendall(b"x" * 1_000_000)


@pytest.mark.parametrize("half", [False, True])
def test_an_upgrade_is_ignored_and_the_body_is_read(shared_server, sample, half):
    more = UPGRADE if half else UPGRADE + CLOSE
    assert status(talk(shared_server, post(sample, more=more), half=half)) == 200


def test_an_upgrade_is_ignored_with_a_chunked_body(shared_server, sample):
    assert status(talk(shared_server, chunked(sample[:900], sample[900:], more=UPGRADE), half=True)) == 200


def test_a_request_after_an_upgrade_offer_is_answered(shared_server, sample):
    first = b"GET /healthz HTTP/1.1\r\n" + HOST + UPGRADE + b"\r\n"
    assert talk(shared_server, first + post(sample, more=CLOSE)).count(b"HTTP/1.1 200") == 2


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_a_client_that_closes_its_sending_side_gets_its_answer(shared_server, sample, version):
    assert status(talk(shared_server, post(sample, version=version), half=True)) == 200


def test_a_half_closed_client_is_probed_with_100_continue_and_answered(serve, device, sample):
    live = serve()
    device.gate.clear()
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as client:
        client.sendall(post(sample))
        client.shutdown(socket.SHUT_WR)
        assert client.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        device.gate.set()
        answer = b""
        while piece := client.recv(1 << 16):
            answer += piece
    assert b"HTTP/1.1 200 OK" in answer


@pytest.mark.parametrize(
    ("host", "version", "expected"),
    [
        (b"", b"1.1", 400),
        (b"", b"1.0", 200),
        (HOST * 2, b"1.1", 400),
        (b"Host: evil.example\r\n", b"1.1", 400),
        (b"Host: localhost.evil.example:80\r\n", b"1.1", 400),
        (b"Host: 127.0.0.1:8000\r\n", b"1.1", 200),
        (b"Host: [::1]:8000\r\n", b"1.1", 200),
        (b"Host: LOCALHOST\r\n", b"1.1", 200),
    ],
)
def test_without_keys_exactly_one_host_header_with_a_local_name_is_required(
    shared_server, sample, host, version, expected
):
    answer = talk(shared_server, post(sample, host=host, version=version, more=CLOSE))
    assert status(answer) == expected


@pytest.mark.parametrize("settings", [{"api_keys": "k" * 16}, {"allow_hosts": "evil.example"}], ids=str)
def test_another_host_is_accepted_with_a_key_or_if_it_is_in_allow_hosts(serve, sample, settings):
    more = CLOSE + b"X-API-Key: " + b"k" * 16 + b"\r\n"
    assert status(talk(serve(**settings), post(sample, host=b"Host: evil.example\r\n", more=more))) == 200


@pytest.mark.parametrize(
    "body",
    [
        b"1\r\na\r\n" * 100_000,
        b"5;" + b"a" * 500_000,
        b"0\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"a" * 900) for i in range(300)),
        b"zz\r\n",
    ],
    ids=["chunks of one byte", "an endless extension", "many trailers", "no number"],
)
def test_chunks_with_more_framing_than_content_are_refused(shared_server, body):
    assert error(talk(shared_server, chunked()[:-5] + body)) == (400, "bad_http")


@pytest.mark.parametrize(("size", "expected"), [(4, 400), (16, 200)])
def test_short_chunks_are_accepted_if_they_are_not_mostly_framing(shared_server, sample, size, expected):
    chunks = [sample[at : at + size] for at in range(0, len(sample), size)]
    assert len(chunks) > 1024
    assert status(talk(shared_server, chunked(*chunks, more=CLOSE))) == expected


@pytest.mark.parametrize(("lines", "expected"), [(254, 200), (255, 431)])
def test_a_head_over_the_maximum_number_of_lines_is_431(shared_server, sample, lines, expected):
    """Host and Content-Length are two more lines."""
    assert status(talk(shared_server, post(sample, more=b"a:b\r\n" * (lines - 1) + CLOSE))) == expected


def test_a_closed_connection_leaves_nothing_to_the_garbage_collector(serve, sample):
    live = serve()
    kinds = (
        post(sample),
        b"GET /healthz HTTP/1.1\r\n" + HOST + b"a: b\r\n" * 300,
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n") * 3,
        chunked()[:-5] + b"1\r\na\r\n" * 5000,
        b"no HTTP\r\n\r\n",
        b"POST /v1/detect HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\nhalf",
        b"GET / HTTP/1.1\r\n" + HOST,
    )

    def send_all() -> None:
        for data in kinds:
            with socket.create_connection(("127.0.0.1", live.port), timeout=20) as client:
                client.sendall(data)
                if data not in kinds[-2:]:
                    client.recv(1000)
        eventually(lambda: len(live.server.connections) == 0)

    def uncollected() -> list[str]:
        with without_collector() as left:
            send_all()
        return left

    send_all()
    assert uncollected() == []


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\0\x01\0", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0" * 99])
def test_bytes_that_are_not_http_are_refused_without_a_log_line(shared_server, data, caplog):
    assert error(talk(shared_server, data)) == (400, "bad_http")
    assert caplog.records == []


@pytest.mark.parametrize("behind", [b"\0\0 no HTTP\r\n\r\n", chunked()[:-5] + b"no chunk\r\n"], ids=["head", "body"])
def test_a_wrong_request_after_one_in_progress_only_closes_the_connection(serve, device, sample, caplog, behind):
    """The refusal of the second body was written first, and the answer to the first request after the close."""
    live = serve()
    device.gate.clear()
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as client:
        client.sendall(post(sample) + behind)
        assert client.recv(1) == b""
    device.gate.set()
    eventually(lambda: live.service.predictor.pending == 0)
    assert live.client.post("/v1/detect", content=sample).status_code == 200
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_a_disconnect_with_pipelined_requests_is_detected(serve, device, sample):
    """Only the last request was notified, and the first one was still processed for a client that was gone."""
    live = serve()
    assert live.value("pending") == 0  # opens a connection of its own, which leaves nothing either
    device.gate.clear()
    with without_collector() as left:
        with socket.create_connection(("127.0.0.1", live.port), timeout=20) as client:
            client.sendall(post(sample) * 3)
            eventually(lambda: live.service.predictor.pending)
        eventually(lambda: live.value("rejected_total", reason="client_gone") == 1)
    device.gate.set()
    assert left == []


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/", "/v1/models", "/docs", "/v1/status/ping", "/metrics"])
def test_head_is_get_without_the_body(shared_server, path):
    head, get = shared_server.client.head(path), shared_server.client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("HEAD", "/v1/detect", "POST"), ("GET", "/v1/predict", "POST"), ("POST", "/healthz", "GET, HEAD")],
)
def test_a_405_has_an_allow_header(shared_server, method, path, allowed):
    answer = shared_server.client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


def test_too_many_pipelined_requests_close_the_connection_and_answers_keep_their_order(shared_server, caplog):
    answer = talk(shared_server, (b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n") * 500)
    assert b"400" not in answer
    assert answer.count(b"HTTP/1.1 200") <= MAX_PIPELINE + 1
    assert caplog.records == []


def test_a_wrong_head_after_a_request_in_progress_is_not_answered_before_it(serve, device, sample):
    live = serve()
    device.gate.clear()
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as client:
        client.sendall(post(sample) + post(sample, host=b""))
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""
    device.gate.set()
