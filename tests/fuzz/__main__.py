"""python tests/fuzz COUNT [SEED]: malformed requests to every protocol of a server with a simulated engine.

Prints what came back, and ends with 1 if anything failed. The extra `fuzz` brings what it needs.
"""

import socket
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT / "tests")  # not this folder's modules, but the package's
sys.path.append(str(ROOT))

import fuzz  # noqa: E402
from app.bench.server import started  # noqa: E402
from app.settings import Settings  # noqa: E402


def main(count: int, number: int = 0) -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with started(Settings(backend="simulated", imgsz=64, grpc_port=port, **fuzz.kserve.LIMITS)) as server:
        outcome = fuzz.run(fuzz.Server(server.url, f"127.0.0.1:{port}", server.pid), count, number)
        log = Path(f"/proc/{server.pid}/fd/2").read_text()
    defects = log.count("Traceback")
    protocols = Counter[str]()
    for (protocol, _), answers in outcome.statuses.items():
        protocols[protocol] += answers
    print("| protocol | requests | answers |\n|---|---|---|")
    for protocol, requests in sorted(protocols.items()):
        answers = sorted((status, n) for (each, status), n in outcome.statuses.items() if each == protocol)
        print(f"| {protocol} | {requests} | {', '.join(f'{status}: {n}' for status, n in answers)} |")
    before, after = outcome.vitals
    failures = len(outcome.failures)
    print(f"\n{protocols.total()} requests from seed {number}: {failures} failures, {defects} defects in the log")
    for name in ("resident_mb", "threads", "files"):
        print(f"{name}: {getattr(before, name):.0f} after a tenth, {getattr(after, name):.0f} at the end")
    print("\n".join(failure[:1000] for failure in outcome.failures[:20]))
    if defects:
        print(log[log.index("Traceback") :][:4000])
    return int(bool(outcome.failures or defects))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
