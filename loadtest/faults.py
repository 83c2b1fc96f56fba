"""A fault run: killed builds, corrupted engines, wrong versions, concurrent starts, full disks. Each must end in a
served model or one clear line.

    .venv/bin/python loadtest/faults.py [words of the scenarios to run]

It runs `yolopard` in a temporary folder, on loopback only, and prints a Markdown table. Exit status 1 if any scenario
fails. Scenarios that mount small or read-only file systems need root and are skipped without it.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from app.store.manifest import MANIFEST, Fingerprint, sha256  # noqa: E402

WEIGHTS, SAMPLES = ROOT / "models/demo/yolov8n-demo.pt", ROOT / "models/demo/samples"
QUICK = {"weights": WEIGHTS, "backend": "onnxruntime", "imgsz": 160, "batch": 2, "gate_dir": SAMPLES}
MAX_WAIT_S, MAX_STOP_S, MAX_ORPHAN_S, MAX_RUN_S = 60, 5, 2, 900
MAX_CELL = 260  # characters
EXPECTED = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+ (INFO|WARNING|ERROR) |yolopard: |\[\d/6\] ")  # no other lines


class Failed(Exception):
    """The scenario failed."""


class Skipped(Exception):
    """The scenario cannot run here."""


class Run:
    """`yolopard serve` or `yolopard build` in its own process group."""

    def __init__(self, engines: Path, command: str = "serve", **settings: object) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            given = QUICK | {"engines_dir": engines, "port": free.getsockname()[1]} | settings
        self.url = f"http://127.0.0.1:{given['port']}"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("YOLOPARD_")}
        environment |= {f"YOLOPARD_{name.upper()}": str(value) for name, value in given.items()}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app", command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if command == "build" else subprocess.DEVNULL,  # build prints its progress there
            stderr=subprocess.STDOUT if command == "build" else subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        RUNS.append(self)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr or self.process.stdout or ():
            self.lines.append(line.rstrip())

    def family(self) -> dict[int, str]:
        """Return the command lines of the living processes of its group, by pid."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(group) == self.process.pid and state != "Z":
                    found[int(folder.name)] = (folder / "cmdline").read_text()
        return found

    def phases(self) -> list[str]:
        return re.findall(r"\[\d/6\] \S+: ([\w-]+)", "\n".join(self.lines))

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + MAX_WAIT_S
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"status {self.process.poll()}: {(self.lines or ['silent'])[-1]}")
            time.sleep(0.001)

    def until_phase(self, phase: str) -> None:
        self.until(lambda: phase in self.phases())

    def boxes(self) -> list[dict[str, Any]]:
        """Wait until it serves; return the boxes of the sample."""
        self.until(lambda: any(" ready: " in line for line in self.lines))
        with urllib.request.urlopen(f"{self.url}/readyz", timeout=30) as response:
            assert json.load(response)["phase"] == "ready"
        sample = (SAMPLES / "scene-1.jpg").read_bytes()
        with urllib.request.urlopen(f"{self.url}/v1/detect", sample, timeout=30) as response:
            return json.load(response)["images"][0]["results"]

    def ended(self, seconds: float) -> int:
        """Return its exit status. Raises Failed if a process is left or a line is neither log nor message."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"still running {seconds} s later") from None
        deadline = time.monotonic() + MAX_ORPHAN_S
        while left := self.family():
            if time.monotonic() > deadline:
                raise Failed(
                    f"{len(left)} processes are left {MAX_ORPHAN_S} s after its end, in phase {self.phases()[-1]}"
                )
            time.sleep(0.02)
        self._reader.join(1)
        if unexpected := [line for line in self.lines if not EXPECTED.match(line)]:
            raise Failed(f"neither log nor the one line: {unexpected[0]}")
        return status

    def stopped(self, name: str = "SIGTERM", *statuses: int) -> str:
        """Send a signal, SIGINT to the whole group as Ctrl-C does; the status must be one of `statuses` (default 0)."""
        started = time.monotonic()
        (os.killpg if name == "SIGINT" else os.kill)(self.process.pid, signal.Signals[name])
        if (status := self.ended(MAX_STOP_S)) not in (statuses or (0,)):
            raise Failed(f"exit status {status}")
        return f"exit status {status} after {time.monotonic() - started:.1f} s"

    def line(self, expected: str) -> str:
        """Wait for status 1 with exactly one line for the user, the last one; return it. It must match `expected`."""
        status = self.ended(MAX_WAIT_S)
        user_lines = [line for line in self.lines if line.startswith("yolopard: ")]
        if (
            status != 1
            or len(user_lines) != 1
            or user_lines != self.lines[-1:]
            or not re.search(expected, user_lines[0])
        ):
            raise Failed(
                f"exit status {status}, {len(user_lines)} lines for the user, last: {(self.lines or ['none'])[-1]}"
            )
        return user_lines[0]

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


RUNS: list[Run] = []


class Stage:
    """A folder for one scenario, and the boxes of a clean start."""

    clean: Path  # engines folder
    boxes: list[dict[str, Any]]

    def __init__(self, folder: Path) -> None:
        self.folder, self.engines = folder, folder / "engines"
        folder.mkdir()

    def engine(self) -> Path:
        """Copy the clean engine; return its folder."""
        shutil.copytree(self.clean, self.engines, dirs_exist_ok=True)
        return self.engines / self.visible()[0]

    def visible(self) -> list[str]:
        return [path.name for path in self.engines.glob("[!.]*")]

    def foreign(self, name: str) -> Path:
        """Write the demo's weights with an additional byte, so that their digest is unknown; return the path."""
        (self.folder / name).write_bytes(WEIGHTS.read_bytes() + b"\0")
        return self.folder / name

    def check(self, boxes: list[dict[str, Any]]) -> str:
        """Compare with a clean start: the same names in order, within 1 px and 0.02 of score."""
        for a, b in zip([*boxes, {}], [*self.boxes, {}], strict=False):
            sides = [abs(a["box"][side] - b["box"][side]) for side in b["box"]] if a and b else [0]
            score = abs(a.get("confidence", 0) - b.get("confidence", 0))
            if a.get("name") != b.get("name") or max(sides) > 1 or score > 0.02:
                raise Failed(f"other boxes than a clean start: {boxes}")
        return f"served: {len(boxes)} boxes as expected"

    def serves(self, *, builds: int = 1, log: str = "", **settings: object) -> str:
        """Start once; expect this number of builds, and one warning that matches `log`, or none if it is empty."""
        run = Run(self.engines, **settings)
        text = self.check(run.boxes())
        run.stopped()
        warnings = [line[24:] for line in run.lines if " INFO " not in line]
        if run.phases().count("graph") != builds or len(warnings) != bool(log) or not re.search(log, "".join(warnings)):
            raise Failed(f"{run.phases()}, {warnings}")
        return "; ".join([text, *warnings])


