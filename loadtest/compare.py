"""Compares Yolopard with its peers (loadtest/peers/): the same image, in turns, on the same machine.

    make peers && .venv/bin/python loadtest/compare.py [--null] [--only NAME ...] [--rounds 5] [--seconds 6]
        [--clients N] [--weights FILE] [--image FILE] [--port 18200] [--markdown FILE] [--json FILE]

All servers are started once. Only the server whose turn it is runs, the others are stopped (SIGSTOP), because some use
the CPU while idle. In each round every server has a turn: a warm-up, then N clients, each of which sends its next
request after a response. The table has medians over the rounds; the ratios are medians of the ratios within each round,
which depend little on the noise of a machine. All servers get the raw JPEG as the body, except those that need a form.
The boxes are checked before and after each turn, and every response of the turn must be a 200. The `first` peers are
those of the targets in targets.py.

Taking turns does not cancel other work on the same cores: it slows a server of one process more than one of several. So
in each round all servers are stopped for a moment to measure the CPU use of others; the report shows the maximum.

Exit status 1 if a server does not start, returns another status than 200, or other boxes than at its start. In the
environment, `WORKERS=n` sets the number of processes of the peers (default: the best on two cores), and `YOLOPARD_...`
sets Yolopard's settings.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import uvloop

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from app.bench.context import circumstances, machine_line  # noqa: E402
from app.bench.load import Run, Target, closed_loop, multipart  # noqa: E402

PEERS, CACHE = ROOT / "loadtest/peers", ROOT / "loadtest/.cache"
PEERS_PYTHON = ROOT / ".venv-peers/bin/python"
WEIGHTS = ROOT / "models/demo/yolov8n-demo.pt"
START_S, ANSWER_S, WARM_UP_S, IDLE_S, OTHERS_S, POLL_S = 300, 30, 1.5, 3, 1, 0.2
FIRST_REQUESTS = 20  # before any turn
LOADING = 0.6  # of a core: more than any server uses while idle
NULL_CLIENTS, CLIENTS = 32, 8
TICKS = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A server does not start or gives a wrong response."""


@dataclass(frozen=True)
class Kind:
    """A kind of server: its start command, and the path that accepts an image."""

    name: str
    command: Sequence[str | Path]
    path: str
    packages: Sequence[str]  # whose versions are reported
    environment: Mapping[str, str] = field(default_factory=dict)
    form: bool = False  # the image is sent as the file of a form, not as the body

    @property
    def ours(self) -> bool:
        return self.name.startswith("yolopard")


def yolopard(name: str, *packages: str, **settings: object) -> Kind:
    options = [f"--{key}={value}" for key, value in settings.items()]
    return Kind(name, [sys.executable, "-m", "app", "serve", *options], "/v1/detect", ["yolopard", *packages])


KEEP_FREED_MEMORY = {  # the malloc settings of Yolopard (app/system/host.py)
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(512 << 20),
}


def peer(name: str, file: str, *packages: str, path: str = "/predict", form: bool = False, **environment: str) -> Kind:
    return Kind(name, [PEERS_PYTHON, PEERS / f"{file}.py"], path, packages, environment, form)


def null_kinds() -> list[Kind]:
    """Servers without a model. `malloc`: a peer with Yolopard's malloc settings, which is unusual."""
    return [
        yolopard("yolopard simulated", backend="simulated"),
        peer("fastapi", "fastapi_null", "fastapi", "uvicorn"),
        peer("fastapi malloc", "fastapi_null", "fastapi", "uvicorn", **KEEP_FREED_MEMORY),
        peer("litserve", "litserve_null", "litserve"),
        peer("litserve first", "first/litserve_null", "litserve", form=True),
        peer("mosec", "mosec_null", "mosec", path="/inference"),
        peer("mosec first", "first/mosec_null", "mosec", path="/inference"),
        peer("mosec malloc", "mosec_null", "mosec", path="/inference", **KEEP_FREED_MEMORY),
        peer("ray", "ray_null", "ray"),
    ]


