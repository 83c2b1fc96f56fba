"""python tests/clients [URL]: run every check and print the table; ends with 1 if any fails."""

import importlib
import sys
from pathlib import Path

from app.bench.server import started
from app.settings import Settings

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GRPC_PORT = 18001  # as tests/clients/kserve.py has it
FAMILIES = ("hub", "deepstack", "roboflow", "kserve")


def main(url: str) -> int:
    sys.path[:1] = [str(HERE.parent), str(ROOT / "models/demo")]  # not this folder, whose files have names of packages
    failed = 0
    print("| client | version | call | result |\n|---|---|---|---|")
    for family in FAMILIES:
        for client, version, call, run in importlib.import_module(f"clients.{family}").CHECKS:
            try:
                result = run(url)
            except Exception as error:
                failed += 1
                result = f"**failed**: {type(error).__name__}: {error}"
            print(f"| {client} | {version} | {call} | {result.replace('|', '/')} |", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(sys.argv[1]))
    with started(Settings(grpc_port=GRPC_PORT)) as server:
        status = main(server.url)
    sys.exit(status)
