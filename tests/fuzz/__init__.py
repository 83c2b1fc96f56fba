"""Malformed requests to every protocol: `python tests/fuzz COUNT` sends them and counts the responses.

Unexpected 5xx responses fail, and so do requests that cost more than a second of CPU or 200 MB.

Most requests are valid ones of their protocol with one or more errors, since these find the most defects.
"""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import httpx
import requests
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fuzz import kserve, slow, web, wire
from fuzz.cost import Meter

EXPECTED = {  # protocol -> statuses of a server error that it returns on purpose
    "kserve": {"501", "504"},  # features that only Triton supports; a `timeout` of microseconds
    "grpc": {"UNIMPLEMENTED", "DEADLINE_EXCEEDED"},
    "platform": {"501"},  # HUB's old response and the next two have boxes, which a classify model does not return
    "deepstack": {"501"},
    "roboflow": {"501"},
    "openapi": {"501"},
    "wire": {"504"},  # a deadline that expires while the body is read
    "slow": {"501", "503", "504"},  # open slow connections may use up the limits
}
FAULTS = {"UNKNOWN", "INTERNAL", "UNIMPLEMENTED", "DEADLINE_EXCEEDED", "UNAVAILABLE", "DATA_LOSS"}  # gRPC
PARTS = 10  # a run has this many parts; Vitals are read after each
MAX_GROWTH = 1.25  # maximum memory after the last part, as a ratio to the first
MAX_NEW = 4  # maximum increase of threads and of files: the number of connections varies


@dataclass(frozen=True)
class Server:
    url: str
    grpc: str
    pid: int

    @property
    def model(self) -> str:
        return httpx.get(f"{self.url}/v1/models").json()["models"][0]["name"]


@dataclass(frozen=True)
class Vitals:
    """Memory in MB, number of threads and number of open files of a process, from /proc."""

    resident_mb: float
    threads: int
    files: int

    @classmethod
    def of(cls, pid: int, ports: Set[int] = frozenset()) -> "Vitals":
        """Return those of the process. Sockets whose remote port is in `ports` are not counted as files."""
        status = Path(f"/proc/{pid}/status").read_text()
        kilobytes, threads = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "Threads"))
        table = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
        known = {f"socket:[{each[9]}]" for each in table if int(each[2].rpartition(":")[2], 16) in ports}
        files = []
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed in the meantime
                files.append(str(each.readlink()))
        return cls(kilobytes / 1000, threads, sum(each not in known for each in files))


