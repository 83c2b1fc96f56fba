"""Strangers beside a good client: small forms of `python loadtest/hostile`; and what odd requests get."""

import asyncio
import re
import socket
import time
from contextlib import closing
from functools import cache

import pytest

from loadtest.hostile import attacks, clients, refusals, wire
from loadtest.hostile.good import SAMPLE, Good
from loadtest.hostile.row import ROWS, Row
from loadtest.hostile.server import KEY, Server

pytestmark = pytest.mark.usefixtures("needs_engine")

SMALL = """
    roboflow-ones kserve-ones kserve-lists deepstack-forms boundaries queries
    many-scans-60 two-sizes padded-head one-px-wide
    long-header long-url heads-just-over trailers chunk-extensions wrong-heads hang-ups pipelines
    unread-pictures unread-pages gzip-tensors large-bodies grpc-large-messages grpc-rapid-reset grpc-metadata
"""  # a row of each kind whose quick form takes a second or two
HELD = """
    slow-bodies slow-chunks half-chunks slow-heads nothing newlines keep-alive expect-continue other-protocols
"""  # together some seven seconds: the least rate of a body is seen over five
HEALTHZ_S = 1.0  # beside a whole suite; `python loadtest/hostile` asks for 0.2
assert attacks


async def nothing(_: object) -> None:
    """Some servers are there for other tests."""


@cache
def server_row(*, keys: bool, grpc: bool) -> Row:
    return Row(f"tests{keys}{grpc}", "gRPC" if grpc else "tests", "", nothing, {"access_log": "1"}, keys=keys)


@pytest.fixture(scope="module")
def servers():
    """The real command with short timeouts, by whether it has keys and gRPC; each is started when it is asked for."""
    started: dict[tuple[bool, bool], Server] = {}

    def get(*, keys: bool = True, grpc: bool = False) -> Server:
        if (keys, grpc) not in started or started[keys, grpc].process.poll() is not None:
            started[keys, grpc] = Server(server_row(keys=keys, grpc=grpc), quick=True)
        return started[keys, grpc]

    yield get
    for each in started.values():
        each.__exit__()


def attack(server: Server, *rows: Row) -> list[str]:
    """What is wrong with what came of these attacks, played at once."""
    target, found = server.target(quick=True), []
    base_mb = server.resident_mb()
    server.reset_peak()

    async def play() -> None:
        await asyncio.gather(*(row.attack(target) for row in rows))

    with Good(server.port, keys=server.row.keys) as good:
        asyncio.run(play())
        time.sleep(0.3)
    if wrong := [each for each in good.seen if each.status != "200"]:
        found.append(f"the good client got {wrong[0].status} of {wrong[0].path}")
    if (worst := max(each.seconds for each in good.seen if each.path == "/healthz")) > HEALTHZ_S:
        found.append(f"/healthz took {worst:.2f} s")
    statuses = "|".join(row.statuses for row in rows)
    found += [f"a stranger got {status}" for status in target.outcome.statuses if not re.fullmatch(statuses, status)]
    if target.outcome.left_open:
        found.append(f"{target.outcome.left_open} strangers are kept")
    if (more := server.peak_mb() - base_mb) > rows[0].budget_mb:
        found.append(f"{more:.0f} MB more")
    if "Traceback" in server.log:
        found.append("a traceback in the log")
    return found


@pytest.mark.parametrize("name", SMALL.split())
def test_a_stranger_costs_little_and_the_good_client_stays_at_200(servers, name):
    row = ROWS[name]
    assert attack(servers(keys=row.keys, grpc=row.kind == "gRPC"), row) == []


def test_strangers_that_hold_connections_are_closed_in_seconds(servers):
    assert attack(servers(), *(ROWS[name] for name in HELD.split())) == []


def test_strangers_that_hold_grpc_connections_are_closed_in_seconds(servers):
    held = (ROWS[name] for name in ("grpc-half-open", "grpc-idle", "grpc-slow-messages", "grpc-slow-streams"))
    assert attack(servers(grpc=True), *held) == []


@pytest.fixture(scope="module")
def refusing():
    with refusals.servers() as urls:
        yield urls


