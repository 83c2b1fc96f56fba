"""What is measured, in which order: everything in turn, round after round, so that a machine's moods hit all alike."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import uvloop

from app.bench.engine_baseline import EngineBaseline
from app.bench.load import Run, Target, closed_loop, multipart, open_loop
from app.bench.server import Server
from app.errors import BenchFailed

FILES = 8  # of a request with many
SHARES = (0.5, 0.8, 0.95)  # of the peak, for the open loop


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

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
    batch: list[float] = field(default_factory=list)  # images a batch, mean of a round
    cpu_ms: list[float] = field(default_factory=list)  # of the server, an image
    shares: list[float] = field(default_factory=list)  # of the engine alone in the same round
    shares_of_possible: list[float] = field(default_factory=list)

    @property
    def images_per_second(self) -> float:
        return statistics.median(run.images_per_second for run in self.runs)


@dataclass
class Measured:
    """All that a bench has found."""

    cases: list[Case]
    engine: list[float]  # images per second alone, a round each
    decode: list[float]  # decode and letterbox alone
    possible: list[float]  # both together, on the cores that they share, or the slower of the two
    latency: list[float]  # s, one image alone from JPEG to rows


def measure(
    server: Server, baseline: EngineBaseline | None, files: Sequence[bytes], plan: Plan, step: Callable[[str], None]
) -> Measured:
    """`step` is called before each run. Without `alone` the engine's rate is the one it had at the server's warm-up."""
    most = max(plan.clients)
    cases = [Case(f"{n} client{'s' * (n > 1)}", "closed", "raw", n) for n in plan.clients]
    cases += [Case(f"{most} clients, multipart", "closed", "multipart", most)]
    cases += [Case(f"{max(1, most // FILES)} clients, {FILES} files each", "closed", "files", max(1, most // FILES))]
    found = Measured(cases, [], [], [], [])
    for _ in range(plan.rounds):
        _alone(found, server, baseline, plan, step)
        for case in cases:
            step(case.name)
            _run(case, server, files, plan, found)
    peak = max(case.images_per_second for case in cases if case.body == "raw")
    arrivals = [Case(f"{share:.0%} of the peak", "open", "raw", round(share * peak, 1)) for share in SHARES]
    for _ in range(plan.rounds):
        for case in arrivals:
            step(f"{case.load:g} requests/s at random times")
            _run(case, server, files, plan, found)
    cases += arrivals
    return found


def steps(plan: Plan) -> int:
    """How often `step` is called."""
    return plan.rounds * (len(plan.clients) + 3 + len(SHARES))


def _alone(
    found: Measured, server: Server, baseline: EngineBaseline | None, plan: Plan, step: Callable[[str], None]
) -> None:
    step("the engine, and decoding, alone")
    if baseline is None:
        found.engine.append(server.counters().engine_images_per_second)
        return
    engine, decode = baseline.engine(plan.seconds), baseline.decode(plan.seconds)
    found.engine.append(engine)
    found.decode.append(decode)
    found.possible.append(1 / (1 / engine + 1 / decode) if baseline.shares_cores() else min(engine, decode))
    found.latency.append(baseline.latency(plan.seconds / 2))


def target(server: Server, files: Sequence[bytes], body: str) -> Target:
    """POST /v1/detect with these files: each as the body, each as a part, or FILES of them in one request."""
    url = f"{server.url}/v1/detect"
    if body == "raw":
        return Target(url, files)
    count = FILES if body == "files" else 1
    parts = [multipart([files[(first + i) % len(files)] for i in range(count)]) for first in range(len(files))]
    return Target(url, [content for content, _ in parts], parts[0][1], images=count)


def _run(case: Case, server: Server, files: Sequence[bytes], plan: Plan, found: Measured) -> None:
    requested = target(server, files, case.body)
    before, warm_up = server.counters(), min(1.0, plan.seconds / 2)
    if case.kind == "closed":
        work = closed_loop(requested, clients=int(case.load), seconds=plan.seconds, warm_up=warm_up)
    else:
        work = open_loop(requested, rate=case.load, seconds=plan.seconds, warm_up=warm_up, seed=len(case.runs))
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
