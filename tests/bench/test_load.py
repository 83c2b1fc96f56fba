"""The load generator, against a small server whose responses each test defines."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from app.api.request.multipart import Parts
from app.bench.load import LOST, Target, closed_loop, multipart, open_loop

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nServer-Timing: decode;dur=1.5, batch;desc="4"\r\n\r\nok'
FULL = b"HTTP/1.1 503 Full\r\nContent-Length: 0\r\n\r\n"
LAST = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

Respond = Callable[
    [bytes, bytes], Awaitable[bytes]
]  # head and body of a request -> response, b"" closes the connection


class Peer:
    def __init__(self, respond: Respond) -> None:
        self._answer = respond
        self.connections = 0
        self.requests: list[tuple[bytes, bytes]] = []
        self.port = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split()[0])
                body = await reader.readexactly(length)
                self.requests.append((head, body))
                sent = await self._answer(head, body)
                writer.write(sent)
                await writer.drain()
                if not sent or b"Connection: close" in sent:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def target(self, *bodies: bytes, **more: object) -> Target:
        return Target(f"http://127.0.0.1:{self.port}/v1/detect?conf=0.5", bodies or (b"image",), **more)


@asynccontextmanager
async def peer(respond: Respond) -> AsyncIterator[Peer]:
    made = Peer(respond)
    server = await asyncio.start_server(made.talk, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()


async def respond_at_once(head: bytes, body: bytes) -> bytes:
    return OK


async def test_requests_have_the_path_headers_and_bodies_of_the_target():
    async with peer(respond_at_once) as made:
        target = made.target(b"one", b"two!", content_type="image/png", headers={"X-Deadline-Ms": "7"})
        await closed_loop(target, clients=1, seconds=0.2, warm_up=0)
    first, second, third = made.requests[:3]
    assert first[0].startswith(b"POST /v1/detect?conf=0.5 HTTP/1.1\r\n")
    assert f"Host: 127.0.0.1:{made.port}\r\n".encode() in first[0]
    assert b"Content-Type: image/png\r\nX-Deadline-Ms: 7\r\n" in first[0]
    assert [first[1], second[1], third[1]] == [b"one", b"two!", b"one"]


async def test_each_client_of_a_closed_loop_keeps_one_connection_and_waits_for_its_response():
    concurrent = maximum = 0

    async def slowly(head: bytes, body: bytes) -> bytes:
        nonlocal concurrent, maximum
        concurrent += 1
        maximum = max(maximum, concurrent)
        await asyncio.sleep(0.01)
        concurrent -= 1
        return OK

    async with peer(slowly) as made:
        run = await closed_loop(made.target(), clients=3, seconds=0.3, warm_up=0.1)
    assert made.connections == maximum == 3
    assert run.statuses.keys() == {200}
    assert 100 < run.images_per_second < 310
    assert 0.009 < run.percentile(50) < 0.1
    assert run.timings["decode"][0] == 1.5
    assert run.timings["batch"][0] == 4


async def test_every_image_of_a_request_counts():
    async with peer(respond_at_once) as made:
        run = await closed_loop(made.target(images=8), clients=1, seconds=0.3, warm_up=0)
    assert run.images_per_second == pytest.approx(8 * run.statuses[200] / 0.3, rel=0.2)


async def test_responses_other_than_200_are_counted_separately_and_not_as_throughput():
    async def every_other(head: bytes, body: bytes) -> bytes:
        return OK if body == b"good" else FULL

    async with peer(every_other) as made:
        run = await closed_loop(made.target(b"good", b"bad"), clients=1, seconds=0.2, warm_up=0)
    assert abs(run.statuses[200] - run.statuses[503]) <= 1
    assert run.images_per_second <= (run.statuses[200] + 1) / 0.19
    assert run.percentile(50, 503) > 0
    assert run.percentile(50, 500) != run.percentile(50, 500), "nan where there is none"


async def test_client_connects_again_when_the_server_closes():
    async def once(head: bytes, body: bytes) -> bytes:
        return LAST

    async with peer(once) as made:
        run = await closed_loop(made.target(), clients=1, seconds=0.2, warm_up=0)
    assert run.statuses.keys() == {200}
    assert made.connections >= run.statuses[200]


async def test_a_closed_connection_is_a_lost_request():
    async def hang_up(head: bytes, body: bytes) -> bytes:
        return b""

    async with peer(hang_up) as made:
        run = await closed_loop(made.target(), clients=1, seconds=0.2, warm_up=0)
    assert run.statuses.keys() == {LOST}
    assert run.images_per_second == 0


async def test_a_response_that_is_not_http_is_a_lost_request():
    async def babble(head: bytes, body: bytes) -> bytes:
        return b"SSH-2.0-OpenSSH_9.2\r\n"

    async with peer(babble) as made:
        run = await open_loop(made.target(), rate=20, seconds=0.3)
    assert run.statuses.keys() == {LOST}


async def test_open_loop_sends_at_its_rate_even_if_the_server_is_slow():
    async def slowly(head: bytes, body: bytes) -> bytes:
        await asyncio.sleep(0.3)
        return OK

    async with peer(slowly) as made:
        run = await open_loop(made.target(), rate=200, seconds=1, seed=1)
    assert 150 < run.requests < 250
    assert made.connections > 30, "no request waited for earlier responses"


async def test_open_loop_counts_a_stall_for_every_request_that_waited():
    """No coordinated omission: the server handles one request at a time and stalls once for half a second."""
    turn = asyncio.Lock()
    begun = time.perf_counter()

    async def stall_once(head: bytes, body: bytes) -> bytes:
        nonlocal begun
        async with turn:
            if begun:
                begun = 0
                await asyncio.sleep(0.5)
        return OK

    async with peer(stall_once) as made:
        run = await open_loop(made.target(), rate=100, seconds=1, seed=2)
    waited = [seconds for seconds in run.latencies[200] if seconds > 0.1]
    assert len(waited) > 20, "every request due during the stall waited, not only one"
    assert run.percentile(90) > 0.3


async def test_same_seed_sends_at_the_same_times():
    async with peer(respond_at_once) as made:
        counts = {(await open_loop(made.target(), rate=100, seconds=0.3, seed=3)).requests for _ in range(2)}
    assert len(counts) == 1


async def test_a_missing_server_raises_at_once():
    async with peer(respond_at_once) as made:
        target = made.target()
    with pytest.raises(ConnectionError):
        await closed_loop(target, clients=2, seconds=0.1, warm_up=0)


def test_multipart_bodies_are_parsed_by_the_server():
    body, kind = multipart([b"first", b"\r\n--second"])
    parts = Parts(kind, 2, fields=False)
    parts.feed(body)
    assert [bytes(part.data) for part in parts.parts()] == [b"first", b"\r\n--second"]
    assert multipart([b"x"])[1] == kind, "requests of several bodies share one Content-Type"
