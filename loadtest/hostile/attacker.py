"""python -m loadtest.hostile.attacker ROW TARGET: run one attack, and print what the strangers saw as JSON.

It is a process of its own with the lowest priority, for its work is not the server's: strangers bring their own machines.
"""

import asyncio
import json
import os
import sys
import time
from typing import Any

from loadtest.hostile import attacks  # noqa: F401  # which registers them
from loadtest.hostile.row import ROWS, Target


def main(name: str, told: str) -> None:
    os.nice(10)
    target = Target(**json.loads(told))
    started = time.monotonic()
    print(json.dumps({"started": started}), flush=True)
    asyncio.run(_run(name, target))
    print(json.dumps({"started": started, "ended": time.monotonic(), "outcome": vars(target.outcome)}), flush=True)


async def _run(name: str, target: Target) -> None:
    asyncio.get_running_loop().set_exception_handler(_ignore)
    await ROWS[name].attack(target)


def _ignore(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Connections that the server has reset are what is expected."""


if __name__ == "__main__":
    main(*sys.argv[1:])
