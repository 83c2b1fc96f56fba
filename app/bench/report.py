"""What was measured, for people: a table, JSON, and a picture."""

import statistics
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import orjson
from matplotlib.figure import Figure

from app import __version__
from app.bench.load import Run
from app.bench.plan import Case, Measured
from app.system import gpu, host

IN_SIGHT = 3  # times the served rate; limits beyond are not drawn

_PACKAGES = (
    "openvino",
    "onnxruntime",
    "tensorrt_cu13",
    "torch",
    "opencv-python-headless",
    "uvicorn",
    "fastapi",
    "numpy",
)


def circumstances() -> dict[str, Any]:
    """When, where and with what: without it a figure says nothing."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "yolopard": __version__,
        "commit": _commit(),
        "machine": host.facts(),
        "gpu": gpu.facts(),
        "versions": versions,
    }


def machine_line(about: dict[str, Any]) -> str:
    """The machine in one line."""
    host, card = about["machine"], about["gpu"]
    where = f"{host['cpus']} cores of {host['cpu']}" + (f", {card['name']}" if card else ", no GPU")
    return f"{where}; {host['system']}, Python {host['python']}; commit {about['commit'] or 'unknown'}, {about['at']}"


def table(found: Measured) -> str:
    """Markdown, a line a load; medians over the rounds."""
    head = [
        "load",
        "images/s",
        "min-max",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "batch",
        "CPU ms/image",
        "of the engine",
        "of what is possible",
    ]
    lines = [head, ["---"] * len(head), *(_cells(case) for case in found.cases)]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    baseline = [f"engine alone {statistics.median(found.engine):.1f} images/s"]
    if found.decode:
        baseline += [
            f"decode and letterbox alone {statistics.median(found.decode):.1f}",
            f"both together at best {statistics.median(found.possible):.1f}",
            f"one image alone {statistics.median(found.latency) * 1000:.1f} ms",
        ]
    return f"{text}\n\n{'; '.join(baseline)}"


def _cells(case: Case) -> list[str]:
    rates = [run.images_per_second for run in case.runs]
    latency = [statistics.median(run.percentile(share) for run in case.runs) * 1000 for share in (50, 90, 99)]
    name = case.name if case.kind == "closed" else f"{case.name}, open"
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
    """All figures of all rounds; of latencies the percentiles."""
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
    """Latency over throughput as PNG: the closed loop's sweep, and the open loop's arrivals."""
    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for kind, marker in (("closed", "o"), ("open", "s")):
        cases = [case for case in found.cases if case.kind == kind and case.body == "raw"]
        for share, colour in ((50, "tab:blue"), (99, "tab:orange")):
            x = [case.images_per_second for case in cases]
            y = [statistics.median(run.percentile(share) for run in case.runs) * 1000 for case in cases]
            axes.plot(
                x, y, f"-{marker}", color=colour, alpha=1 if kind == "closed" else 0.5, label=f"p{share}, {kind} loop"
            )
    served = max(case.images_per_second for case in found.cases)
    for rates, label in ((found.engine, "engine alone"), (found.possible, "engine and decoding")):
        if rates and (rate := statistics.median(rates)) < IN_SIGHT * served:
            axes.axvline(rate, linestyle=":", color="grey")
            axes.text(
                rate, 0.99, label, transform=axes.get_xaxis_transform(), rotation=90, va="top", ha="right", size=8
            )
    axes.set(xlabel="images per second", ylabel="latency, ms", yscale="log", xlim=(0, None), title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def _commit() -> str:
    """Of the checkout that this runs from, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