@contextlib.contextmanager
def mounted(folder: Path, size: int) -> Iterator[None]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}m,mode=755", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        raise Skipped("mounting is not allowed here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)


SCENARIOS: list[tuple[str, Callable[..., str], tuple[Any, ...]]] = []


def scenario(title: str, *cases: Any) -> Callable[[Callable[..., str]], None]:
    """Register a scenario for each case, or a single one."""
    arguments = [case if isinstance(case, tuple) else (case,) for case in cases] or [()]
    return lambda function: SCENARIOS.extend((title.format(*case), function, case) for case in arguments)


@scenario("clean start")
def _(stage: Stage) -> str:
    run = Run(stage.engines)
    Stage.clean, Stage.boxes = stage.engines, run.boxes()
    return f"served: {len(Stage.boxes)} boxes, which all other scenarios must give; {run.stopped()}"


@scenario("builder killed in phase {}, then a start", "graph", "engine", "check", "publish")
def _(stage: Stage, phase: str) -> str:
    for _ in range(3):  # a phase may end before the signal arrives
        shutil.rmtree(stage.engines, ignore_errors=True)
        run = Run(stage.engines, precision="fp16")  # in fp32 the phase "engine" is too short
        run.until_phase("graph")
        builder = next(pid for pid, command in run.family().items() if "multiprocessing-fork" in command)
        run.until_phase(phase)
        os.kill(builder, signal.SIGKILL)
        text = run.line("signal 9: most often the machine is out of memory")
        if stage.visible():
            raise Failed(f"left behind: {stage.visible()}")
        if run.phases()[-1] == phase:
            return f"{text}; {stage.serves(precision='fp16')}"
    raise Failed("the signal always came too late")


@scenario("`{}` killed mid build, then a start", "serve", "build")
def _(stage: Stage, command: str) -> str:
    run = Run(stage.engines, command)
    run.until_phase("graph")
    run.process.kill()
    run.ended(MAX_STOP_S)
    return f"no process left; {stage.serves()}"


@scenario(
    "{} to `{}` mid build", *[(name, command) for name in ("SIGTERM", "SIGINT") for command in ("serve", "build")]
)
def _(stage: Stage, name: str, command: str) -> str:
    statuses = {"SIGTERM serve": [0], "SIGTERM build": [143, -signal.SIGTERM]}.get(f"{name} {command}", [130])
    run = Run(stage.engines, command)
    run.until_phase("graph")
    text = run.stopped(name, *statuses)
    if stage.visible():
        raise Failed(f"left behind: {stage.visible()}")
    return f"{text}, nothing visible is left"


