"""Hostile clients beside a good client: short forms of `python loadtest/hostile`; and responses to odd requests."""

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
"""  # rows of each kind whose quick form takes one or two seconds
HELD = """
    slow-bodies slow-chunks half-chunks slow-heads nothing newlines keep-alive expect-continue other-protocols
"""  # together about seven seconds: the minimum rate of a body is measured over five
HEALTHZ_S = 1.0  # while other tests run; the limit of `python loadtest/hostile` is 0.2
assert attacks


async def nothing(_: object) -> None:
    """The attack of servers that other tests use."""


@cache
def server_row(*, keys: bool, grpc: bool) -> Row:
    return Row(f"tests{keys}{grpc}", "gRPC" if grpc else "tests", "", nothing, {"access_log": "1"}, keys=keys)


@pytest.fixture(scope="module")
def servers():
    """Starts servers with short timeouts on demand, one for each combination of keys and gRPC."""
    started: dict[tuple[bool, bool], Server] = {}

    def get(*, keys: bool = True, grpc: bool = False) -> Server:
        if (keys, grpc) not in started or started[keys, grpc].process.poll() is not None:
            started[keys, grpc] = Server(server_row(keys=keys, grpc=grpc), quick=True)
        return started[keys, grpc]

    yield get
    for each in started.values():
        each.__exit__()


def attack(server: Server, *rows: Row) -> list[str]:
    """Run these attacks at the same time and return the problems found."""
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
    found += [f"an attacker got {status}" for status in target.outcome.statuses if not re.fullmatch(statuses, status)]
    if target.outcome.left_open:
        found.append(f"{target.outcome.left_open} connections of attackers are kept")
    if (more := server.peak_mb() - base_mb) > rows[0].budget_mb:
        found.append(f"{more:.0f} MB more")
    if "Traceback" in server.log:
        found.append("a traceback in the log")
    return found


@pytest.mark.parametrize("name", SMALL.split())
def test_a_hostile_client_costs_little_and_the_good_client_always_gets_200(servers, name):
    row = ROWS[name]
    assert attack(servers(keys=row.keys, grpc=row.kind == "gRPC"), row) == []


def test_held_connections_are_closed_within_seconds(servers):
    assert attack(servers(), *(ROWS[name] for name in HELD.split())) == []


def test_held_grpc_connections_are_closed_within_seconds(servers):
    held = (ROWS[name] for name in ("grpc-half-open", "grpc-idle", "grpc-slow-messages", "grpc-slow-streams"))
    assert attack(servers(grpc=True), *held) == []


@pytest.fixture(scope="module")
def refusing():
    with refusals.servers() as urls:
        yield urls


@pytest.mark.parametrize("name", clients.clients())
def test_a_client_receives_a_refusal_sent_before_the_end_of_its_body(refusing, name):
    requested = refusals.hundred(*refusing, count=24, sizes=(5 << 20,))
    assert refusals.lost(requested, clients.clients()[name](requested)) == {}


def exchange(server: Server, request: bytes, *, half_close: bool = False) -> bytes:
    """Send a request and return everything received until the server closes."""
    with closing(socket.create_connection(("127.0.0.1", server.port), 10)) as connection:
        connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while data := connection.recv(1 << 16):
            received += data
    return received


def with_key(request: bytes, *headers: str) -> bytes:
    """Add the key and `Connection: close` to the request."""
    more = "\r\n".join(["", f"X-API-Key: {KEY}", "Connection: close", *headers]).encode()
    return request.replace(b"\r\nHost: 127.0.0.1", b"\r\nHost: 127.0.0.1" + more, 1)


@pytest.mark.parametrize("how", ["", "Connection: close"])
def test_a_half_closed_client_gets_its_response(servers, how):
    request = wire.post("/v1/predict", SAMPLE, "image/jpeg", f"X-API-Key: {KEY}", *([how] if how else []))
    response = exchange(servers(), request, half_close=True)
    assert response.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").startswith(
        b"HTTP/1.1 200"
    )  # it expected 100-continue


def test_an_upgrade_to_http_2_is_ignored_and_the_body_is_read(servers):
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
    request = wire.post("/v1/predict", SAMPLE, "image/jpeg", f"X-API-Key: {KEY}", *offer)
    response = exchange(servers(), request, half_close=True)
    assert response.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").startswith(
        b"HTTP/1.1 200"
    )  # it expected 100-continue


PATHS = ["/healthz", "/readyz", "/", "/v1/models", "/metrics", "/docs", "/openapi.json"]
PATHS += ["/v2/health/live", "/v1/status/ping", "/info"]


@pytest.mark.parametrize("path", PATHS)
def test_head_is_get_without_a_body(servers, path):
    head, _, body = exchange(servers(), with_key(wire.head(f"HEAD {path}"))).partition(b"\r\n\r\n")
    got = exchange(servers(), with_key(wire.head(f"GET {path}")))
    assert head.startswith(b"HTTP/1.1 200")
    assert got.startswith(b"HTTP/1.1 200")
    assert body == b""


def test_a_method_that_a_route_lacks_is_refused_with_the_allowed_methods(servers):
    response = exchange(servers(), with_key(wire.head("DELETE /v1/predict")))
    assert response.startswith(b"HTTP/1.1 405")
    assert re.search(rb"(?i)\r\nallow: [^\r]*POST", response)


@pytest.mark.parametrize("hosts", [b"", b"Host: a\r\nHost: b\r\n", b"Host: 127.0.0.1\r\nHost: 127.0.0.1\r\n"])
def test_http_1_1_without_exactly_one_host_is_a_bad_request(servers, hosts):
    response = exchange(servers(), b"GET /healthz HTTP/1.1\r\nConnection: close\r\n" + hosts + b"\r\n")
    assert response.startswith(b"HTTP/1.1 400")


def test_http_1_0_needs_no_host(servers):
    assert exchange(servers(), b"GET /healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8000"])
def test_an_anonymous_loopback_server_refuses_foreign_host_names(servers, host):
    """DNS rebinding: https://en.wikipedia.org/wiki/DNS_rebinding."""
    request = wire.head("GET /v1/models", "Connection: close").replace(b"Host: 127.0.0.1", f"Host: {host}".encode())
    assert exchange(servers(keys=False), request).startswith((b"HTTP/1.1 400", b"HTTP/1.1 403", b"HTTP/1.1 421"))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:8000", "[::1]:8000"])
def test_an_anonymous_loopback_server_accepts_loopback_host_names(servers, host):
    request = wire.head("GET /v1/models", "Connection: close").replace(b"Host: 127.0.0.1", f"Host: {host}".encode())
    assert exchange(servers(keys=False), request).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("path", ["/x%0aCRITICAL%20lost%1b[2J", "/%0d", "/%c2%9b2J", "/%00", "/%7f"])
def test_control_characters_of_a_path_do_not_reach_the_log(servers, path):
    server = servers()
    before = len(server.log)
    exchange(server, wire.head(f"GET {path}", "Connection: close"))
    reported = server.log[before:]
    assert "request" in reported
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]|(?m:^CRITICAL)", reported)
