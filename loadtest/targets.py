"""Measures Yolopard's performance targets: one line for each, with pass or falls short.

    make peers && .venv/bin/python loadtest/targets.py [--only 1 4] [--rounds 5] [--markdown FILE]

Everything runs on this machine, including the load, so every result is a ratio measured in alternating turns, or a
counter of the server.
"""

import argparse
import asyncio
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import compare
import cv2
import numpy as np
import uvloop

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from app.backends.simulated import SimulatedEngine  # noqa: E402
from app.bench.context import circumstances, machine_line  # noqa: E402
from app.bench.engine_baseline import EngineBaseline  # noqa: E402
from app.bench.load import Target, closed_loop, multipart, open_loop  # noqa: E402
from app.bench.server import Server, started  # noqa: E402
from app.providers import engine_provider  # noqa: E402
from app.serving.batcher import Batcher  # noqa: E402
from app.serving.profile import EngineProfile  # noqa: E402
from app.settings import Settings  # noqa: E402
from app.system import host  # noqa: E402
from app.system.metrics import Metrics  # noqa: E402

median = statistics.median
JPEG = compare.photo().read_bytes()
YARDSTICK_MS = "4,6.93"  # yolov8m at 1280 on an A10G: 64 images in 447.5 ms, 143 a second
TURNS, TURN_S = 8, 0.5  # of item 3, per round: short, because the speed of a machine may change by a third
SMALL_MS = "2,3.2083"  # 16 images in 53.3 ms, 300 a second


@dataclass(frozen=True)
class Line:
    """The measurement of one target."""

    item: int
    text: str
    measured: float
    limit: float | None  # None: there is no target
    is_maximum: bool = False  # of `limit`: a maximum, otherwise a minimum
    unit: str = ""

    @property
    def passed(self) -> bool:
        if self.limit is None:
            return True
        return self.measured <= self.limit if self.is_maximum else self.measured >= self.limit

    def __str__(self) -> str:
        if self.limit is None:
            return f"| {self.item} | {self.text} | {self.measured:.3g}{self.unit} | | |"
        bound = f"{'at most' if self.is_maximum else 'at least'} {self.limit:g}{self.unit}"
        result = "pass" if self.passed else "**falls short**"
        return f"| {self.item} | {self.text} | {self.measured:.3g}{self.unit} | {bound} | {result} |"


def settings(**given: object) -> Settings:
    return Settings.read({name: str(value) for name, value in given.items()}, {})


def run_clients(server: Server, seconds: float, clients: int, warm_up: float = 1.5):  # noqa: ANN201
    return uvloop.run(
        closed_loop(Target(f"{server.url}/v1/detect", [JPEG]), clients=clients, seconds=seconds, warm_up=warm_up)
    )