def edited(engine: Path, change: Callable[[dict[str, Any]], object]) -> None:
    change(fields := json.loads((engine / MANIFEST).read_text()))
    (engine / MANIFEST).write_text(json.dumps(fields))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def unloadable(engine: Path) -> None:
    os.truncate(engine / "model.onnx", 1_000_000)
    edited(engine, lambda manifest: manifest["files"].update({"model.onnx": sha256(engine / "model.onnx")}))


def of_another_version(engine: Path) -> None:
    edited(engine, lambda manifest: manifest["fingerprint"].update(backend_version="1.0"))
    engine.rename(engine.with_name(Fingerprint(**json.loads((engine / MANIFEST).read_text())["fingerprint"]).key))


FILE, OTHER = r"model\.onnx is missing, cut short or was replaced .*: building", r"manifest\.json .*: building"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {  # the damage, and the expected line in the log
    "engine file cut short": (lambda engine: os.truncate(engine / "model.onnx", 1_000_000), FILE),
    "engine file with one bit flipped": (lambda engine: flip(engine / "model.onnx"), FILE),
    "another file in the engine file's place": (lambda engine: shutil.copy(WEIGHTS, engine / "model.onnx"), FILE),
    "engine file deleted": (lambda engine: (engine / "model.onnx").unlink(), FILE),
    "engine cut short, and its digest too": (unloadable, "model.onnx.*: building it again"),
    "manifest of garbage": (lambda engine: (engine / MANIFEST).write_bytes(os.urandom(500)), OTHER),
    "manifest of another engine": (lambda e: edited(e, lambda m: m["fingerprint"].update(batch=1)), OTHER),
    "manifest of a release without `gate`": (lambda e: edited(e, lambda m: m.pop("gate")), OTHER),
    "engine of another ONNX Runtime": (of_another_version, r"another backend_version '1\.0', now '[^;]*': building"),
}


@scenario("{}", *DAMAGES)
def _(stage: Stage, damage: str) -> str:
    damages, log = DAMAGES[damage]
    damages(stage.engine())
    return stage.serves(log=log)


@scenario("weights changed under the same name")
def _(stage: Stage) -> str:
    stage.engine()
    return stage.serves(log="another weights_sha256 '[^;]*': building", weights=stage.foreign("yolov8n-demo.pt"))


@scenario("{} starts at once", 2, 4)
def _(stage: Stage, count: int) -> str:
    runs = [Run(stage.engines) for _ in range(count)]
    texts = [stage.check(run.boxes()) for run in runs]
    builds = sum("engine" in run.phases() for run in runs)
    for run in runs:
        run.stopped()
    if builds != 1 or len(stage.visible()) != 1:
        raise Failed(f"{builds} builds, {stage.visible()}")
    return f"one build; {count} times {texts[0]}"


@scenario("disk of {} MB", 1, 10, 24, 40, 64)
def _(stage: Stage, size: int) -> str:
    with mounted(stage.engines, size):
        if size == 64:
            return stage.serves()
        text = Run(stage.engines).line("the disk is full: free some space")
        if left := sum(path.stat().st_size for path in stage.engines.rglob("*") if path.is_file()):
            raise Failed(f"{left} bytes stay on the full disk")
        return text


@scenario("read-only engines folder, {}", "empty", "with the engine")
def _(stage: Stage, content: str) -> str:
    with mounted(stage.engines, 20):
        if content == "with the engine":
            stage.engine()
        subprocess.run(["mount", "-o", "remount,ro", str(stage.engines)], check=True)
        return Run(stage.engines).line("read-only") if content == "empty" else stage.serves(builds=0)


@scenario("engines folder disappears while serving")
def _(stage: Stage) -> str:
    stage.engine()
    run = Run(stage.engines)
    run.boxes()
    shutil.rmtree(stage.engines)
    return f"{stage.check(run.boxes())}; {run.stopped()}"


@scenario("engines folder disappears while building")
def _(stage: Stage) -> str:
    run = Run(stage.engines)
    run.until_phase("check")
    shutil.rmtree(stage.engines)
    return run.line("engines.*ENGINES_DIR")


