"""The builder in a child process: killed, cancelled, started twice."""

import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from app.building import builder
from app.building.process import BuildProcess
from app.errors import BuildFailed, WeightsError
from app.progress import Progress
from app.serving.spec import BuildRequest
from app.settings import DEMO, DEMO_WEIGHTS

pytestmark = pytest.mark.usefixtures("needs_engine")


SAMPLES = DEMO / "samples"  # a gate of five images: what it finds is not looked at here


@pytest.fixture
def build_request(tmp_path) -> BuildRequest:
    return BuildRequest(str(DEMO_WEIGHTS), 160, 2, "auto", "onnxruntime", tmp_path / "engines", gate=SAMPLES)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("phase", ["graph", "check", "publish"])
def test_a_builder_killed_in_any_phase_does_not_break_the_next_start(build_request, phase):
    process = BuildProcess(build_request)

    def kill(progress: Progress) -> None:
        if progress.phase == phase:
            os.kill(process._process.pid, signal.SIGKILL)

    with pytest.raises(BuildFailed, match="signal 9: most often the machine is out of memory"):
        process.run(kill)
    assert builder.find(build_request) is None
    stored = BuildProcess(build_request).run(lambda _: None)
    assert visible(build_request.engines) == [stored.folder.name]
    assert builder.find(build_request) == stored


def test_two_concurrent_starts_build_once(build_request):
    phases: list[list[str]] = [[], []]
    stored: list = [None, None]

    def start(i: int) -> None:
        stored[i] = BuildProcess(build_request).run(lambda progress: phases[i].append(progress.phase))

    threads = [threading.Thread(target=start, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stored[0] == stored[1] is not None
    assert sum("engine" in seen for seen in phases) == 1


def test_the_second_run_starts_no_process(build_request):
    first = BuildProcess(build_request).run(lambda _: None)
    again = BuildProcess(build_request)
    assert again.run(lambda _: None) == first
    assert again._process is None


def test_errors_of_the_builder_are_raised_with_their_type(build_request, tmp_path):
    (tmp_path / "w.pt").write_bytes(b"garbage")
    bad = BuildRequest(str(tmp_path / "w.pt"), 160, 2, "auto", "onnxruntime", build_request.engines)
    with pytest.raises(WeightsError, match=r"w\.pt"):
        BuildProcess(bad).run(lambda _: None)


PARENT = """
import sys
from pathlib import Path
from app.building.process import BuildProcess
from app.serving.spec import BuildRequest
from app.settings import DEMO, DEMO_WEIGHTS
engines, gate = Path(sys.argv[1]), DEMO / "samples"
process = BuildProcess(BuildRequest(str(DEMO_WEIGHTS), 160, 2, "auto", "onnxruntime", engines, gate=gate))
process.run(lambda progress: print(progress.phase, process._process and process._process.pid, flush=True))
"""


@pytest.mark.serial
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_builder_exits_with_its_parent(build_request, sent):
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(build_request.engines)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as parent:
        line = next(line for line in parent.stdout if line.startswith("graph"))
        child = os.pidfd_open(int(line.split()[1]))
        parent.send_signal(sent)
        assert parent.wait(10) != 0
    ended, _, _ = select.select([child], [], [], 10)
    os.close(child)
    assert ended


def test_a_build_that_exceeds_its_memory_limit_is_killed_and_the_next_start_builds(build_request):
    process = BuildProcess(build_request, memory_bytes=150_000_000)
    with pytest.raises(BuildFailed, match=r"used [\d,]+ bytes .* BUILD_MEMORY_BYTES allows 150,000,000: raise it"):
        process.run(lambda _: None)
    assert not process._process.is_alive()
    assert builder.find(build_request) is None
    stored = BuildProcess(build_request, memory_bytes=8_000_000_000).run(lambda _: None)
    assert visible(build_request.engines) == [stored.folder.name]


def test_built_files_are_not_writable_by_other_users_regardless_of_umask(build_request):
    before = os.umask(0)
    try:
        stored = BuildProcess(build_request).run(lambda _: None)
    finally:
        os.umask(before)
    for path in (build_request.engines, *build_request.engines.rglob("*")):
        assert not path.stat().st_mode & 0o022, path
    assert builder.find(build_request) == stored


def test_cancel_ends_the_build(build_request):
    process = BuildProcess(build_request)

    def cancel(progress: Progress) -> None:
        if progress.phase == "graph":
            process.cancel()

    with pytest.raises(BuildFailed, match="cancelled"):
        process.run(cancel)
    assert not process._process.is_alive()
