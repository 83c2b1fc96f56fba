"""`yolopard bench`: measures the throughput of a server, and of its parts as baselines."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from app.bench import engines, report
from app.bench.context import circumstances, machine_line
from app.bench.engine_baseline import EngineBaseline, Open
from app.bench.plan import Plan, measure, steps
from app.bench.server import Server, started
from app.errors import BenchFailed
from app.settings import Settings
from app.vision.preprocess import sniff

__all__ = ["Plan", "compare", "run"]


def run(settings: Settings, engine_provider: Open, *, url: str | None, images: Path, plan: Plan, out: Path) -> None:
    """Measure, print the table, and write report.md, report.json and report.png to `out`. Raises BenchFailed."""
    files = read_images(images)
    _make_folder(out)
    with ExitStack() as running:
        if url is None:
            print("starting a server", flush=True)
            server = running.enter_context(started(settings))
            baseline = running.enter_context(EngineBaseline(engine_provider, settings, files))
        else:
            server, baseline = Server(url), None
            if not server.ready:
                raise BenchFailed(f"{url} is not ready: is that the address of a running yolopard?")
        with progress() as bar:
            task = bar.add_task("", total=steps(plan))
            found = measure(server, baseline, files, plan, lambda name: bar.update(task, description=name, advance=1))
    about = circumstances()
    _write(out, "report", about, report.table(found), report.to_json(found, about), partial(report.plot, found))


def read_images(path: Path) -> list[bytes]:
    """Read the image files of a folder, or one file. Raises BenchFailed."""
    try:
        paths = [each for each in sorted(path.iterdir()) if each.is_file()] if path.is_dir() else [path]
        files = [data for data in (each.read_bytes() for each in paths) if sniff(data)]
    except OSError as error:
        raise BenchFailed(f"{path}: {error.strerror}") from error
    if not files:
        raise BenchFailed(f"{path}: there is no image")
    return files


def progress() -> Progress:
    """Return a progress bar that names the current step."""
    return Progress(TextColumn("{task.description:45}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


def compare(settings: Settings, engine_provider: Open, *, images: Path, plan: Plan, out: Path) -> None:
    """Measure every engine that can be built here, without a server. Print the table, and write engines.md,
    engines.json and engines.png to `out`. Raises BenchFailed.
    """
    files, rows = read_images(images), engines.candidates()
    _make_folder(out)
    with progress() as bar:
        task = bar.add_task("", total=engines.steps(rows, plan.rounds))

        def step(name: str) -> None:
            bar.update(task, description=name, advance=1)

        engines.measure(rows, settings, engine_provider, files, plan.seconds, plan.rounds, step)
    about = circumstances()
    content = (engines.table(rows), engines.to_json(rows, about), partial(engines.plot, rows))
    _write(out, "engines", about, *content)


def _make_folder(out: Path) -> None:
    """Create the folder before the measurement, so that a wrong path fails at once."""
    with _explained(out):
        out.mkdir(parents=True, exist_ok=True)


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BenchFailed(f"{out}: {error.strerror}: give another folder with --out") from error


def _write(
    out: Path, name: str, about: dict[str, Any], table: str, json: bytes, plot: Callable[[str, Path], None]
) -> None:
    line = machine_line(about)
    print(f"\n{line}\n\n{table}\n")
    with _explained(out):
        (out / f"{name}.md").write_text(f"{line}\n\n{table}\n")
        (out / f"{name}.json").write_bytes(json)
        plot(line.partition(";")[0], out / f"{name}.png")
    print(f"{out / name}.md, .json and .png")
