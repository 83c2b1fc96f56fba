"""`yolopard bench --compare`: builds and measures every engine that is available on this machine."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from matplotlib.figure import Figure

from app import backends
from app.bench.context import markdown
from app.bench.engine_baseline import EngineBaseline, Open
from app.errors import BackendUnavailable, SetupError
from app.settings import Settings
from app.store.manifest import StoredEngine

REFERENCE = ("pytorch", "fp32")


@dataclass
class Row:
    """One backend in one precision."""

    backend: str
    precision: str
    problem: str = ""  # the reason why it is not measured
    stored: StoredEngine | None = None
    rates: list[float] = field(default_factory=list)  # images per second of only the engine, one per round
    speed_ups: list[float] = field(default_factory=list)  # over the first row that is measured, one per round

    @property
    def name(self) -> str:
        return f"{self.backend} {self.precision}"


def candidates() -> list[Row]:
    """Return a row for every backend and precision, PyTorch FP32 first. Those that cannot run here have a `problem`."""
    rows = []
    for name in backends.PREFERRED:
        try:
            rows += [Row(name, precision) for precision in backends.get(name).PRECISIONS]
        except BackendUnavailable as error:
            rows.append(Row(name, "", str(error)))
    return sorted(rows, key=lambda row: (row.backend, row.precision) != REFERENCE)


def measure(
    rows: Sequence[Row],
    settings: Settings,
    engine_provider: Open,
    files: Sequence[bytes],
    seconds: float,
    rounds: int,
    step: Callable[[str], None],
) -> None:
    """Build all engines, then measure each in every round, one at a time, each in its own process."""

    def settings_of(row: Row) -> Settings:
        changes = {
            "backend": row.backend,
            "precision": row.precision,
            "fallback": "none",
            "compare": "none",
            "shadow": 0,
        }
        return Settings(settings.server, settings.model.model_copy(update=changes))

    for row in rows:
        step(f"{row.name}: build")
        if not row.problem:
            _build(row, engine_provider, settings_of(row))
    measured = [row for row in rows if row.stored]
    for _ in range(rounds):
        for row in measured:
            step(row.name)
            with EngineBaseline(engine_provider, settings_of(row), files) as baseline:
                row.rates.append(baseline.engine(seconds))
        for row in measured:
            row.speed_ups.append(row.rates[-1] / measured[0].rates[-1])


def steps(rows: Sequence[Row], rounds: int) -> int:
    """Return the maximum number of calls of `step`."""
    return len(rows) + rounds * sum(not row.problem for row in rows)


def _build(row: Row, engine_provider: Open, settings: Settings) -> None:
    try:
        stored = engine_provider(settings, row.backend).run(lambda _: None)
    except SetupError as error:
        row.problem = str(error)
        return
    if stored.manifest.fingerprint.precision == row.precision:
        row.stored = stored
    else:
        row.problem = "refused by the accuracy gate"


def table(rows: Sequence[Row]) -> str:
    """Return the results as a Markdown table, one line per row, with medians over the rounds."""
    first = next((row.name for row in rows if row.stored), "the first engine")
    head = [
        "engine",
        "images/s, median",
        "images/s, min-max",
        f"times as fast as {first}",
        "reference boxes found",
        "mAP50-95",
        "mAP50-95 of the reference",
    ]
    return markdown(head, map(_cells, rows))


def _cells(row: Row) -> list[str]:
    if row.stored is None:
        return [row.name.strip(), row.problem, *[""] * 5]
    figures = row.stored.manifest.gate.figures
    precision = (figures.map50_95, figures.reference_map50_95) if figures else (None, None)
    return [
        row.name,
        f"{statistics.median(row.rates):.1f}",
        f"{min(row.rates):.1f}-{max(row.rates):.1f}",
        f"{statistics.median(row.speed_ups):.2f}",
        f"{figures.agreement:.2%}" if figures else "",
        *("" if value is None else f"{value:.4f}" for value in precision),
    ]


def to_json(rows: Sequence[Row], about: dict[str, Any]) -> bytes:
    """Return the values of all rounds as JSON."""
    entries = []
    for row in rows:
        manifest = row.stored.manifest.to_json() if row.stored else None
        fields = {"backend": row.backend, "precision": row.precision, "problem": row.problem, "manifest": manifest}
        entries.append(fields | {"images_per_second": row.rates, "speed_up": row.speed_ups})
    return orjson.dumps(about | {"engines": entries}, option=orjson.OPT_INDENT_2)


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """Write a PNG with one bar per engine."""
    shown = [row for row in rows if row.rates][::-1]
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(shown)), dpi=120, layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([row.name for row in shown], [statistics.median(row.rates) for row in shown])
    axes.bar_label(
        bars,
        [f"{statistics.median(row.rates):.1f} ({statistics.median(row.speed_ups):.2f} x)" for row in shown],
        padding=4,
    )
    first = shown[-1].name if shown else "the first engine"
    axes.set(xlabel=f"images per second of the engine, without a server (x: times as fast as {first})")
    axes.set_title(title, fontsize="medium", wrap=True)
    axes.margins(x=0.25)
    figure.savefig(path)
