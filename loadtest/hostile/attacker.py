"""python -m loadtest.hostile.attacker ROW TARGET: run one attack, and print what the strangers saw as JSON.

A process of its own, of low priority: the strangers have machines of their own, and this one is the server's.
"""

import asyncio
import json
import os
import sys
import time
from typing import Any

from loadtest.hostile import attacks  # noqa: F401  # which registers them
from loadtest.hostile.row import ROWS, Target

LIMIT_S = 45.0  # of an attack
LEAST_S, PAUSE_S = 3.0, 0.5  # for which it is begun again and again, so that the good client has asked often enough


def main(name: str, reported: str) -> None:
    os.nice(10)
    target = Target(**json.loads(reported))
    started = time.monotonic()
    print(json.dumps({"started": started}), flush=True)
    asyncio.run(_run(name, target))
    print(json.dumps({"started": started, "ended": time.monotonic(), "outcome": vars(target.outcome)}), flush=True)


async def _run(name: str, target: Target) -> None:
    asyncio.get_running_loop().set_exception_handler(_ignore)
    try:
        async with asyncio.timeout(LIMIT_S):
            begun = time.monotonic()
            until = begun + (0 if target.once else LEAST_S)
            await ROWS[name].attack(target)
            while (now := time.monotonic()) < until:
                await asyncio.sleep(max(0, begun + PAUSE_S - now))
                begun = time.monotonic()
                await ROWS[name].attack(target)
    except TimeoutError:
        target.outcome.statuses["unfinished"] += 1


def _ignore(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Connections that the server has reset are what is expected."""


if __name__ == "__main__":
    main(*sys.argv[1:])
