"""Early refusals: who is refused before the body is read must still get the answer, whatever the client.

`python loadtest/hostile --refusals` prints how many of 100 did. A client that writes its whole body before it reads, or
that gives up where its writing fails, loses the answer of a server that closes with bytes unread. nginx reads on for a
while before it closes: https://nginx.org/en/docs/http/ngx_http_core_module.html#lingering_close
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
CASES = {  # path and whether the key is shown, by what the answer must be
    401: ("/v1/predict", False),
    404: ("/nowhere", True),
    405: ("/healthz", True),
    413: ("/v1/predict", True),
    422: ("/v1/predict?conf=7", True),
    503: ("/v1/predict", True),  # asked of a server that is not ready
}
START_S = 30


@dataclass(frozen=True)
class Refusal:
    """A request, and the status that it must get."""

    url: str
    status: int
    size: int
    keyed: bool = True
    chunked: bool = False
    close: bool = False

    @property
    def headers(self) -> dict[str, str]:
        shown = {"X-API-Key": KEY} if self.keyed else {}
        return {"Content-Type": "image/jpeg"} | shown | ({"Connection": "close"} if self.close else {})


Client = Callable[[Sequence[Refusal]], list[str]]  # the status that each got, or how the client failed


def hundred(ready_url: str, busy_url: str, count: int = 100, sizes: Sequence[int] = SIZES) -> list[Refusal]:
    """Every case by every size, of a length and chunked, closing and not; then again, until there are `count`."""
    every = [
        Refusal(f"{busy_url if status == 503 else ready_url}{path}", status, size, keyed, chunked, close)
        for chunked, close, size in itertools.product((False, True), (True, False), sizes)
        for status, (path, keyed) in CASES.items()
    ]
    return list(itertools.islice(itertools.cycle(every), count))


@contextlib.contextmanager
def servers() -> Iterator[tuple[str, str]]:
    """A server that wants a key and takes bodies of 512 KB, and one that is not ready: their URLs."""
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
        while not _answers(url + path):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server of the refusals does not start: {process.poll()}")
            time.sleep(0.05)
        yield url
    finally:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
        return True
    return False


def lost(refusals: Sequence[Refusal], statuses: Sequence[str]) -> Counter[str]:
    """What came instead of the answers that did not reach their client."""
    pairs = zip(refusals, statuses, strict=True)
    return Counter(f"{requested.status} -> {got}" for requested, got in pairs if str(requested.status) != got)


def table(clients: dict[str, Client]) -> tuple[list[str], bool]:
    """A line for each client, and whether all answers were read."""
    lines, whole = ["| client | answers read | lost |", "|---|---|---|"], True
    for name, client in clients.items():
        with servers() as urls:
            refusals = hundred(*urls)
            wrong = lost(refusals, client(refusals))
        whole &= not wrong
        reported = ", ".join(f"{what}: {count}" for what, count in wrong.most_common(6)).replace("|", "/") or "-"
        lines.append(f"| {name} | {len(refusals) - wrong.total()} of {len(refusals)} | {reported} |")
        print(lines[-1], flush=True)
    return lines, whole


@contextlib.contextmanager
def file_of(size: int) -> Iterator[str]:
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(size)
        yield file.name
