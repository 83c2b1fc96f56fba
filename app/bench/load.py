"""The load: clients that ask as fast as they are answered, or at their own times whatever the server does.

A closed loop's clients each wait for their answer: it measures what a server can do. An open loop sends at random times
of a given mean rate (Poisson arrivals), and latency counts from the moment at which a request was due, so a server that
stalls is charged for those that had to wait (no coordinated omission).
"""

import asyncio
import contextlib
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httptools
import numpy as np

TIMEOUT_S = 60.0
LOST = 0  # the "status" of a request that got no answer
_BOUNDARY = uuid.uuid4().hex
MAX_OPEN_CONNECTIONS = 1000  # of an open loop; a request due beyond them is lost at once


@dataclass(frozen=True)
class Target:
    """What is asked, in turn: `bodies` go round; each holds `images` images."""

    url: str
    bodies: Sequence[bytes]
    content_type: str = "image/jpeg"
    headers: Mapping[str, str] = field(default_factory=dict)
    images: int = 1

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "127.0.0.1", parts.port or 80

    def requests(self) -> list[tuple[bytes, bytes]]:
        """Each as its head and its body."""
        parts = urlsplit(self.url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Host": parts.netloc, "Content-Type": self.content_type, **self.headers}
        lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        head = "\r\n".join(lines)
        return [(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode(), body) for body in self.bodies]


def multipart(files: Sequence[bytes], name: str = "file") -> tuple[bytes, str]:
    """A multipart/form-data body with a part for each file, and its Content-Type, which is always the same."""
    parts = [
        f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{i}.jpg"\r\n'
        f"Content-Type: image/jpeg\r\n\r\n".encode()
        + data
        + b"\r\n"
        for i, data in enumerate(files)
    ]
    return b"".join([*parts, f"--{_BOUNDARY}--\r\n".encode()]), f"multipart/form-data; boundary={_BOUNDARY}"


@dataclass
class Run:
    """What came of it. Latencies are seconds, one for each request; `statuses` has LOST for those without an answer."""

    images_per_second: float  # of those answered with 200 in the time that counts
    statuses: Counter[int]
    latencies: dict[int, list[float]]  # by status
    lateness: list[float] = field(default_factory=list)  # of an open loop's sending, s: the client's own
    timings: dict[str, list[float]] = field(default_factory=dict)  # Server-Timing, ms, by stage

    @property
    def requests(self) -> int:
        return self.statuses.total()

    def percentile(self, share: float, status: int = 200) -> float:
        """Latency, s, that `share` percent of the answers with this status did not exceed; nan if there are none."""
        found = self.latencies.get(status)
        return float(np.percentile(found, share)) if found else float("nan")


class _Connection(asyncio.Protocol):
    """One request at a time over a kept connection."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[tuple[int, str]] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._timing = ""

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, head: bytes, body: bytes) -> tuple[int, str]:
        """The answer's status and its Server-Timing. Raises ConnectionError."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionError
        self._answer = asyncio.get_running_loop().create_future()
        self._timing = ""
        self._transport.writelines([head, body])
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError())

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"server-timing":
            self._timing = value.decode("latin-1")

    def on_message_complete(self) -> None:
        status, keep = self._parser.get_status_code(), self._parser.should_keep_alive()
        if not keep and self._transport is not None:
            self._transport.close()
        self._parser = httptools.HttpResponseParser(self)
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((status, self._timing))


class _Book:
    """Writes down what happens in the time that counts."""

    def __init__(self, target: Target) -> None:
        self._images = target.images
        self.begun: float | None = None  # None: warming up
        self.ended: float | None = None
        self.in_time = 0
        self.statuses: Counter[int] = Counter()
        self.latencies: dict[int, list[float]] = {}
        self.lateness: list[float] = []
        self.timings: dict[str, list[float]] = {}

    def begin(self) -> None:
        self.begun = time.perf_counter()

    def end(self) -> None:
        self.ended = time.perf_counter()

    def write(self, status: int, seconds: float, timing: str) -> None:
        if self.begun is None:
            return
        self.statuses[status] += 1
        self.in_time += status == 200 and self.ended is None
        self.latencies.setdefault(status, []).append(seconds)
        for stage, value in _stages(timing):
            self.timings.setdefault(stage, []).append(value)

    def run(self) -> Run:
        assert self.begun is not None
        assert self.ended is not None
        rate = self.in_time * self._images / (self.ended - self.begun)
        return Run(rate, self.statuses, self.latencies, self.lateness, self.timings)


