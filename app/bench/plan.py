"""Runs all measurements in turn, round by round, so that changes of the machine's speed affect all of them alike."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import uvloop

from app.bench.engine_baseline import EngineBaseline
from app.bench.load import Run, Target, closed_loop, multipart, open_loop
from app.bench.server import Server
from app.errors import BenchFailed

FILES_PER_REQUEST = 8  # of a request with several files
PEAK_SHARES = (0.5, 0.8, 0.95)  # request rates of the open loop, relative to the peak


@dataclass(frozen=True)
class Plan:
    """The extent of the measurement."""

    clients: Sequence[int]
    seconds: float
    rounds: int


@dataclass
class Case:
    """One kind of load, and its runs."""

    name: str
    kind: str  # closed | open
    body: str  # raw | multipart | files
    load: float  # clients, or requests per second
    runs: list[Run] = field(default_factory=list)
    batch: list[float] = field(default_factory=list)  # images per batch, mean of a round
    cpu_ms: list[float] = field(default_factory=list)  # CPU time of the server per image
    shares: list[float] = field(default_factory=list)  # rate / rate of only the engine in the same round
    shares_of_possible: list[float] = field(default_factory=list)  # rate / Measured.possible in the same round

    @property
    def images_per_second(self) -> float:
        return statistics.median(run.images_per_second for run in self.runs)


@dataclass
class Measured:
    """The results of all measurements."""

    cases: list[Case]
    engine: list[float]  # images per second of only the engine, one per round
    decode: list[float]  # images per second of only decode and letterbox
    possible: list[float]  # upper limit of both: on shared cores, or the slower of the two
    latency: list[float]  # s, from JPEG to rows, when no other image runs


def measure(
    server: Server, baseline: EngineBaseline | None, files: Sequence[bytes], plan: Plan, step: Callable[[str], None]
) -> Measured:
    """Run the plan. Calls `step` before each run. Without `baseline`, uses the engine's rate from the server."""
    clients = max(plan.clients)
    cases = [Case(f"{n} client{'s' * (n > 1)}", "closed", "raw", n) for n in plan.clients]
    cases += [Case(f"{clients} clients, multipart", "closed", "multipart", clients)]
    fewer = max(1, clients // FILES_PER_REQUEST)
    name = f"{fewer} client{'s' * (fewer > 1)}, {FILES_PER_REQUEST} files per request"
    cases += [Case(name, "closed", "files", fewer)]
    found = Measured(cases, [], [], [], [])
    for _ in range(plan.rounds):
        _measure_baseline(found, server, baseline, plan, step)
        for case in cases:
            step(case.name)
            _run(case, server, files, plan, found)
    peak = max(case.images_per_second for case in cases if case.body == "raw")
    arrivals = [Case(f"{share:.0%} of the peak rate", "open", "raw", round(share * peak, 1)) for share in PEAK_SHARES]
    for _ in range(plan.rounds):
        for case in arrivals:
            step(f"{case.load:g} requests/s at random times")
            _run(case, server, files, plan, found)
    cases += arrivals
    return found


def steps(plan: Plan) -> int:
    """Return the number of calls of `step`."""
    return plan.rounds * (len(plan.clients) + 3 + len(PEAK_SHARES))


def _measure_baseline(
    found: Measured, server: Server, baseline: EngineBaseline | None, plan: Plan, step: Callable[[str], None]
) -> None:
    step("engine only, decode and letterbox only")
    if baseline is None:
        found.engine.append(server.counters().engine_images_per_second)
        return
    engine, decode = baseline.engine(plan.seconds), baseline.decode(plan.seconds)
    found.engine.append(engine)
    found.decode.append(decode)
    found.possible.append(1 / (1 / engine + 1 / decode) if baseline.shares_cores() else min(engine, decode))
    found.latency.append(baseline.latency(plan.seconds / 2))


def target(server: Server, files: Sequence[bytes], body: str) -> Target:
    """Return POST /v1/detect with these files: one as body, one as part, or FILES_PER_REQUEST parts in a request."""
    url = f"{server.url}/v1/detect"
    if body == "raw":
        return Target(url, files)
    count = FILES_PER_REQUEST if body == "files" else 1
    parts = [multipart([files[(first + i) % len(files)] for i in range(count)]) for first in range(len(files))]
    return Target(url, [content for content, _ in parts], parts[0][1], images=count)


def _run(case: Case, server: Server, files: Sequence[bytes], plan: Plan, found: Measured) -> None:
    load = target(server, files, case.body)
    before, warm_up = server.counters(), min(1.0, plan.seconds / 2)
    if case.kind == "closed":
        work = closed_loop(load, clients=int(case.load), seconds=plan.seconds, warm_up=warm_up)
    else:
        work = open_loop(load, rate=case.load, seconds=plan.seconds, warm_up=warm_up, seed=len(case.runs))
    run = uvloop.run(work)
    after = server.counters()
    if not run.statuses[200]:
        raise BenchFailed(f"{case.name}: no request was answered with 200, but {dict(run.statuses)}")
    images = max(1.0, after.images - before.images)
    case.runs.append(run)
    case.batch.append(images / max(1.0, after.batches - before.batches))
    case.cpu_ms.append((after.cpu_s - before.cpu_s) / images * 1000)
    if case.kind == "closed":
        case.shares.append(run.images_per_second / found.engine[-1])
        if found.possible:
            case.shares_of_possible.append(run.images_per_second / found.possible[-1])
