"""The server that is asked: one that runs already, or one that is started for the bench."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from app.errors import BenchFailed
from app.settings import PREFIX, Settings

STOP_S = 30


@dataclass(frozen=True)
class Counters:
    """What a server has counted so far."""

    cpu_s: float
    images: float
    batches: float
    engine_images_per_second: float  # alone, at its warm-up
    resident_bytes: float


class Server:
    """A running server, by its address."""

    def __init__(self, url: str, pid: int | None = None) -> None:
        self.url = url.rstrip("/")
        self.pid = pid  # if it was started here

    def read(self, path: str) -> bytes:
        """Raises BenchFailed."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:  # noqa: S310
                content: bytes = answer.read()
                return content
        except (OSError, ValueError) as error:
            raise BenchFailed(f"{self.url}{path} does not answer: {error}") from error

    @property
    def ready(self) -> bool:
        with contextlib.suppress(BenchFailed):
            return bool(self.read("/readyz"))
        return False

    def counters(self) -> Counters:
        """Of the engine that serves, summed over its labels."""
        sums: dict[str, float] = {}
        for family in text_string_to_metric_families(self.read("/metrics").decode()):
            for sample in family.samples:
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
        return Counters(
            cpu_s=sums.get("process_cpu_seconds_total", 0.0),
            images=sums.get("yolopard_images_total", 0.0),
            batches=sums.get("yolopard_batches_total", 0.0),
            engine_images_per_second=sums.get("yolopard_engine_images_per_second", 0.0),
            resident_bytes=sums.get("process_resident_memory_bytes", 0.0),
        )


@contextlib.contextmanager
def started(settings: Settings) -> Iterator[Server]:
    """A server with these settings on a free port of this machine, ready. Raises BenchFailed with its last lines."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    given = settings.given() | {"api_keys": "", "host": "127.0.0.1", "port": str(port)}
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environment |= {f"{PREFIX}{name.upper()}": value for name, value in given.items()}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "serve"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            server = Server(f"http://127.0.0.1:{port}", process.pid)
            while not server.ready:
                if process.poll() is not None:
                    output.seek(0)
                    lines = output.read().strip().splitlines() or ["it said nothing"]
                    raise BenchFailed(f"the server did not start: {lines[-1].removeprefix('yolopard: ')}")
                time.sleep(0.1)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
