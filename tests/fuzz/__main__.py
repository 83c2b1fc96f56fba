"""python tests/fuzz COUNT [URL [SEED]]: malformed requests to every protocol, and what came back; 1 if anything failed.

Without a URL a server with a simulated engine is started.
"""

import sys
from pathlib import Path


def main(url: str, count: int, number: int) -> int:
    from fuzz import run  # not this folder's, but the package's

    outcome = run(url, count, number)
    statuses = sorted({status for _, status in outcome.statuses})
    print(f"| path | {' | '.join(map(str, statuses))} |\n|---|{'---|' * len(statuses)}")
    for path in sorted({path for path, _ in outcome.statuses}):
        print(f"| {path} | {' | '.join(str(outcome.statuses[path, status] or '') for status in statuses)} |")
    total, grown_mb = outcome.statuses.total(), outcome.grown_bytes / 1e6
    print(f"\n{total} requests, {len(outcome.failures)} failures, memory grown by {grown_mb:.1f} MB")
    print("\n".join(outcome.failures[:20]))
    return int(bool(outcome.failures))


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])
    count, given = int(sys.argv[1]), sys.argv[2:]
    number = int(given[1]) if len(given) > 1 else 0
    if given:
        sys.exit(main(given[0], count, number))
    from app.bench.server import started
    from app.settings import Settings

    with started(Settings(backend="simulated", imgsz=64)) as server:
        status = main(server.url, count, number)
    sys.exit(status)
