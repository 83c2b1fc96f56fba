"""python loadtest/hostile [--only NAME...] [--list] [--quick] [--refusals] [--markdown FILE]: attack a server.

Each line of the table is an attack on its own server on loopback, while a good client posts a sample every 0.1 s. Then
come a pause and a SIGTERM during the same attack. Exits with 1 if any line fails. Takes about 30 s a line.
"""

import argparse
import signal
import sys
from fnmatch import fnmatch
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from loadtest.hostile import attacks, clients, refusals, table  # noqa: E402, F401
from loadtest.hostile.play import play  # noqa: E402
from loadtest.hostile.row import ROWS  # noqa: E402


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser("python loadtest/hostile", description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", default=["*"], help="names of rows, or patterns of them")
    parser.add_argument("--list", action="store_true", help="list the names of the rows with their attacks")
    parser.add_argument("--quick", action="store_true", help="smaller forms and shorter timeouts")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there too")
    parser.add_argument(
        "--refusals", action="store_true", help="only count how many of 100 early refusals each client reads"
    )
    options = parser.parse_args(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped too
    if options.refusals:
        return _refusals(options.markdown, [])
    rows = [row for name, row in ROWS.items() if any(fnmatch(name, only) for only in options.only)]
    if options.list or not rows:
        print("\n".join(f"{row.name:28} {row.kind:10} {row.text}" for row in rows or ROWS.values()))
        return int(not rows)
    lines, failed = [table.HEAD], 0
    print(table.HEAD, flush=True)
    for row in rows:
        try:
            report = play(row, quick=options.quick)
        except RuntimeError as error:
            line, faults = f"| {row.name} | **not run**: {error} |", ["not run"]
        else:
            line, faults = table.line(report), report.faults()
        failed += bool(faults)
        lines.append(line)
        print(line, flush=True)
        if options.markdown:
            options.markdown.write_text("\n".join(lines) + "\n")
    print(f"\n{len(rows) - failed} of {len(rows)} pass\n")
    unseen = _refusals(options.markdown, [*lines, ""]) if len(rows) == len(ROWS) and not options.quick else 0
    return int(failed > 0 or unseen)


def _refusals(markdown: Path | None, before: list[str]) -> int:
    """Return 1 if a client did not receive all early refusals."""
    lines, whole = refusals.table(clients.clients())
    if markdown:
        markdown.write_text("\n".join([*before, *lines]) + "\n")
    return int(not whole)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
