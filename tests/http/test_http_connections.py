"""The maximum number of connections, and which one is closed above it."""

import logging
import socket

import pytest
from conftest import eventually

from app.http.connections import Connections, Limits

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


def connect(live, source: str = "127.0.0.1") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", live.port), timeout=20, source_address=(source, 0))
    client.sendall(b"GET / HT")
    return client


def closed(client: socket.socket) -> bool:
    """Wait until the server closes the connection, with or without a response. Returns True."""
    try:
        while client.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_peer"])
def test_over_the_limit_the_connection_that_waited_longest_is_closed(serve, limit, caplog):
    live = serve(**{limit: 8})
    attackers = [connect(live) for _ in range(20)]
    with caplog.at_level(logging.WARNING):
        for _ in range(20):
            assert live.client.get("/healthz").status_code == 200
        assert closed(attackers[0])
    eventually(lambda: len(live.server.connections) <= 8)
    assert limit.upper() in caplog.text
    for attacker in attackers:
        attacker.close()


def test_the_oldest_of_connections_with_equal_waiting_time_is_closed():
    """uvloop's clock stands still while it accepts connections: a normal client was closed instead of an attacker."""
    limits = Limits(
        connections=8, per_peer=8, head_bytes=0, head_s=0, keep_alive_s=0, send_s=0, bytes_per_s=0, hosts=None
    )
    connections = Connections(limits)
    closed_numbers: list[int] = []

    class Stub:
        peer, waiting_since = "127.0.0.1", 1.0

        def __init__(self, number: int) -> None:
            self.number = number

        def give_way(self) -> None:
            closed_numbers.append(self.number)
            connections.remove(self)

    for number in range(30):
        connections.add(Stub(number))
    assert closed_numbers == list(range(22))


def test_one_address_does_not_use_up_the_connections_of_another(serve):
    live = serve(max_connections_per_peer=4)
    neighbour = connect(live, "127.0.0.2")
    attackers = [connect(live) for _ in range(20)]
    assert closed(attackers[0])
    neighbour.sendall(b"TP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert neighbour.recv(12) == b"HTTP/1.1 200"
    for client in (neighbour, *attackers):
        client.close()


def test_a_connection_with_a_request_in_progress_is_never_closed_for_another(serve, device, sample):
    live = serve(max_connections=4)
    device.gate.clear()
    body = b"POST /v1/detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(sample), sample)
    clients = [socket.create_connection(("127.0.0.1", live.port), timeout=20) for _ in range(4)]
    for client in clients:
        client.sendall(body)
    eventually(lambda: live.service.predictor.pending == 4)
    late = socket.create_connection(("127.0.0.1", live.port), timeout=20)
    assert late.recv(12) == b"HTTP/1.1 503"
    device.gate.set()
    for client in clients:
        assert client.recv(12) == b"HTTP/1.1 200"
    for client in (late, *clients):
        client.close()


def test_an_idle_connection_is_closed_without_a_response(serve):
    live = serve(max_connections=2)
    with socket.create_connection(("127.0.0.1", live.port), timeout=20) as idle:
        idle.sendall(REQUEST)
        assert idle.recv(12) == b"HTTP/1.1 200"
        others = [connect(live) for _ in range(2)]
        rest = b""
        while piece := idle.recv(1 << 16):
            rest += piece
        assert b"HTTP/1.1" not in rest
    for other in others:
        other.close()