def real_kinds(weights: Path) -> list[Kind]:
    """Servers that run the same weights."""
    pytorch, openvino = {"M": str(weights)}, {"M": str(openvino_export(weights))}
    return [
        yolopard("yolopard fp32", "openvino", weights=weights, backend="openvino", precision="fp32"),
        yolopard("yolopard int8", "openvino", weights=weights, backend="openvino", precision="int8"),
        peer("fastapi ultralytics pt", "fastapi_ultralytics", "ultralytics", "torch", **pytorch),
        peer("fastapi ultralytics openvino", "fastapi_ultralytics", "ultralytics", "openvino", **openvino),
        peer("first fastapi ultralytics pt", "first/fastapi_ultralytics", "ultralytics", "torch", form=True, **pytorch),
        peer(
            "first fastapi ultralytics openvino",
            "first/fastapi_ultralytics",
            *("ultralytics", "openvino"),
            form=True,
            **openvino,
        ),
        peer("litserve ultralytics pt", "litserve_ultralytics", "litserve", "ultralytics", "torch", **pytorch),
        peer("ray ultralytics pt", "ray_ultralytics", "ray", "ultralytics", "torch", **pytorch),
    ]


def environment(**more: str) -> dict[str, str]:
    """Return an environment in which Ultralytics keeps its settings in the cache and not in the user's home."""
    return {**os.environ, "YOLO_CONFIG_DIR": str(CACHE), **more}


def openvino_export(weights: Path) -> Path:
    """Return the folder of Ultralytics' OpenVINO export; it is made once for these weights."""
    folder = CACHE / f"{weights.stem}-{weights.stat().st_mtime_ns}"
    made = folder / f"{weights.stem}_openvino_model"
    if not made.exists():
        folder.mkdir(parents=True, exist_ok=True)
        copy = shutil.copy(weights, folder)
        command = [PEERS_PYTHON, PEERS / "weights.py", copy]
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(folder)
            raise Failed(f"Ultralytics' export to OpenVINO: {last_line(done.stderr)}")
    return made


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it said nothing"])[-1]


def version_of(kind: Kind) -> str:
    code = "import sys, importlib.metadata as m; print(', '.join(f'{p} {m.version(p)}' for p in sys.argv[1:]))"
    printed = subprocess.run([kind.command[0], "-c", code, *kind.packages], capture_output=True, text=True, check=True)
    return printed.stdout.strip()


