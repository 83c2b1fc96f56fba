"""Signals and forged log lines."""

import asyncio

from loadtest.hostile.attacks.images import image
from loadtest.hostile.good import SAMPLE
from loadtest.hostile.row import Target, row
from loadtest.hostile.wire import ask, head

KIND = "ends"


@row(
    "sighup",
    KIND,
    "SIGHUP with 20 requests in flight: all get their responses",
    settings={"simulated_ms": "0,50", "batch": 1},
    statuses="200",
    end="SIGHUP",
    end_after_s=0.4,  # 20 images take a second
    good_from_s=60,
)
async def sighup(target: Target) -> None:
    await asyncio.gather(*(ask(target, image(SAMPLE)) for _ in range(20)))


@row(
    "log-lines",
    KIND,
    "`GET /x%0aCRITICAL...%1b[2J` with ACCESS_LOG=1: no control characters in the log",
    settings={"access_log": "1"},
    statuses=r"404|400|401",
    log=r"(?s)\A[^\x00-\x09\x0b-\x1f\x7f-\x9f]*\Z",
)
async def log_lines(target: Target) -> None:
    for path in ("/x%0aCRITICAL%20all%20is%20lost%1b[2J", "/%0d%0a", "/%c2%9b2J", "/%00", "/%7f", "/%e2%80%a8x"):
        for method in ("GET", "POST", "X\x1b"):
            await ask(target, head(f"{method} {path}"))
