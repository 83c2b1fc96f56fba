"""Early refusals: every client must receive the response to a request refused before its body is read.

`python loadtest/hostile --refusals` prints how many of 100 each client received. Clients that write their whole body
before reading, or give up when writing fails, lose the response if the server closes with bytes unread. nginx reads for
a while before it closes: https://nginx.org/en/docs/http/ngx_http_core_module.html#lingering_close
"""

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from loadtest.hostile.server import KEY, ROOT, free_port

MAX_BODY = 512 << 10
SIZES = (1 << 20, 5 << 20, 20 << 20)
CASES = {  # expected status: path, and whether the key is sent
    401: ("/v1/predict", False),
    404: ("/nowhere", True),
    405: ("/healthz", True),
    413: ("/v1/predict", True),
    422: ("/v1/predict?conf=7", True),
    503: ("/v1/predict", True),  # from a server that is not ready
}
START_S = 30


@dataclass(frozen=True)
class Refusal:
    """A request and its expected status."""

    url: str
    status: int
    size: int
    keyed: bool = True
    chunked: bool = False
    close: bool = False

    @property
    def headers(self) -> dict[str, str]:
        key = {"X-API-Key": KEY} if self.keyed else {}
        return {"Content-Type": "image/jpeg"} | key | ({"Connection": "close"} if self.close else {})


Client = Callable[[Sequence[Refusal]], list[str]]  # the status of each request, or the error of the client


def hundred(ready_url: str, busy_url: str, count: int = 100, sizes: Sequence[int] = SIZES) -> list[Refusal]:
    """Return `count` requests that cycle through all cases, sizes, framings and Connection headers."""
    every = [
        Refusal(f"{busy_url if status == 503 else ready_url}{path}", status, size, keyed, chunked, close)
        for chunked, close, size in itertools.product((False, True), (True, False), sizes)
        for status, (path, keyed) in CASES.items()
    ]
    return list(itertools.islice(itertools.cycle(every), count))


@contextlib.contextmanager
def servers() -> Iterator[tuple[str, str]]:
    """Yield the URLs of a server that needs a key and accepts bodies of 512 KB, and of one that is not ready."""
    with _server() as ready, _server(simulated_ms="60000,0") as busy:
        yield ready, busy


@contextlib.contextmanager
def _server(**settings: object) -> Iterator[str]:
    port = free_port()
    given = {"backend": "simulated", "port": port, "api_keys": KEY, "max_body_bytes": MAX_BODY} | settings
    environment = {name: value for name, value in os.environ.items() if not name.startswith("YOLOPARD_")}
    environment |= {f"YOLOPARD_{name.upper()}": str(value) for name, value in given.items()}
    silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-m", "app", "serve"], cwd=ROOT, env=environment, **silent)
    try:
        url, until = f"http://127.0.0.1:{port}", time.monotonic() + START_S
        path = "/healthz" if settings else "/readyz"
        while not _responds(url + path):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server of the refusals does not start: {process.poll()}")
            time.sleep(0.05)
        yield url
    finally:
        process.kill()
        process.wait()


def _responds(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
        return True
    return False


def lost(refusals: Sequence[Refusal], statuses: Sequence[str]) -> Counter[str]:
    """Count what the clients got instead of the expected responses."""
    pairs = zip(refusals, statuses, strict=True)
    return Counter(f"{refusal.status} -> {got}" for refusal, got in pairs if str(refusal.status) != got)


def table(clients: dict[str, Client]) -> tuple[list[str], bool]:
    """Return a table with a line for each client, and whether all responses were read."""
    lines, complete = ["| client | answers read | lost |", "|---|---|---|"], True
    for name, client in clients.items():
        with servers() as urls:
            refusals = hundred(*urls)
            wrong = lost(refusals, client(refusals))
        complete &= not wrong
        counts = ", ".join(f"{what}: {count}" for what, count in wrong.most_common(6)).replace("|", "/") or "-"
        lines.append(f"| {name} | {len(refusals) - wrong.total()} of {len(refusals)} | {counts} |")
        print(lines[-1], flush=True)
    return lines, complete


@contextlib.contextmanager
def file_of(size: int) -> Iterator[str]:
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(size)
        yield file.name