def log_line(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def all_but_the_engine(options: argparse.Namespace) -> Iterator[Line]:
    """1: a simulated engine of 0 ms against peers without a model, and against decode and letterbox alone."""
    names = ("yolopard simulated", "litserve", "litserve first", "mosec", "mosec first")
    kinds = [kind for kind in compare.null_kinds() if kind.name in names]
    ceiling: list[float] = []
    with EngineBaseline(engine_provider, settings(backend="simulated"), [JPEG]) as baseline:
        ours, *peers = compared(kinds, 32, options, lambda: ceiling.append(baseline.decode(options.seconds)))
    for peer in peers:
        text = f"all but the engine, 32 clients, against {described(peer)}"
        yield Line(1, text, compare.ratio(peer, ours), target_for(peer, 2.5), unit=" x")
    share = median(rate / maximum for rate, maximum in zip(ours.rates(), ceiling, strict=True))
    yield Line(1, f"the same against decode and letterbox alone ({median(ceiling):.0f}/s)", share, 0.80)


def precision_text(requested: str, baseline: EngineBaseline) -> str:
    """Return the precision for a line, and the served one if the gate refused it."""
    got = baseline.precision()
    return requested.upper() if got == requested else f"{requested.upper()} (refused by the gate here: {got.upper()})"


def described(peer: compare.Server) -> str:
    """Return the peer's name with its rate."""
    name, rate = peer.kind.name, median(peer.rates())
    return f"{name.replace('first', '').strip()}, {'as in the target' if 'first' in name else 'tuned'} ({rate:.1f}/s)"


def target_for(peer: compare.Server, multiple: float) -> float | None:
    """Return the target for the peers in peers/first/, None for the tuned ones."""
    return multiple if "first" in peer.kind.name else None


def with_the_engine(options: argparse.Namespace) -> Iterator[Line]:
    """2: real engines, 8 clients."""
    kinds = [kind for kind in compare.real_kinds(compare.WEIGHTS) if kind.ours or "fastapi" in kind.name]
    engines: dict[str, list[float]] = {"fp32": [], "int8": []}
    decode: list[float] = []
    own = {name: settings(backend="openvino", precision=name) for name in engines}
    with (
        EngineBaseline(engine_provider, own["fp32"], [JPEG]) as fp32_baseline,
        EngineBaseline(engine_provider, own["int8"], [JPEG]) as int8_baseline,
    ):

        def parts() -> None:
            engines["fp32"].append(fp32_baseline.engine(options.seconds))
            engines["int8"].append(int8_baseline.engine(options.seconds))
            decode.append(fp32_baseline.decode(options.seconds))

        fp32, int8, *peers = compared(kinds, 8, options, parts)
        names = {"fp32": precision_text("fp32", fp32_baseline), "int8": precision_text("int8", int8_baseline)}
    for peer in peers:
        of_fp32, of_int8 = (2.7, 4.8) if peer.kind.name.endswith("pt") else (1.3, None)
        yield Line(
            2, f"served FP32 against {described(peer)}", compare.ratio(peer, fp32), target_for(peer, of_fp32), unit=" x"
        )
        if of_int8:
            yield Line(
                2,
                f"served {names['int8']} against {described(peer)}",
                compare.ratio(peer, int8),
                target_for(peer, of_int8),
                unit=" x",
            )
    for server, name in ((fp32, "fp32"), (int8, "int8")):
        rounds = list(zip(server.rates(), engines[name], decode, strict=True))
        share = median(rate / engine for rate, engine, _ in rounds)
        text = (
            f"served {names[name]} ({median(server.rates()):.1f}/s) over engine alone ({median(engines[name]):.1f}/s)"
        )
        yield Line(2, text, share, 0.90)
        share = median(rate * (1 / engine + 1 / images) for rate, engine, images in rounds)
        yield Line(2, f"served {names[name]} over engine and decoding on the same cores", share, 0.97)


def one_client(options: argparse.Namespace) -> Iterator[Line]:
    """3: all cores for one image when idle, one image per core under load."""
    for precision in ("fp32", "int8"):
        own = settings(backend="openvino", precision=precision)
        added, gains = [], []
        with started(own) as server, EngineBaseline(engine_provider, own, [JPEG]) as baseline:
            name = precision_text(precision, baseline)
            run_clients(server, 3, 1)
            for _ in range(options.rounds):
                for _ in range(TURNS):
                    latency = baseline.latency(TURN_S)
                    run = run_clients(server, TURN_S, 1, 0.2)
                    added.append((run.percentile(50) - latency) * 1000)
                one = run_clients(server, options.seconds, 1).images_per_second
                gains.append(run_clients(server, options.seconds, 8).images_per_second / one)
                last = median(added[-TURNS:])
                log_line(
                    f"3: {precision}: {latency * 1000:.1f} ms alone, {last:+.2f} ms served, {gains[-1]:.2f} x by 8"
                )
        yield Line(3, f"one client, {name}: p50 over decode and engine alone", median(added), 1.5, True, " ms")
        yield Line(3, f"8 clients, {name}: images/s over one client's", median(gains), 1.0, unit=" x")


def simulated_gpus(options: argparse.Namespace) -> Iterator[Line]:
    """4: the share of a GPU's rate that these cores can serve."""
    cases = (
        (
            "yolov8m on an A10G, 1280, batch 64, 143/s",
            {"simulated_ms": YARDSTICK_MS, "imgsz": 1280, "batch": 64},
            192,
            143,
            0.95,
        ),
        ("300/s, 640, batch 16", {"simulated_ms": SMALL_MS, "imgsz": 640, "batch": 16}, 64, 300, 0.90),
    )
    for text, engine_settings, clients, rate, limit in cases:
        with started(settings(backend="simulated", **engine_settings)) as server:
            shares = []
            for _ in range(options.rounds):
                shares.append(run_clients(server, 2 * options.seconds, clients, 3).images_per_second / rate)
                log_line(f"4: {text}: {shares[-1]:.3f}")
        yield Line(4, f"simulated GPU, {text}", median(shares), limit)


def overload(options: argparse.Namespace) -> Iterator[Line]:
    """5: three times the peak load."""
    deadline_ms = 1000
    with started(settings(backend="openvino", precision="int8")) as server:
        peaks = [run_clients(server, options.seconds, clients).images_per_second for clients in (8, 16, 8)]
        target = Target(f"{server.url}/v1/detect", [JPEG], headers={"X-Deadline-Ms": str(deadline_ms)})
        uvloop.run(open_loop(target, rate=3 * max(peaks), seconds=10))
        before = server.counters().resident_bytes
        run = uvloop.run(open_loop(target, rate=3 * max(peaks), seconds=60, warm_up=2))
        after = server.counters().resident_bytes
        peaks += [run_clients(server, options.seconds, clients).images_per_second for clients in (8, 16, 8)]
        log_line(f"5: peaks {peaks}; {dict(run.statuses)}; sent up to {max(run.lateness) * 1000:.0f} ms late")
    peak = median(peaks)
    yield Line(5, f"3 x {peak:.0f}/s for 60 s: answered over peak", run.images_per_second / peak, 0.95)
    yield Line(5, "the same: p99 of accepted requests", run.percentile(99) * 1000, deadline_ms, True, " ms")
    yield Line(5, "the same: p99 of refusals", run.percentile(99, 503) * 1000, 10, True, " ms")
    yield Line(
        5,
        "the same: answers other than 200, 503 and 504",
        sum(run.statuses.values()) - sum(run.statuses[s] for s in (200, 503, 504)),
        0,
        True,
    )
    yield Line(5, "the same: memory grown to", after / before, 1.05, True, " x")


def soak(options: argparse.Namespace) -> Iterator[Line]:
    """6: 100,000 valid and invalid requests of all kinds."""
    bodies = mixed_bodies()
    with started(settings(backend="simulated", max_body_bytes=2_000_000)) as server:

        def part(requests: int) -> dict[int, int]:
            statuses: dict[int, int] = {}
            done = 0
            while done < requests:
                for target in bodies(server.url):
                    run = uvloop.run(closed_loop(target, clients=8, seconds=1.0, warm_up=0))
                    done += run.requests
                    for status, count in run.statuses.items():
                        statuses[status] = statuses.get(status, 0) + count
            return statuses

        statuses = part(10_000)
        first = usage(server)
        more = part(90_000)
        last = usage(server)
        log_line(f"6: {statuses} then {more}; {first} then {last}")
    errors = sum(count for each in (statuses, more) for status, count in each.items() if status >= 500 or status == 0)
    yield Line(6, f"{sum(statuses.values()) + sum(more.values())} mixed requests: 5xx, or none at all", errors, 0, True)
    yield Line(6, "the same: memory after all over memory after 10,000", last[0] / first[0], 1.05, True, " x")
    yield Line(
        6, "the same: threads and files more than after 10,000", last[1] - first[1] + last[2] - first[2], 0, True
    )


def usage(server: Server) -> tuple[int, int, int]:
    """Return resident bytes, threads and open files of an idle server."""
    time.sleep(3 * host.IDLE_S)  # then the connections are closed and malloc has released its memory
    folder = Path(f"/proc/{server.pid}")
    resident = int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident, len(list((folder / "task").iterdir())), len(list((folder / "fd").iterdir()))


def mixed_bodies() -> Callable[[str], list[Target]]:
    """Return requests with small and large JPEG, PNG, WebP and BMP, one and many files, and invalid images."""
    rng = np.random.default_rng(0)
    noise = cv2.GaussianBlur(rng.integers(0, 255, (1500, 2000, 3), np.uint8), (0, 0), 9)
    sizes = ((64, 48), (320, 240), (640, 480), (1280, 720), (2000, 1500))
    files = [cv2.imencode(kind, cv2.resize(noise, size))[1].tobytes() for size in sizes for kind in (".jpg", ".webp")]
    files += [
        cv2.imencode(kind, cv2.resize(noise, size))[1].tobytes() for size in sizes[:3] for kind in (".png", ".bmp")
    ]
    bad = [files[4][:2000], b"no image", b"\xff\xd8\xff" + bytes(2000), bytes(2_500_000), b"x"]
    many, kind = multipart(files[:6])

    def targets(url: str) -> list[Target]:
        path = f"{url}/v1/detect"
        return [
            Target(path, files),
            Target(f"{path}?conf=0.6&classes=0", files[:4]),
            Target(path, [many], kind, images=6),
            Target(path, bad),
            Target(path, [many[:-30]], kind),
            Target(f"{path}?conf=7", files[:1]),
            Target(f"{path}?format=image", files[2:4]),
        ]

    return targets


def own_cost(options: argparse.Namespace) -> Iterator[Line]:
    """7: the CPU time of the batcher and of an idle server."""
    yield Line(
        7, "the batcher's own CPU an image, 64 waiting, batches of 16", uvloop.run(batcher_us()), 30, True, " us"
    )
    for given in ({"backend": "simulated"}, {"backend": "openvino"}):
        with started(settings(**given)) as server:
            run_clients(server, 2, 8)
            time.sleep(3)
            before, seconds = server.counters().cpu_s, 10
            time.sleep(seconds)
            share = (server.counters().cpu_s - before) / seconds
        yield Line(7, f"CPU of an idle server ({given['backend']}), of a core", share * 100, 1, True, " %")


async def batcher_us() -> float:
    """Return the CPU microseconds per image in the batcher, with an engine that takes no time."""
    sizes = (1, 16)
    batcher = Batcher(
        SimulatedEngine(0, 0, 640, 1),
        instances=1,
        profile=EngineProfile(sizes, (0.001, 0.001), (0, 0)),
        one_device=True,
        max_wait_s=0,
        metrics=Metrics(),
        model="m",
        name="e",
    )
    batcher.start()
    frame = np.zeros((64, 64, 3), np.uint8)

    async def client(count: int) -> None:
        for _ in range(count):
            await batcher.submit(frame, asyncio.get_running_loop().time() + 60)

    async def clients(count: int) -> float:
        started = time.process_time()
        await asyncio.gather(*(client(count) for _ in range(64)))
        return (time.process_time() - started) / (64 * count) * 1e6

    await clients(50)
    cost = median([await clients(200) for _ in range(5)])
    await batcher.close()
    return cost


def compared(
    kinds: list[compare.Kind], clients: int, options: argparse.Namespace, each_round: Callable[[], None]
) -> list[compare.Server]:
    measure_options = argparse.Namespace(port=18300, rounds=options.rounds, clients=clients, seconds=options.seconds)
    return compare.measure(kinds, JPEG, measure_options, each_round)


ITEMS = {1: all_but_the_engine, 2: with_the_engine, 3: one_client, 4: simulated_gpus, 5: overload, 6: soak, 7: own_cost}


def main() -> int:
    parser = argparse.ArgumentParser(description="Measures Yolopard's performance targets")
    parser.add_argument("--only", type=int, nargs="+", choices=ITEMS, default=list(ITEMS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="duration of a run")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    compare.CACHE.mkdir(exist_ok=True)
    lines = ["| item | target | measured | limit | result |", "| --- | --- | --- | --- | --- |"]
    passed = True
    for item in options.only:
        for line in ITEMS[item](options):
            log_line(str(line))
            lines.append(str(line))
            passed &= line.passed
    text = "\n".join([machine_line(circumstances()), "", *lines]) + "\n"
    print(text, end="")
    if options.markdown:
        options.markdown.write_text(text)
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