class Server:
    """A running server in its own session; all processes of the session belong to it."""

    def __init__(self, kind: Kind, port: int, image: bytes) -> None:
        self.kind = kind
        self.body, self.content_type = multipart([image]) if kind.form else (image, "image/jpeg")
        self.url = f"http://127.0.0.1:{port}{kind.path}"
        self.rounds: list[Run] = []
        self.boxes: list[Any] = []
        self.idle_cpu = 0.0
        self.version = version_of(kind)
        socket.create_server(("127.0.0.1", port)).close()  # the port is free
        self._log = CACHE / f"{kind.name.replace(' ', '-')}.log"
        port_option = [f"--port={port}"] if kind.ours else []
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*kind.command, *port_option],
                cwd=ROOT,
                env=environment(PORT=str(port), **kind.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def family(self) -> dict[int, int]:
        """Return the clock ticks that each of its living processes has used, by pid."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if int(fields[3]) == self._process.pid and fields[0] != "Z":
                    found[int(folder.name)] = int(fields[11]) + int(fields[12])
        return found

    def pause(self) -> None:
        """Stop the leader first, otherwise it would replace its workers as hung."""
        self._send(signal.SIGSTOP, [self._process.pid, *self.family()])

    def resume(self) -> None:
        """Resume the leader last, after its workers have replied to its earlier messages."""
        workers = set(self.family()) - {self._process.pid}
        self._send(signal.SIGCONT, workers)
        time.sleep(POLL_S)
        self._send(signal.SIGCONT, [self._process.pid])

    def kill(self) -> None:
        while family := self.family():
            self._send(signal.SIGKILL, family)
            time.sleep(0.02)
        self._process.wait()

    @staticmethod
    def _send(number: signal.Signals, pids: Iterable[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def ask(self) -> list[Any]:
        """Return the boxes of the image. Raises OSError if the server is not ready, Failed if it returns no boxes."""
        request = urllib.request.Request(self.url, self.body, {"Content-Type": self.content_type})
        with urllib.request.urlopen(request, timeout=ANSWER_S) as response:
            content = response.read()
        try:
            boxes = json.loads(content)["images"][0]["results"] if self.kind.ours else json.loads(content)
            valid = [0 <= box["confidence"] <= 1 and box["box"].keys() >= {"x1", "y1", "x2", "y2"} for box in boxes]
        except (ValueError, LookupError, TypeError) as error:
            raise Failed(f"{self.kind.name} returned {content[:100]!r}") from error
        if not all(valid):
            raise Failed(f"{self.kind.name} returned {content[:100]!r}")
        return boxes

    def until_ready(self) -> None:
        """Wait for all workers, and for work after the first responses (Yolopard compiles a model for their shape)."""
        deadline = time.monotonic() + START_S
        while not self.boxes:
            try:
                self.boxes = self.ask()
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise Failed(f"{self.kind.name} does not start: {last_line(self._log.read_text())}") from None
                time.sleep(POLL_S)
        for _ in range(FIRST_REQUESTS):
            self.check()
        while self._use_of_core() > LOADING and time.monotonic() < deadline:
            pass
        self.idle_cpu = self._use_of_core()

    def _use_of_core(self) -> float:
        before = self.family()
        time.sleep(IDLE_S)
        after = self.family()
        return sum(ticks - before.get(pid, 0) for pid, ticks in after.items()) / TICKS / IDLE_S

    def check(self) -> None:
        try:
            boxes = self.ask()
        except OSError as error:
            raise Failed(f"{self.kind.name}: {error}") from error
        if len(boxes) != len(self.boxes):
            raise Failed(f"{self.kind.name} gave {len(self.boxes)} boxes at first and {len(boxes)} now")

    def turn(self, clients: int, seconds: float) -> None:
        self.check()
        target = Target(self.url, [self.body], self.content_type)
        run = uvloop.run(closed_loop(target, clients=clients, seconds=seconds, warm_up=WARM_UP_S))
        self.check()
        if run.statuses.keys() != {200}:
            raise Failed(f"{self.kind.name}: of {run.requests} requests, by status: {dict(run.statuses)}")
        self.rounds.append(run)

    def rates(self) -> list[float]:
        return [run.images_per_second for run in self.rounds]

    def milliseconds(self, share: float) -> float:
        return median(run.percentile(share) for run in self.rounds) * 1000


def others_use() -> float:
    """Return the CPU use of everything on this machine, in cores; call it while the servers are stopped."""

    def used() -> int:
        user, nice, system, _, _, *interrupts = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:8])
        return user + nice + system + sum(interrupts)

    before = used()
    time.sleep(OTHERS_S)
    return (used() - before) / TICKS / OTHERS_S


def measure(
    kinds: Sequence[Kind],
    image: bytes,
    options: argparse.Namespace,
    each_round: Callable[[], None] = lambda: None,
) -> list[Server]:
    """Run `rounds` rounds and return the servers, which have been killed. They are stopped while `each_round` runs."""
    servers: list[Server] = []
    try:
        for i, kind in enumerate(kinds):
            servers.append(Server(kind, options.port + i, image))
            servers[-1].until_ready()
            servers[-1].pause()
            log_line(f"{kind.name}: {len(servers[-1].boxes)} boxes, {servers[-1].idle_cpu:.0%} of a core while idle")
        for number in range(options.rounds):
            for server in servers:
                server.resume()
                server.turn(options.clients, options.seconds)
                server.pause()
                log_line(f"round {number + 1}/{options.rounds}: {server.kind.name}: {server.rates()[-1]:.1f} images/s")
            log_line(f"round {number + 1}/{options.rounds}: others use {(use := others_use()):.0%} of a core")
            options.others = max(getattr(options, "others", 0.0), use)
            each_round()
    finally:
        for server in servers:
            server.kill()
    return servers


def log_line(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def ratio(server: Server, base: Server) -> float:
    """Return the median ratio of the base's rate to the server's rate within a round."""
    return median(base_rate / rate for base_rate, rate in zip(base.rates(), server.rates(), strict=True))


def table(servers: Sequence[Server]) -> str:
    bases = [server for server in servers if server.kind.ours]
    titles = [
        "server",
        "versions",
        "images/s",
        "p50 ms",
        "p99 ms",
        *(f"images/s of {base.kind.name} / of this server" for base in bases),
    ]
    titles += ["boxes", "CPU while idle, of a core"]
    lines = [titles, ["---"] * len(titles)]
    for server in servers:
        rates = server.rates()
        lines.append(
            [
                server.kind.name,
                server.version,
                f"{median(rates):.1f} [{min(rates):.1f}-{max(rates):.1f}]",
                f"{server.milliseconds(50):.0f}",
                f"{server.milliseconds(99):.0f}",
                *(f"{ratio(server, base):.2f}" for base in bases),
                str(len(server.boxes)),
                f"{server.idle_cpu:.0%}",
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def document(servers: Sequence[Server], options: argparse.Namespace) -> dict[str, Any]:
    """Return the content of --json: every round of every server."""
    bases = [server for server in servers if server.kind.ours]
    return {
        **circumstances(),
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
        "servers": [
            {
                "name": server.kind.name,
                "version": server.version,
                "boxes": server.boxes,
                "idle_cpu": server.idle_cpu,
                "images_per_second": server.rates(),
                "p50_ms": [run.percentile(50) * 1000 for run in server.rounds],
                "p99_ms": [run.percentile(99) * 1000 for run in server.rounds],
                "requests": [run.requests for run in server.rounds],
                "ratio": {base.kind.name: ratio(server, base) for base in bases},
            }
            for server in servers
        ],
    }


def report(servers: Sequence[Server], options: argparse.Namespace) -> str:
    lines = [
        f"{machine_line(circumstances())}; {options.image.name}, {options.clients} clients on the same cores, "
        f"{options.rounds} rounds of {options.seconds:g} s; "
        f"other processes used at most {options.others:.0%} of a core.",
        "",
        table(servers),
    ]
    if len({len(server.boxes) for server in servers}) > 1:
        lines += ["", "The servers do not agree on the number of boxes."]
    return "\n".join(lines) + "\n"


def photo() -> Path:
    """Return the path of Ultralytics' photo of a bus, 810 by 1080 px."""
    found = importlib.util.find_spec("ultralytics")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "assets/bus.jpg"


def main() -> int:
    parser = argparse.ArgumentParser(description="Yolopard beside its peers")
    parser.add_argument("--null", action="store_true", help="servers without a model")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="only servers whose names contain one of these"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6, help="duration of a turn after its warm-up")
    parser.add_argument("--clients", type=int, help=f"{CLIENTS}; with --null {NULL_CLIENTS}")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--image", type=Path, default=photo())
    parser.add_argument("--port", type=int, default=18200, help="port of the first server; the others follow")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    parser.add_argument("--json", type=Path, help="write every round to this file")
    options = parser.parse_args()
    options.clients = options.clients or (NULL_CLIENTS if options.null else CLIENTS)
    if not PEERS_PYTHON.exists():
        parser.error("the peers are not installed: make peers")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    CACHE.mkdir(exist_ok=True)
    try:
        kinds = null_kinds() if options.null else real_kinds(options.weights.resolve())
        chosen = [kind for kind in kinds if not options.only or any(word in kind.name for word in options.only)]
        if not chosen:
            parser.error(f"--only: none of {', '.join(kind.name for kind in kinds)}")
        servers = measure(chosen, options.image.read_bytes(), options)
    except (Failed, OSError) as failure:
        log_line(f"compare: {failure}")
        return 1
    except KeyboardInterrupt:
        return 130
    text = report(servers, options)
    print(text, end="")
    if options.markdown:
        options.markdown.write_text(text)
    if options.json:
        options.json.write_text(json.dumps(document(servers, options), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