@scenario("int8 refused by the gate, then a second start")
def _(stage: Stage) -> str:
    gray = stage.folder / "gray"  # calibration images without objects: the ranges do not fit other images
    gray.mkdir()
    Image.new("RGB", (160, 160), (114, 114, 114)).save(gray / "gray.png")
    reported = []
    for builds in (2, 0):
        run = Run(stage.engines, precision="int8", calibration_dir=gray)
        text = stage.check(run.boxes())
        reported += [line[24:] for line in run.lines if "FALLBACK: fp16 is served" in line]
        run.stopped()
        if run.phases().count("graph") != builds:
            raise Failed(f"not {builds} builds: {run.phases()}")
    if len(reported) != 2:
        raise Failed(f"log: {reported}")
    return f"{text}; {reported[0]}; the same again without a build"


@scenario("no TensorRT here, FALLBACK=onnxruntime")
def _(stage: Stage) -> str:
    stage.engine()
    return stage.serves(builds=0, log="FALLBACK: onnxruntime serves", backend="tensorrt", fallback="onnxruntime")


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


REFUSALS: dict[str, tuple[Callable[[Stage], dict[str, object]], str]] = {  # settings, and the expected line
    "no TensorRT here, FALLBACK=none": (lambda _: {"backend": "tensorrt"}, "BACKEND=tensorrt cannot be used"),
    "port in use": (lambda _: {"port": TAKEN.getsockname()[1]}, "cannot be listened on"),
    "engines folder is a file": (lambda s: {"engines_dir": written(s.folder / "file", b"")}, "file: .*ENGINES_DIR"),
    "weights cut short": (
        lambda s: {"weights": written(s.folder / "my.pt", WEIGHTS.read_bytes()[:3000000])},
        "my.pt is cut short",
    ),
    "weights empty": (lambda s: {"weights": written(s.folder / "my.pt", b"")}, "my.pt is empty"),
    "weights missing": (lambda s: {"weights": s.folder / "my.pt"}, "my.pt: no such file"),
    "GATE_DIR missing": (lambda s: {"gate_dir": s.folder / "none"}, "GATE_DIR=.*: no such folder"),
    "GATE_DIR empty": (lambda s: {"gate_dir": s.folder}, "GATE_DIR=.*: there are no images"),
    "CALIBRATION_DIR missing": (
        lambda s: {"precision": "int8", "calibration_dir": s.folder / "none"},
        "CALIBRATION_DIR=.*: no such folder",
    ),
    "CALIBRATION_DIR empty": (
        lambda s: {"precision": "int8", "calibration_dir": s.folder},
        "CALIBRATION_DIR=.*: there are no images",
    ),
    "int8 for foreign weights without CALIBRATION_DIR": (
        lambda s: {"precision": "int8", "weights": s.foreign("my.pt")},
        "int8 is calibrated .* CALIBRATION_DIR",
    ),
}
TAKEN = socket.create_server(("127.0.0.1", 0))


@scenario("{}", *REFUSALS)
def _(stage: Stage, refusal: str) -> str:
    settings, line = REFUSALS[refusal]
    return Run(stage.engines, **settings(stage)).line(line)


def run_scenario(title: str, function: Callable[..., str], case: tuple[Any, ...], stage: Stage) -> bool:
    """Run a scenario and print its row, and its logs if it failed."""
    started, result = time.monotonic(), "yes"
    try:
        text = function(stage, *case)
    except (Failed, Skipped, OSError) as reason:
        text, result = str(reason), "skipped" if isinstance(reason, Skipped) else "**no**"
        if result != "skipped":
            print(f"--- {title}", *("\n".join(run.lines) for run in RUNS), sep="\n", file=sys.stderr)
    finally:
        while RUNS:
            RUNS.pop().kill()
    text = text.replace(f"{stage.folder}/", "").replace(str(stage.folder), "folder").replace(f"{ROOT}/", "")
    text = text.replace("|", "\\|")
    text = re.sub(r"\b[0-9a-f]{12,64}\b", lambda digest: f"{digest[0][:6]}…", text)
    text = text if len(text) <= MAX_CELL else f"{text[: MAX_CELL - 1]}…"
    print(f"| {title} | {text} | {time.monotonic() - started:.1f} | {result} |", flush=True)
    return result != "**no**"


def main(words: list[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"not done after {MAX_RUN_S} s"))
    signal.alarm(MAX_RUN_S)
    print("| scenario | outcome | seconds | passed |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory(prefix="yolopard-faults-") as folder:
        if not run_scenario(*SCENARIOS[0], Stage(Path(folder) / "clean")):
            return 1
        chosen = [row for row in SCENARIOS[1:] if not words or any(word in row[0] for word in words)]
        passed = [run_scenario(*row, Stage(Path(folder) / str(i))) for i, row in enumerate(chosen)]
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
