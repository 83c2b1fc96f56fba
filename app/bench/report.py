"""Writes the results as a table, JSON, and a plot."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from app.bench.context import markdown
from app.bench.load import Run
from app.bench.plan import Case, Measured

MAX_DRAWN_RATIO = 3  # baselines of a higher rate, relative to the served one, are not drawn


def table(found: Measured) -> str:
    """Return the results as a Markdown table, one line per load, with medians over the rounds."""
    head = [
        "load",
        "images/s, median",
        "images/s, min-max",
        "latency p50, ms",
        "latency p90, ms",
        "latency p99, ms",
        "images per batch",
        "server CPU time per image, ms",
        "share of engine-only images/s",
        "share of upper limit (engine and decoding)",
    ]
    baseline = [f"Baselines: engine only {statistics.median(found.engine):.1f} images/s"]
    if found.decode:
        baseline += [
            f"decode and letterbox only {statistics.median(found.decode):.1f} images/s",
            f"upper limit of engine and decoding {statistics.median(found.possible):.1f} images/s",
            f"latency of one image {statistics.median(found.latency) * 1000:.1f} ms",
        ]
    return f"{markdown(head, map(_cells, found.cases))}\n\n{'; '.join(baseline)}"


def _cells(case: Case) -> list[str]:
    rates = [run.images_per_second for run in case.runs]
    latency = [statistics.median(run.percentile(share) for run in case.runs) * 1000 for share in (50, 90, 99)]
    name = case.name if case.kind == "closed" else f"{case.name}, at random times"
    if failures := sum(run.requests - run.statuses[200] for run in case.runs):
        name += f" ({failures} not answered with 200)"
    return [
        name,
        f"{statistics.median(rates):.1f}",
        f"{min(rates):.1f}-{max(rates):.1f}",
        *(f"{value:.1f}" for value in latency),
        f"{statistics.median(case.batch):.1f}",
        f"{statistics.median(case.cpu_ms):.1f}",
        f"{statistics.median(case.shares):.2f}" if case.shares else "",
        f"{statistics.median(case.shares_of_possible):.2f}" if case.shares_of_possible else "",
    ]


def to_json(found: Measured, about: dict[str, Any]) -> bytes:
    """Return the values of all rounds as JSON; of latencies the percentiles."""
    cases = []
    for case in found.cases:
        fields = asdict(case) | {"runs": [_run_json(run) for run in case.runs]}
        cases.append(fields)
    return orjson.dumps(about | asdict(found) | {"cases": cases}, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS)


def _run_json(run: Run) -> dict[str, Any]:
    shares = (0, 10, 50, 75, 90, 95, 99, 99.9, 100)
    return {
        "images_per_second": run.images_per_second,
        "statuses": dict(run.statuses),
        "latency_ms": {str(share): round(run.percentile(share) * 1000, 3) for share in shares},
        "stages_ms": {stage: round(statistics.mean(values), 3) for stage, values in run.timings.items()},
    }


def plot(found: Measured, title: str, path: Path) -> None:
    """Write a PNG of latency over throughput: closed loop (number of clients), and open loop (request rates)."""
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes, latencies = figure.subplots(), list[float]()
    for kind, marker, load in (("closed", "o", "fixed number of clients"), ("open", "s", "requests at random times")):
        cases = [case for case in found.cases if case.kind == kind and case.body == "raw"]
        for share, colour in ((50, "tab:blue"), (99, "tab:orange")):
            x = [case.images_per_second for case in cases]
            y = [statistics.median(run.percentile(share) for run in case.runs) * 1000 for case in cases]
            name = "median" if share == 50 else f"{share}th percentile"
            axes.plot(x, y, f"-{marker}", color=colour, alpha=1 if kind == "closed" else 0.5, label=f"{name}, {load}")
            latencies += y
    served = max(case.images_per_second for case in found.cases)
    limits = ((found.engine, ":", "engine only"), (found.possible, "--", "upper limit of engine and decoding"))
    for rates, line, label in limits:
        if rates and (rate := statistics.median(rates)) < MAX_DRAWN_RATIO * served:
            axes.axvline(rate, linestyle=line, color="grey", label=f"{label}: {rate:.1f} images/s")
    axes.set(xlabel="images per second", ylabel="latency, ms", yscale="log", xlim=(0, None))
    axes.set_title(title, fontsize="medium", wrap=True)
    _use_plain_numbers(axes, latencies)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path)


def _use_plain_numbers(axes: Axes, values: Sequence[float]) -> None:
    """Label the logarithmic y axis with numbers such as 400, and not 4x10^2, with no overlap."""
    low, high = min(values) * 0.7, max(values) * 1.5
    steps = (1, 2, 5) if high / low > 50 else (1, 1.5, 2, 3, 4, 5, 6, 8)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(subs=steps))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.6g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