@pytest.mark.parametrize("name", clients.clients())
def test_a_client_reads_the_refusal_that_comes_before_its_body_is_sent(refusing, name):
    requested = refusals.hundred(*refusing, count=24, sizes=(5 << 20,))
    assert refusals.lost(requested, clients.clients()[name](requested)) == {}


def ask(server: Server, request: bytes, *, half_close: bool = False) -> bytes:
    """All that the server says until it closes."""
    with closing(socket.create_connection(("127.0.0.1", server.port), 10)) as connection:
        connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while data := connection.recv(1 << 16):
            received += data
    return received


def shown(request: bytes, *headers: str) -> bytes:
    """With the key, and the connection closed behind it."""
    more = "\r\n".join(["", f"X-API-Key: {KEY}", "Connection: close", *headers]).encode()
    return request.replace(b"\r\nHost: 127.0.0.1", b"\r\nHost: 127.0.0.1" + more, 1)


@pytest.mark.parametrize("how", ["", "Connection: close"])
def test_a_client_that_has_shut_its_writing_side_is_answered(servers, how):
    request = wire.post("/v1/predict", SAMPLE, "image/jpeg", f"X-API-Key: {KEY}", *([how] if how else []))
    answer = ask(servers(), request, half_close=True)
    assert answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").startswith(
        b"HTTP/1.1 200"
    )  # asked whether it is there


def test_an_upgrade_to_http_2_is_ignored_and_the_body_read(servers):
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
    request = wire.post("/v1/predict", SAMPLE, "image/jpeg", f"X-API-Key: {KEY}", *offer)
    answer = ask(servers(), request, half_close=True)
    assert answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").startswith(
        b"HTTP/1.1 200"
    )  # asked whether it is there


PATHS = ["/healthz", "/readyz", "/", "/v1/models", "/metrics", "/docs", "/openapi.json"]
PATHS += ["/v2/health/live", "/v1/status/ping", "/info"]


@pytest.mark.parametrize("path", PATHS)
def test_head_is_get_without_a_body(servers, path):
    head, _, body = ask(servers(), shown(wire.head(f"HEAD {path}"))).partition(b"\r\n\r\n")
    got = ask(servers(), shown(wire.head(f"GET {path}")))
    assert head.startswith(b"HTTP/1.1 200")
    assert got.startswith(b"HTTP/1.1 200")
    assert body == b""


def test_a_method_that_a_route_has_not_is_refused_with_those_that_it_has(servers):
    answer = ask(servers(), shown(wire.head("DELETE /v1/predict")))
    assert answer.startswith(b"HTTP/1.1 405")
    assert re.search(rb"(?i)\r\nallow: [^\r]*POST", answer)


@pytest.mark.parametrize("hosts", [b"", b"Host: a\r\nHost: b\r\n", b"Host: 127.0.0.1\r\nHost: 127.0.0.1\r\n"])
def test_http_1_1_without_one_host_is_a_bad_request(servers, hosts):
    answer = ask(servers(), b"GET /healthz HTTP/1.1\r\nConnection: close\r\n" + hosts + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 400")


def test_http_1_0_needs_no_host(servers):
    assert ask(servers(), b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8000"])
def test_an_anonymous_loopback_server_answers_to_no_foreign_name(servers, host):
    """DNS rebinding: https://en.wikipedia.org/wiki/DNS_rebinding."""
    request = wire.head("GET /v1/models", "Connection: close").replace(b"Host: 127.0.0.1", f"Host: {host}".encode())
    assert ask(servers(keys=False), request).startswith((b"HTTP/1.1 400", b"HTTP/1.1 403", b"HTTP/1.1 421"))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:8000", "[::1]:8000"])
def test_an_anonymous_loopback_server_answers_to_its_own_names(servers, host):
    request = wire.head("GET /v1/models", "Connection: close").replace(b"Host: 127.0.0.1", f"Host: {host}".encode())
    assert ask(servers(keys=False), request).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("path", ["/x%0aCRITICAL%20lost%1b[2J", "/%0d", "/%c2%9b2J", "/%00", "/%7f"])
def test_a_path_leaves_no_control_characters_in_the_log(servers, path):
    server = servers()
    before = len(server.log)
    ask(server, wire.head(f"GET {path}", "Connection: close"))
    reported = server.log[before:]
    assert "request" in reported
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]|(?m:^CRITICAL)", reported)
