"""python tests/clients [URL]: run every check and print the table; ends with 1 if any fails.

With a URL only those of detect; without one a server is started for each task.
"""

import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from app.bench.server import started
from app.settings import Settings

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
os.environ["YOLO_VERBOSE"] = "false"  # Ultralytics would write between the rows
sys.path[:1] = [
    str(HERE.parent),
    str(ROOT / "models/demo"),
    str(ROOT),
]  # not this folder, whose files have names of packages

from clients import Check, kserve, tasks  # noqa: E402

FAMILIES = ("hub", "deepstack", "roboflow", "kserve", "perf_analyzer", "refusals")


def main(urls: list[str]) -> int:
    print("| client | version | call | result |\n|---|---|---|---|")
    if urls:
        return int(tell(urls[0], of_detect()) > 0)
    with started(Settings.of(grpc_port=kserve.GRPC_PORT)) as server:
        failed = tell(server.url, of_detect())
    for task in tasks.TASKS:
        with started(Settings.of(weights=str(tasks.weights(task)), grpc_port=tasks.GRPC_PORTS[task])) as server:
            failed += tell(server.url, tasks.CHECKS[task])
    return int(failed > 0)


def of_detect() -> Iterator[Check]:
    for family in FAMILIES:
        yield from importlib.import_module(f"clients.{family}").CHECKS


def tell(url: str, checks: Iterable[Check]) -> int:
    """Print a row for each. How many have failed."""
    failed = 0
    for client, version, call, run in checks:
        try:
            result = run(url)
        except Exception as error:
            failed += 1
            result = f"**failed**: {type(error).__name__}: {error}"
        print(f"| {client} | {version} | {call} | {result.replace('|', '/')} |", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
