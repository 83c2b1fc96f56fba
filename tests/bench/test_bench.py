"""`yolopard bench` with real servers and engines, for short times; loadtest/ has the measured results."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.__main__ import engine_provider, main
from app.bench import command as bench
from app.bench import engines, report
from app.bench.engine_baseline import EngineBaseline
from app.bench.engines import Row
from app.bench.load import Run
from app.bench.plan import Case, Measured, Plan, measure, steps, target
from app.bench.server import Server, started
from app.errors import BenchFailed
from app.settings import Settings
from app.vision.preprocess import sniff

pytestmark = pytest.mark.usefixtures("needs_engine")

SIMULATED = ("--backend", "simulated", "--simulated-ms", "1,2", "--imgsz", "160")
SHORT = ("--clients", "1,2", "--seconds", "0.3", "--rounds", "2")


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "new"
    assert main(["bench", *SIMULATED, *SHORT, "--out", str(folder)]) == 0
    return folder


def test_bench_measures_a_server_that_it_starts_and_writes_table_json_and_chart(out):
    assert {path.name for path in out.iterdir()} == {"report.md", "report.json", "report.png"}
    assert sniff((out / "report.png").read_bytes()) == "PNG"
    text = (out / "report.md").read_text()
    assert "| 1 client |" in text
    assert "| 2 clients, multipart |" in text
    assert "| 1 client, 8 files per request |" in text
    assert "95% of the peak rate, at random times" in text


def test_report_has_machine_versions_and_commit(out):
    found = json.loads((out / "report.json").read_text())
    assert found["machine"]["cpus"] >= 1
    assert found["versions"]["uvicorn"]
    assert found["commit"]
    assert found["commit"] in (out / "report.md").read_text()


def test_every_case_has_the_results_of_every_round(out):
    found = json.loads((out / "report.json").read_text())
    assert len(found["engine"]) == len(found["decode"]) == len(found["possible"]) == 2
    for case in found["cases"]:
        assert len(case["runs"]) == len(case["cpu_ms"]) == 2
        assert all(run["statuses"].keys() == {"200"} for run in case["runs"])
        assert all(0 < run["latency_ms"]["50"] <= run["latency_ms"]["99"] for run in case["runs"])
        assert all(size >= 1 for size in case["batch"])


def test_the_engine_baseline_is_the_rate_of_the_simulated_times(out):
    """8 images take 1 + 2 * 8 ms: 470 images a second."""
    found = json.loads((out / "report.json").read_text())
    assert max(found["engine"]) == pytest.approx(470, rel=0.1)
    served = max(run["images_per_second"] for case in found["cases"] for run in case["runs"])
    assert served < 470


def test_a_running_server_is_measured_with_url(tmp_path, capsys):
    with started(Settings.of(backend="simulated", imgsz=160)) as server:
        assert main(["bench", "--url", server.url + "/", *SHORT, "--out", str(tmp_path)]) == 0
    assert "| 2 clients |" in capsys.readouterr().out
    assert json.loads((tmp_path / "report.json").read_text())["decode"] == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["--url", "http://127.0.0.1:9"],
            "http://127.0.0.1:9 is not ready: is that the address of a running yolopard?",
        ),
        (["--images", "none.jpg"], "none.jpg: No such file or directory"),
        (["--images", "empty"], "empty: there is no image"),
        (["--weights", "./no/my.pt"], "the server did not start: ./no/my.pt: no such file"),
        (["--out", "file/below"], "file/below: Not a directory: give another folder with --out"),
    ],
)
def test_a_measurement_that_cannot_start_ends_with_one_line(options, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("file").touch()
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    assert main(["bench", *options]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == f"yolopard: {says}"


@pytest.mark.parametrize("option", [["--clients", "0"], ["--clients", "x"], ["--rounds", "many"], ["--nonsense", "1"]])
def test_wrong_options_are_refused_with_their_name(option, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["bench", *option])
    assert caught.value.code == 2
    assert option[0].lstrip("-") in capsys.readouterr().err


@pytest.mark.serial
def test_ctrl_c_ends_bench_and_its_server(tmp_path):
    command = [sys.executable, "-m", "app", "bench", *SIMULATED, "--seconds", "30", "--out", str(tmp_path)]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "starting a server\n"
        while not (children := _group(process.pid) - {process.pid}):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 130
    assert children
    assert not _group(process.pid)


def _group(leader: int) -> set[int]:
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group) == leader and state != "Z":
            found.add(int(folder.name))
    return found


def test_the_baseline_measures_engine_decoding_and_latency_with_the_given_images(sample, build):
    settings = Settings.of(backend="openvino", imgsz=160, engines_dir=build(imgsz=160).folder.parent)
    with EngineBaseline(engine_provider, settings, [sample]) as baseline:
        engine, decode, latency = baseline.engine(0.3), baseline.decode(0.3), baseline.latency(0.3)
        assert baseline.shares_cores()
    assert 1 < engine < 1000
    assert engine < decode
    assert 1 / decode < latency < 5


def test_counters_are_those_of_the_server(sample):
    with started(Settings.of(backend="simulated", imgsz=160)) as server:
        before = server.counters()
        for _ in range(3):
            _post(server, sample)
        after = server.counters()
    assert after.images - before.images == 3
    assert 1 <= after.batches - before.batches <= 3
    assert after.cpu_s >= before.cpu_s > 0
    assert after.resident_bytes > 10**7


def _post(server: Server, data: bytes) -> None:
    import urllib.request

    request = urllib.request.Request(f"{server.url}/v1/detect", data, {"Content-Type": "image/jpeg"})
    with urllib.request.urlopen(request, timeout=10) as response:
        assert response.status == 200


def test_requests_with_many_files_cycle_through_the_images():
    files = target(Server("http://127.0.0.1:1"), [b"a", b"b", b"c"], "files")
    assert files.images == 8
    assert [body.count(b"\r\na\r\n") for body in files.bodies] == [3, 2, 3]


def test_the_progress_bar_has_the_number_of_measured_steps(capsys):
    plan = Plan((1, 2), 0.1, 2)
    done: list[str] = []
    with started(Settings.of(backend="simulated", imgsz=160)) as server:
        measure(server, None, bench.read_images(Path(__file__).parents[2] / "models/demo/samples"), plan, done.append)
    assert len(done) == steps(plan)


# The table of engines


def test_every_available_engine_is_compared_with_pytorch(tmp_path, build, monkeypatch, capsys):
    monkeypatch.setattr("app.backends.PREFERRED", ("tensorrt", "openvino", "pytorch"))
    monkeypatch.setattr("app.backends.openvino.PRECISIONS", ("fp32",))
    engines_dir = build("pytorch", imgsz=160).folder.parent
    build(imgsz=160)
    command = ["bench", "--compare", "--imgsz", "160", "--rounds", "1", "--seconds", "0.2", "--out", str(tmp_path)]
    assert main([*command, "--engines-dir", str(engines_dir)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (pytorch,) = [line for line in lines if line.startswith("| pytorch fp32 |")]
    (openvino,) = [line for line in lines if line.startswith("| openvino fp32 |")]
    assert "| 1.00 | 100.00% |" in pytorch
    assert "100.00%" in openvino
    assert any(line.startswith("| tensorrt | BACKEND=tensorrt cannot be used") for line in lines)
    assert sniff((tmp_path / "engines.png").read_bytes()) == "PNG"
    found = json.loads((tmp_path / "engines.json").read_text())["engines"]
    assert [entry["backend"] for entry in found] == ["pytorch", "tensorrt", "openvino"]


def test_speed_up_is_the_median_of_the_ratios_of_the_rounds(build):
    first, second = (Row(name, "fp32", stored=build(imgsz=160)) for name in ("pytorch", "openvino"))
    first.rates, second.rates = [10, 20, 40], [20, 60, 120]
    first.speed_ups, second.speed_ups = [1, 1, 1], [2, 3, 3]
    line = engines.table([first, second]).splitlines()[-1]
    assert line.startswith("| openvino fp32 | 60.0 | 20.0-120.0 | 3.00 |")


def test_an_engine_refused_by_the_gate_has_the_reason_in_its_row():
    row = Row("openvino", "int8", problem="refused by the accuracy gate")
    assert engines.table([row]).splitlines()[-1].startswith("| openvino int8 | refused by the accuracy gate |")


# Reports


def _run(rate: float, statuses: dict[int, int]) -> Run:
    from collections import Counter

    return Run(rate, Counter(statuses), {200: [0.01] * 98 + [0.5] * 2})


def test_table_shows_medians_of_the_rounds_and_the_number_of_failures():
    case = Case("2 clients", "closed", "raw", 2, [_run(10, {200: 5}), _run(30, {200: 5}), _run(20, {200: 5, 503: 2})])
    case.batch, case.cpu_ms, case.shares = [1, 1, 2], [5, 6, 9], [0.5, 0.7, 0.6]
    text = report.table(Measured([case], [40], [], [], []))
    assert (
        "| 2 clients (2 not answered with 200) | 20.0 | 10.0-30.0 | 10.0 | 10.0 | 500.0 | 1.0 | 6.0 | 0.60 |  |" in text
    )


def test_bench_ends_if_no_request_succeeds(monkeypatch):
    plan = Plan((1,), 0.1, 1)
    failed = pytest.raises(BenchFailed, match="1 client: no request")
    with started(Settings.of(backend="simulated", imgsz=160)) as server, failed:
        measure(server, None, [b"\xff\xd8\xff no JPEG"], plan, lambda _: None)
