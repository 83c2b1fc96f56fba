"""The lines of the table, in Markdown. docs/security.md explains the columns."""

from loadtest.hostile.play import Report

_COLUMNS = (
    "attack",
    "statuses of the good client",
    "p50 of the good client, calm and attacked, ms",
    "slowest /healthz (pause of the client), ms",
    "MB: base, peak (maximum), after the pause",
    "statuses of the attackers",
    "median response time of attackers, s",
    "connections closed after, s",
    "signal to exit, s",
    "result",
)
HEAD = f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}"


def line(report: Report) -> str:
    row, outcome, faults = report.row, report.outcome, report.faults()
    skipped = f" (without {', '.join(report.skipped).upper()})" if report.skipped else ""
    cells = (
        f"{row.name}: {row.text}{skipped}",
        _counts(report.good),
        f"{report.calm_ms:.1f}, {report.attacked_ms:.1f}",
        f"{report.healthz_ms:.0f} ({report.pause_ms:.0f})",
        f"{report.base_mb:.0f}, {report.peak_mb:.0f} ({report.base_mb + row.budget_mb:.0f}), "
        f"{report.rest_mb:.0f} in {report.rest_s:.0f} s",
        _counts(outcome["statuses"]),
        _seconds(report.answer_s),
        _seconds(report.closed_s),
        _seconds(report.exit_s),
        f"**fails**: {'; '.join(faults)}" if faults else "passes",
    )
    return f"| {' | '.join(each.replace('|', '/') for each in cells)} |"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{status}: {count}" for status, count in sorted(counts.items())) or "-"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return "never" if seconds == float("inf") else f"{seconds:.1f}"
