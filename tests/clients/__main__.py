"""python tests/clients [URL]: run the checks and print the table; exits with 1 if any fails.

With a URL, runs only the checks of detect. Otherwise starts a server for each task.
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
os.environ["YOLO_VERBOSE"] = "false"  # otherwise Ultralytics prints between the rows
sys.path[:1] = [
    str(HERE.parent),
    str(ROOT / "models/demo"),
    str(ROOT),
]  # not this folder: its modules have names of packages

from clients import Check, kserve, tasks  # noqa: E402

FAMILIES = ("hub", "deepstack", "roboflow", "kserve", "perf_analyzer", "refusals")


def main(urls: list[str]) -> int:
    print("| client | version | call | result |\n|---|---|---|---|")
    if urls:
        return int(run_checks(urls[0], detect_checks()) > 0)
    with started(Settings.of(grpc_port=kserve.GRPC_PORT)) as server:
        failed = run_checks(server.url, detect_checks())
    for task in tasks.TASKS:
        with started(Settings.of(weights=str(tasks.weights(task)), grpc_port=tasks.GRPC_PORTS[task])) as server:
            failed += run_checks(server.url, tasks.CHECKS[task])
    return int(failed > 0)


def detect_checks() -> Iterator[Check]:
    for family in FAMILIES:
        yield from importlib.import_module(f"clients.{family}").CHECKS


def run_checks(url: str, checks: Iterable[Check]) -> int:
    """Run the checks and print a row for each. Returns the number of failures."""
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
