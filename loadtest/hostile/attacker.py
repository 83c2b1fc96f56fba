"""python -m loadtest.hostile.attacker ROW TARGET: run one attack and print its outcome as JSON.

It is a separate process of low priority: real attackers have their own machines and use none of the server's CPU.
"""

import asyncio
import json
import os
import sys
import time
from typing import Any

from loadtest.hostile import attacks  # noqa: F401  # which registers them
from loadtest.hostile.row import ROWS, Target

MAX_ATTACK_S = 45.0
MIN_ATTACK_S, PAUSE_S = 3.0, 0.5  # shorter attacks are repeated, so that the good client sends enough requests


def main(name: str, target_json: str) -> None:
    os.nice(10)
    target = Target(**json.loads(target_json))
    started = time.monotonic()
    print(json.dumps({"started": started}), flush=True)
    asyncio.run(_run(name, target))
    print(json.dumps({"started": started, "ended": time.monotonic(), "outcome": vars(target.outcome)}), flush=True)


async def _run(name: str, target: Target) -> None:
    asyncio.get_running_loop().set_exception_handler(_ignore)
    try:
        async with asyncio.timeout(MAX_ATTACK_S):
            attack_started = time.monotonic()
            until = attack_started + (0 if target.once else MIN_ATTACK_S)
            await ROWS[name].attack(target)
            while (now := time.monotonic()) < until:
                await asyncio.sleep(max(0, attack_started + PAUSE_S - now))
                attack_started = time.monotonic()
                await ROWS[name].attack(target)
    except TimeoutError:
        target.outcome.statuses["unfinished"] += 1


def _ignore(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Connections that the server resets are expected."""


if __name__ == "__main__":
    main(*sys.argv[1:])
