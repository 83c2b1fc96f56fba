"""`yolopard serve` in a child process, and its memory as reported by Linux."""

import contextlib
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from loadtest.hostile.row import BUDGET, MB, TIMEOUTS_MS, Row, Target

ROOT = Path(__file__).resolve().parents[2]
KEY = "key-of-the-good-client"
START_S = 300  # the first start with an engine builds it
EXIT_S = 15  # then the server is killed


@functools.cache
def known_settings() -> frozenset[str]:
    """Return the settings that `serve --help` lists."""
    text = subprocess.run([sys.executable, "-m", "app", "serve", "--help"], cwd=ROOT, capture_output=True, check=True)
    return frozenset(name.replace("-", "_") for name in re.findall(r"--([a-z][\w-]+)", text.stdout.decode()))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Server:
    """A server that is ready; it is killed at the end of `with`."""

    def __init__(self, row: Row, *, quick: bool) -> None:
        self.row = row
        self.port, self.grpc_port = free_port(), free_port()
        given = {"backend": "simulated", "host": "127.0.0.1", "port": self.port} | BUDGET
        given |= (TIMEOUTS_MS if quick else {}) | row.settings
        given |= {"api_keys": KEY} if row.keys else {}
        given |= {"grpc_port": self.grpc_port} if row.kind == "gRPC" else {}
        self.skipped = sorted(set(given) - known_settings())
        environment = {name: value for name, value in os.environ.items() if not name.startswith("YOLOPARD_")}
        environment |= {f"YOLOPARD_{name.upper()}": str(given[name]) for name in given if name not in self.skipped}
        self._log = tempfile.NamedTemporaryFile(prefix="yolopard-hostile-")  # noqa: SIM115
        limit = f"ulimit -n {row.files}; " if row.files else ""
        self.process = subprocess.Popen(
            ["sh", "-c", f'{limit}exec "$@"', "sh", sys.executable, "-m", "app", "serve"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            start_new_session=True,
        )
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            url = f"http://127.0.0.1:{self.port}/readyz"
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
                return
            time.sleep(0.05)
        self.kill()
        raise RuntimeError(f"{self.row.name}: the server does not start: {self.log[-2000:]}")

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._log.close()

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    def target(self, *, quick: bool) -> Target:
        return Target("127.0.0.1", self.port, self.grpc_port, self.process.pid, quick)

    def end(self, name: str) -> float:
        """Send the signal; return the seconds until the exit, infinity if it was killed after EXIT_S."""
        started = time.monotonic()
        if self.process.poll() is not None:
            return 0.0
        self.process.send_signal(signal.Signals[name])
        try:
            self.process.wait(EXIT_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return float("inf")
        return time.monotonic() - started

    def resident_mb(self) -> float:
        """Return the resident memory of the process and its children."""
        return sum(_status_mb(pid, "VmRSS") for pid in family(self.process.pid))

    def peak_mb(self) -> float:
        """Return the sum of the peaks of each process since `reset_peak`."""
        return sum(_status_mb(pid, "VmHWM") for pid in family(self.process.pid))

    def reset_peak(self) -> None:
        for pid in family(self.process.pid):
            with contextlib.suppress(OSError):  # without permission it stays the peak since the start
                Path(f"/proc/{pid}/clear_refs").write_text("5")


def family(pid: int) -> list[int]:
    """Return the process and all its living descendants."""
    found = [pid]
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += family(int(child))
    return found


def _status_mb(pid: int, name: str) -> float:
    with contextlib.suppress(OSError):
        if found := re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()):
            return int(found[1]) * 1024 / MB
    return 0.0


def start_attack(server: Server, *, quick: bool, once: bool) -> "subprocess.Popen[str]":
    fields = vars(server.target(quick=quick)) | {"once": once, "outcome": None}
    del fields["outcome"]
    command = [sys.executable, "-m", "loadtest.hostile.attacker", server.row.name, json.dumps(fields)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