@dataclass
class Outcome:
    """Counts of the statuses, and the failures: unexpected server errors, responses that are missing or cannot be
    parsed, growth, and expensive requests.
    """

    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)  # key: protocol, status
    failures: list[str] = field(default_factory=list)
    vitals: list[Vitals] = field(default_factory=list)  # after each part of the run
    slow_clients: slow.SlowClients | None = None

    def add(self, protocol: str, status: str, sent: Any, *, readable: bool = True) -> None:
        self.statuses[protocol, status] += 1
        fault = status in FAULTS or (status.isdecimal() and int(status) >= 500)
        if (fault and status not in EXPECTED.get(protocol, ())) or not readable:
            self.failures.append(f"{protocol}: {status}: {sent!r}")

    def add_answer(self, protocol: str, client: httpx.Client, request: httpx.Request) -> None:
        """Send the request and add its response."""
        target = client.base_url.copy_with(raw_path=request.url.raw_path)
        sent = (request.method, str(request.url), dict(request.headers), request.content)
        try:
            headers = [(name, value) for name, value in request.headers.raw if name.lower() != b"host"]
            answer = client.request(request.method, target, headers=headers, content=request.content)
        except httpx.HTTPError as error:
            self.failures.append(f"{protocol}: {error!r}: {sent!r}")
        else:
            readable = is_readable(answer.status_code, answer.headers.get("content-type", ""), answer.content)
            self.add(protocol, str(answer.status_code), sent, readable=readable)

    def check_growth(self) -> None:
        """Add a failure if memory, threads or files have grown. Memory is compared between the first and the last part;
        threads and files by the medians of the first and the last third, because slow clients come and go.
        """
        before, *_, after = self.vitals
        third = max(1, len(self.vitals) // 3)

        def increase(read: Callable[[Vitals], int]) -> float:
            return median(map(read, self.vitals[-third:])) - median(map(read, self.vitals[:third]))

        more = increase(lambda each: each.threads) > MAX_NEW or increase(lambda each: each.files) > MAX_NEW
        if more or after.resident_mb > before.resident_mb * MAX_GROWTH:
            self.failures.append(f"growth: from {before} to {after}")


def is_readable(status: int, kind: str, content: bytes) -> bool:
    """Return True for valid JSON; for other content types, if the status is not an error."""
    if not kind.startswith("application/json"):
        return status < 400
    with contextlib.suppress(ValueError):
        json.loads(content)
        return True
    return False


Sender = tuple[st.SearchStrategy[Any], Callable[[Any], None]]


def web_sender(server: Server, client: httpx.Client, outcome: Outcome, stack: contextlib.ExitStack) -> Sender:
    def send(by_path: dict[str, httpx.Request]) -> None:
        for path, request in by_path.items():
            outcome.add_answer(web.PATHS[path], client, request)

    return web.requests(server.model), send


def kserve_sender(server: Server, client: httpx.Client, outcome: Outcome, stack: contextlib.ExitStack) -> Sender:
    return kserve.requests(server.model), lambda request: outcome.add_answer("kserve", client, request)


def grpc_sender(server: Server, client: httpx.Client, outcome: Outcome, stack: contextlib.ExitStack) -> Sender:
    channel = grpc.insecure_channel(server.grpc)

    def send(call: tuple[str, list[bytes]]) -> None:
        for status in kserve.send(channel, *call):
            outcome.add("grpc", status, call)

    return kserve.calls(server.model), send


def wire_sender(server: Server, client: httpx.Client, outcome: Outcome, stack: contextlib.ExitStack) -> Sender:
    def send(made: tuple[list[bytes], bool]) -> None:
        for status in wire.send(server.url, *made):
            outcome.add("wire", status, made)

    return wire.requests(), send


def slow_sender(server: Server, client: httpx.Client, outcome: Outcome, stack: contextlib.ExitStack) -> Sender:
    """Return a sender whose connections stay open until `stack` is closed or others replace them."""
    outcome.slow_clients = slow.SlowClients(server.url, lambda status, sent: outcome.add("slow", status, sent))
    stack.callback(outcome.slow_clients.close)
    return slow.slow_clients(), outcome.slow_clients.add


def openapi_sender(server: Server, client: httpx.Client, outcome: Outcome, stack: contextlib.ExitStack) -> Sender:
    """Return a sender of the requests that schemathesis generates from the OpenAPI description, /v2 included."""
    import schemathesis

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    kinds = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    session = requests.Session()

    def send(case: Any) -> None:
        answer = case.call(base_url=server.url, session=session)
        (kind,) = answer.headers.get("content-type", [""])
        readable = is_readable(answer.status_code, kind, answer.content)
        outcome.add("openapi", str(answer.status_code), case.as_curl_command(), readable=readable)

    return st.one_of(*(schema.as_strategy(kind) for kind in kinds)), send


SENDERS = {  # name -> function that returns the sender, number of requests in each call of it
    "web": (web_sender, len(web.PATHS)),
    "kserve": (kserve_sender, 1),
    "grpc": (grpc_sender, 1),
    "wire": (wire_sender, 1),
    "slow": (slow_sender, 1),
    "openapi": (openapi_sender, 1),
}


def run(
    server: Server, count: int, number: int = 0, senders: Sequence[str] = tuple(SENDERS), parts: int = PARTS
) -> Outcome:
    """Send `count` requests, the same number by each sender, drawn from the seeds `number` to `number + parts - 1`."""
    outcome = Outcome()
    with httpx.Client(base_url=server.url, timeout=30) as client, contextlib.ExitStack() as stack:
        made = {name: SENDERS[name][0](server, client, outcome, stack) for name in senders}
        meter = Meter(server.pid, outcome.failures.append)
        for part in range(parts):
            for name, (strategy, send) in made.items():
                at_once = SENDERS[name][1]
                watched = partial(meter.watch, send)
                _draw(strategy, watched, count // parts // len(senders) // at_once, number + part)
            ports = outcome.slow_clients.ports() if outcome.slow_clients else set()
            outcome.vitals.append(Vitals.of(server.pid, ports))
    outcome.check_growth()
    return outcome


def _draw(strategy: st.SearchStrategy[Any], send: Callable[[Any], None], count: int, number: int) -> None:
    @seed(number)
    @settings(
        max_examples=max(count, 1),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def test(made: Any) -> None:
        send(made)

    test()
