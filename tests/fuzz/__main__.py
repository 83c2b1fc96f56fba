"""python tests/fuzz COUNT [SEED]: malformed requests to every protocol, a fifth of them to the demo model of each task.

Prints the number of responses by status, and exits with 1 after a failure. Needs the extra `fuzz`.
"""

import socket
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT / "tests")  # import the package, not the modules of this folder
sys.path.append(str(ROOT))

import fuzz  # noqa: E402
from app.bench.server import started  # noqa: E402
from app.model import TASKS  # noqa: E402
from app.settings import DEMO, Settings  # noqa: E402


def main(count: int, number: int = 0) -> int:
    failed = False
    for i, task in enumerate(TASKS):
        name = "yolov8n-demo" if task == "detect" else f"yolov8-demo-{task}"
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        settings = Settings.of(
            weights=str(DEMO / f"{name}.pt"), backend="openvino", imgsz=64, grpc_port=port, **fuzz.kserve.LIMITS
        )
        with started(settings) as server:
            target = fuzz.Server(server.url, f"127.0.0.1:{port}", server.pid)
            outcome = fuzz.run(target, count // len(TASKS), number + i * fuzz.PARTS)
            log = Path(f"/proc/{server.pid}/fd/2").read_text()
        report(task, outcome, log)
        failed |= bool(outcome.failures or "Traceback" in log)
    return int(failed)


def report(task: str, outcome: fuzz.Outcome, log: str) -> None:
    responses = defaultdict[str, list[str]](list)
    for (protocol, status), count in sorted(outcome.statuses.items()):
        responses[protocol].append(f"{status}: {count}")
    print(f"| {task} | requests | responses |\n|---|---|---|")
    for protocol, counts in responses.items():
        requests = sum(count for (each, _), count in outcome.statuses.items() if each == protocol)
        print(f"| {protocol} | {requests} | {', '.join(counts)} |")
    tracebacks, failures = log.count("Traceback"), len(outcome.failures)
    print(f"\n{outcome.statuses.total()} requests: {failures} failures, {tracebacks} tracebacks in the log")
    for name in ("resident_mb", "threads", "files"):
        print(f"{name} after each tenth:", *(f"{getattr(each, name):.0f}" for each in outcome.vitals))
    print("\n".join(failure[:1000] for failure in outcome.failures[:20]), flush=True)
    if tracebacks:
        print(log[log.index("Traceback") :][:10_000])


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