def _stages(timing: str) -> list[tuple[str, float]]:
    found = []
    for entry in filter(None, timing.split(", ")):
        name, _, value = entry.partition(";")
        found.append((name, float(value.partition("=")[2].strip('"'))))
    return found


async def _open(target: Target) -> _Connection:
    _, connection = await asyncio.get_running_loop().create_connection(_Connection, *target.address)
    return connection


async def closed_loop(target: Target, *, clients: int, seconds: float, warm_up: float = 1.0) -> Run:
    """`clients` ask, each again as soon as it is answered, for `seconds` after a warm-up.

    They come one after the other during the warm-up: of many at once, one of a server's processes accepts all.
    """
    book, requests = _Book(target), target.requests()
    ends = time.perf_counter() + warm_up + seconds

    async def client(first: int) -> None:
        await asyncio.sleep(warm_up / 2 * first / clients)
        connection, turn = await _open(target), first
        while (started := time.perf_counter()) < ends:
            head, body = requests[turn % len(requests)]
            turn += 1
            status, timing = LOST, ""
            with contextlib.suppress(ConnectionError, TimeoutError):
                if not connection.open:
                    connection = await _open(target)
                async with asyncio.timeout(TIMEOUT_S):
                    status, timing = await connection.ask(head, body)
            book.write(status, time.perf_counter() - started, timing)
            if status == LOST:
                connection.close()
                await asyncio.sleep(0.01)  # a server that is gone must not be asked a million times
        connection.close()

    tasks = [asyncio.create_task(client(i)) for i in range(clients)]
    await asyncio.sleep(warm_up)
    book.begin()
    await asyncio.sleep(seconds)
    book.end()
    await asyncio.gather(*tasks)
    return book.run()


async def open_loop(
    target: Target,
    *,
    rate: float,
    seconds: float,
    seed: int = 0,
    warm_up: float = 0.0,
) -> Run:
    """Requests at `rate` a second on average, at random times, for `seconds`; every one of them is waited for."""
    book, requests = _Book(target), target.requests()
    loop, idle, busy = asyncio.get_running_loop(), list[_Connection](), set[asyncio.Task[None]]()
    random = np.random.default_rng(seed)
    due = np.cumsum(random.exponential(1 / rate, int((warm_up + seconds) * rate * 1.2) + 10))

    async def ask(turn: int, at: float) -> None:
        head, body = requests[turn % len(requests)]
        status, timing = LOST, ""
        connection = None
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(TIMEOUT_S):
                while idle and connection is None:
                    connection = idle.pop() if idle[-1].open else idle.pop() and None
                connection = connection or await _open(target)
                status, timing = await connection.ask(head, body)
        book.write(status, time.perf_counter() - at, timing)
        if connection is not None and connection.open and status != LOST:
            idle.append(connection)
        elif connection is not None:
            connection.close()

    begun = time.perf_counter()
    for turn, offset in enumerate(due):
        if offset > warm_up and book.begun is None:
            book.begin()
        if offset > warm_up + seconds:
            break
        if (wait := begun + offset - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        book.lateness.append(max(0.0, time.perf_counter() - begun - offset))
        if len(busy) >= MAX_OPEN_CONNECTIONS:
            book.write(LOST, 0.0, "")
            continue
        task = loop.create_task(ask(turn, begun + offset))
        busy.add(task)
        task.add_done_callback(busy.discard)
    book.end()
    await asyncio.gather(*busy)
    for connection in idle:
        connection.close()
    return book.run()
