"""`yolopard bench --compare`: the yardstick's table on one's own machine, every engine that can be built in turn."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from matplotlib.figure import Figure

from app import backends
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
    problem: str = ""  # why it is not measured
    built: StoredEngine | None = None
    rates: list[float] = field(default_factory=list)  # images per second alone, a round each
    speed_ups: list[float] = field(default_factory=list)  # over the reference, round by round

    @property
    def name(self) -> str:
        return f"{self.backend} {self.precision}"


def candidates() -> list[Row]:
    """Every backend and precision there is; those that cannot run here say why."""
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
    """Build all, then measure one after the other, round after round, each in a process that has the machine alone."""

    def own(row: Row) -> Settings:
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
            _build(row, engine_provider, own(row))
    measured = [row for row in rows if row.built]
    for _ in range(rounds):
        for row in measured:
            step(row.name)
            with EngineBaseline(engine_provider, own(row), files) as baseline:
                row.rates.append(baseline.engine(seconds))
        for row in measured:
            row.speed_ups.append(row.rates[-1] / measured[0].rates[-1])


def steps(rows: Sequence[Row], rounds: int) -> int:
    """How often `step` is called at most."""
    return len(rows) + rounds * sum(not row.problem for row in rows)


def _build(row: Row, engine_provider: Open, settings: Settings) -> None:
    try:
        built = engine_provider(settings, row.backend).run(lambda _: None)
    except SetupError as error:
        row.problem = str(error)
        return
    if built.manifest.fingerprint.precision == row.precision:
        row.built = built
    else:
        row.problem = "refused by the accuracy gate"


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    head = ["engine", "images/s", "min-max", "speed-up", "agreement", "mAP50-95", "reference's"]
    lines = [head, ["---"] * len(head), *(_cells(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Row) -> list[str]:
    if row.built is None:
        return [row.name.strip(), row.problem, *[""] * 5]
    figures = row.built.manifest.gate.figures
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
    """All figures of all rounds."""
    entries = []
    for row in rows:
        manifest = row.built.manifest.to_json() if row.built else None
        fields = {"backend": row.backend, "precision": row.precision, "problem": row.problem, "manifest": manifest}
        entries.append(fields | {"images_per_second": row.rates, "speed_up": row.speed_ups})
    return orjson.dumps(about | {"engines": entries}, option=orjson.OPT_INDENT_2)


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """A bar an engine, as PNG."""
    shown = [row for row in rows if row.rates][::-1]
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(shown)), dpi=120, layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([row.name for row in shown], [statistics.median(row.rates) for row in shown])
    axes.bar_label(
        bars,
        [f"{statistics.median(row.rates):.1f}, {statistics.median(row.speed_ups):.2f} x" for row in shown],
        padding=4,
    )
    axes.set(xlabel="images per second, engine alone; times PyTorch FP32", title=title)
    axes.margins(x=0.25)
    figure.savefig(path)
