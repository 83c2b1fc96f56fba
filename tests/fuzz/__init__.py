"""Malformed requests to every protocol, and the run that counts what comes back: `python tests/fuzz COUNT`.

A request that costs a second of CPU or 200 MB is a failure too, as is an answer of the server's own fault.

Half right is what finds defects: a request is a right one of its protocol in which one thing or more is broken.
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

MEANT = {  # statuses of the server's fault that these protocols give on purpose
    "kserve": {"501", "504"},  # what only Triton has; a `timeout` of microseconds
    "grpc": {"UNIMPLEMENTED", "DEADLINE_EXCEEDED"},
    "platform": {"501"},  # HUB's older shape and these tell boxes, which a classify model has none of
    "deepstack": {"501"},
    "roboflow": {"501"},
    "openapi": {"501"},
    "wire": {"504"},  # a deadline that passes while the body comes
    "slow": {"501", "503", "504"},  # who keeps a place may be told that there is none
}
FAULTS = {"UNKNOWN", "INTERNAL", "UNIMPLEMENTED", "DEADLINE_EXCEEDED", "UNAVAILABLE", "DATA_LOSS"}  # of gRPC
PARTS = 10  # of a whole run, with the vital signs after each
GROWTH = 1.25  # most of memory, from the first part of the run to its end
KEPT = 4  # threads and files that may be more then: connections come and go


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
    """Of a process, as Linux tells them."""

    resident_mb: float
    threads: int
    files: int

    @classmethod
    def of(cls, pid: int, ports: Set[int] = frozenset()) -> "Vitals":
        """Without the files that are connections from these `ports`: their clients have them open still."""
        status = Path(f"/proc/{pid}/status").read_text()
        kilobytes, threads = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "Threads"))
        table = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
        known = {f"socket:[{each[9]}]" for each in table if int(each[2].rpartition(":")[2], 16) in ports}
        files = []
        for each in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                files.append(str(each.readlink()))
        return cls(kilobytes / 1000, threads, sum(each not in known for each in files))


@dataclass
class Outcome:
    """A failure is a fault that is not meant, an answer that cannot be read, none at all, or growth."""

    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)  # by protocol
    failures: list[str] = field(default_factory=list)
    vitals: list[Vitals] = field(default_factory=list)  # after each part of the run
    strangers: slow.Strangers | None = None  # that have connections open

    def add(self, protocol: str, status: str, sent: Any, *, readable: bool = True) -> None:
        self.statuses[protocol, status] += 1
        fault = status in FAULTS or (status.isdecimal() and int(status) >= 500)
        if (fault and status not in MEANT.get(protocol, ())) or not readable:
            self.failures.append(f"{protocol}: {status}: {sent!r}")

    def add_answer(self, protocol: str, client: httpx.Client, request: httpx.Request) -> None:
        """Of the request, once it is sent."""
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

    def judge_growth(self) -> None:
        """Memory from the first part to the last; threads and files by the medians of the first and the last third, as
        strangers come and go all the time.
        """
        before, *_, after = self.vitals
        third = max(1, len(self.vitals) // 3)

        def more(of: Callable[[Vitals], int]) -> float:
            return median(map(of, self.vitals[-third:])) - median(map(of, self.vitals[:third]))

        kept = more(lambda each: each.threads) > KEPT or more(lambda each: each.files) > KEPT
        if kept or after.resident_mb > before.resident_mb * GROWTH:
            self.failures.append(f"growth: from {before} to {after}")


def is_readable(status: int, kind: str, content: bytes) -> bool:
    """JSON; or, where all went well, bytes, a page or nothing."""
    if not kind.startswith("application/json"):
        return status < 400
    with contextlib.suppress(ValueError):
        json.loads(content)
        return True
    return False


Sender = tuple[st.SearchStrategy[Any], Callable[[Any], None]]


def of_web(server: Server, client: httpx.Client, outcome: Outcome, kept: contextlib.ExitStack) -> Sender:
    def send(alike: dict[str, httpx.Request]) -> None:
        for path, request in alike.items():
            outcome.add_answer(web.PATHS[path], client, request)

    return web.requests(server.model), send


def of_kserve(server: Server, client: httpx.Client, outcome: Outcome, kept: contextlib.ExitStack) -> Sender:
    return kserve.requests(server.model), lambda request: outcome.add_answer("kserve", client, request)


def of_grpc(server: Server, client: httpx.Client, outcome: Outcome, kept: contextlib.ExitStack) -> Sender:
    channel = grpc.insecure_channel(server.grpc)

    def send(call: tuple[str, list[bytes]]) -> None:
        for status in kserve.ask(channel, *call):
            outcome.add("grpc", status, call)

    return kserve.calls(server.model), send


def of_wire(server: Server, client: httpx.Client, outcome: Outcome, kept: contextlib.ExitStack) -> Sender:
    def send(made: tuple[list[bytes], bool]) -> None:
        for status in wire.ask(server.url, *made):
            outcome.add("wire", status, made)

    return wire.requests(), send


def of_slow(server: Server, client: httpx.Client, outcome: Outcome, kept: contextlib.ExitStack) -> Sender:
    """Connections that stay open while others are made, until `kept` is closed."""
    outcome.strangers = slow.Strangers(server.url, lambda status, sent: outcome.add("slow", status, sent))
    kept.callback(outcome.strangers.close)
    return slow.strangers(), outcome.strangers.add


def of_openapi(server: Server, client: httpx.Client, outcome: Outcome, kept: contextlib.ExitStack) -> Sender:
    """What schemathesis makes of the description, /v2 and all."""
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


SENDERS = {  # and how many requests each sends at once
    "web": (of_web, len(web.PATHS)),
    "kserve": (of_kserve, 1),
    "grpc": (of_grpc, 1),
    "wire": (of_wire, 1),
    "slow": (of_slow, 1),
    "openapi": (of_openapi, 1),
}


def run(
    server: Server, count: int, number: int = 0, senders: Sequence[str] = tuple(SENDERS), parts: int = PARTS
) -> Outcome:
    """`count` requests, as many of each sender's, made from the seeds `number` to `number + parts - 1`."""
    outcome = Outcome()
    with httpx.Client(base_url=server.url, timeout=30) as client, contextlib.ExitStack() as kept:
        made = {name: SENDERS[name][0](server, client, outcome, kept) for name in senders}
        meter = Meter(server.pid, outcome.failures.append)
        for part in range(parts):
            for name, (strategy, send) in made.items():
                at_once = SENDERS[name][1]
                watched = partial(meter.watch, send)
                _draw(strategy, watched, count // parts // len(senders) // at_once, number + part)
            ports = outcome.strangers.ports() if outcome.strangers else set()
            outcome.vitals.append(Vitals.of(server.pid, ports))
    outcome.judge_growth()
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
