"""The commands as a user runs them, in real processes."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import eventually, free_port

from app import __main__
from app.settings import DEMO

pytestmark = pytest.mark.usefixtures("needs_engine")

ROOT = Path(__file__).parents[1]
FEW_IMAGES = str(DEMO / "samples")  # GATE_DIR where the gate is not looked at


def yolopard(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=ROOT,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


class Served:
    """`yolopard serve` in a process; the constructor returns when the server is ready."""

    def __init__(self, *arguments: str) -> None:
        self.port = free_port()
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "app", "serve", "--port", str(self.port), *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.lines: list[str] = []
        for line in self.process.stdout:
            self.lines.append(line.strip())
            if line.strip().startswith("curl "):
                break
        self.ready_s = time.monotonic() - self.started

    def end(self, how: int) -> int:
        self.process.send_signal(how)
        self.process.communicate(timeout=30)
        return self.process.returncode


@pytest.fixture(scope="module")
def engine(build) -> Path:
    return build().folder.parent


@pytest.mark.serial
def test_serve_with_a_stored_engine_is_ready_in_ten_seconds_and_its_curl_line_works(engine):
    served = Served("--engines-dir", str(engine))
    try:
        assert served.ready_s < 10
        assert any(line.startswith("Ready at http://127.0.0.1:") for line in served.lines)
        answer = subprocess.run(served.lines[-1], shell=True, capture_output=True, check=True, timeout=30).stdout
        assert [found["name"] for found in json.loads(answer)["images"][0]["results"]]
    finally:
        assert served.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP], ids=lambda how: how.name)
def test_every_request_that_reached_the_socket_before_a_stop_gets_its_response(engine, sample, how):
    served = Served("--engines-dir", str(engine))
    request = b"POST /v1/detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(sample), sample)
    clients = [socket.create_connection(("127.0.0.1", served.port), timeout=30) for _ in range(30)]
    for client in clients:
        client.sendall(request)
    served.process.send_signal(how)
    answers = [client.recv(16) for client in clients]
    for client in clients:
        client.close()
    assert answers == [b"HTTP/1.1 200 OK\r"] * 30
    assert served.end(signal.SIGTERM) == 0


def test_interrupt_ends_serve_with_status_130(engine):
    """130 is the status that shells expect after Ctrl-C; earlier it was 0."""
    served = Served("--engines-dir", str(engine))
    assert served.end(signal.SIGINT) == 130


def test_a_simulated_server_deletes_its_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    served = Served("--backend", "simulated")
    assert list(tmp_path.iterdir())
    assert served.end(signal.SIGTERM) == 0
    assert list(tmp_path.iterdir()) == []


def start_and_wait_for_build(*options: str) -> subprocess.Popen[str]:
    """Return `yolopard serve` during its build."""
    serving = subprocess.Popen(
        [sys.executable, "-m", "app", "serve", "--port", str(free_port()), *options],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    for line in serving.stderr:
        if "graph" in line:
            break
    return serving


def test_sigterm_during_a_build_ends_the_builder_too(tmp_path):
    serving = start_and_wait_for_build("--engines-dir", str(tmp_path))
    serving.send_signal(signal.SIGTERM)
    _, errors = serving.communicate(timeout=30)  # stderr ends when the builder, which shares it, has exited
    assert serving.returncode == 0
    assert "Traceback" not in errors
    assert [path for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


@pytest.mark.parametrize("arguments", [["bench", "--backend", "simulated"], ["selftest", "--backend", "onnxruntime"]])
def test_sigterm_during_a_measurement_ends_its_processes_too(tmp_path, arguments):
    measuring = subprocess.Popen(
        [sys.executable, "-m", "app", *arguments, "--engines-dir", str(tmp_path)], cwd=tmp_path, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    children = Path(f"/proc/{measuring.pid}/task/{measuring.pid}/children")
    eventually(children.read_text)
    started = children.read_text().split()
    measuring.send_signal(signal.SIGTERM)
    measuring.communicate(timeout=60)  # its output ends when the last process that shares it has exited
    assert measuring.returncode == 128 + signal.SIGTERM
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))


def test_a_server_killed_during_a_build_does_not_break_the_next_start(tmp_path):
    options = ["--engines-dir", str(tmp_path), "--backend", "onnxruntime", "--imgsz", "160", "--gate-dir", FEW_IMAGES]
    killed = start_and_wait_for_build(*options)
    killed.send_signal(signal.SIGKILL)
    following = Served(*options)
    assert following.end(signal.SIGTERM) == 0
    _, errors = killed.communicate(timeout=60)  # the orphaned builder exits by itself
    assert "Traceback" not in errors
    assert len([path for path in tmp_path.iterdir() if not path.name.startswith(".")]) == 1


def test_build_prints_each_step_and_the_gate_result(tmp_path):
    first = yolopard("build", "--engines-dir", str(tmp_path), "--backend", "onnxruntime", "--imgsz", "160")
    assert first.returncode == 0, first.stderr
    assert re.findall(r"\[(\d)/6\] yolov8n-demo: (\w+)", first.stdout) == [
        ("1", "weights"), ("2", "graph"), ("3", "engine"), ("4", "check"), ("5", "publish"),
    ]  # fmt: skip
    assert re.search(r"accuracy gate +fp32 against PyTorch FP32 on 48 demo scenes", first.stdout)
    assert re.search(r"boxes found +100\.00% of \d{3}, 0\.00% false positives", first.stdout)
    assert re.search(r"mAP50-95 +(0\.\d{4}), reference \1", first.stdout)
    again = yolopard("build", "--engines_dir", str(tmp_path), "--backend", "onnxruntime", "--imgsz", "160")
    assert "engine" not in re.findall(r"\] yolov8n-demo: (\w+)", again.stdout)
    assert again.stdout.splitlines()[-8:] == first.stdout.splitlines()[-8:]


def test_the_table_shows_the_confidence_interval_and_the_int8_method(build):
    stored = build()
    few = dataclasses.replace(stored.manifest.gate.figures, boxes=12, agreement=1.0, false_positives=0.0)
    manifest = dataclasses.replace(
        stored.manifest,
        gate=dataclasses.replace(stored.manifest.gate, figures=few),
        built={"int8": {"method": "mean of peaks"}},
    )
    lines = __main__._table(dataclasses.replace(stored, manifest=manifest)).splitlines()
    assert "  boxes found      100.00% of 12 (with 95 % confidence 0.76 to 1.00), 0.00% false positives" in lines
    assert "  int8             mean of peaks" in lines


def test_settings_are_read_from_the_environment_and_the_command_line_takes_precedence(tmp_path):
    environ = {"YOLOPARD_ENGINES_DIR": str(tmp_path), "YOLOPARD_BACKEND": "onnxruntime", "YOLOPARD_IMGSZ": "600"}
    assert "IMGSZ=600 is not a multiple of the model's stride 32: use 608" in yolopard("build", **environ).stderr
    assert yolopard("build", "--imgsz", "160", "--gate-dir", FEW_IMAGES, **environ).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        (["--frobnicate", "1"], {}, "--frobnicate"),
        ([], {"YOLOPARD_FROBNICATE": "1"}, "FROBNICATE: no such setting"),
        (["--batch", "many"], {}, "BATCH=many: "),
        (["--weights", "no/such.pt"], {}, "no/such.pt: no such file"),
        (["--backend", "abacus"], {}, "BACKEND=abacus: "),
        (["--precision", "fp16"], {}, "PRECISION=fp16 does not exist on openvino: use fp32 or int8"),
    ],
)
def test_invalid_settings_end_with_one_line_and_an_error_status(tmp_path, arguments, environ, message):
    for command in ("build", "serve"):
        ended = yolopard(command, "--engines-dir", str(tmp_path), *arguments, **environ)
        assert ended.returncode in (1, 2)
        assert message in ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_host_open_to_other_machines_needs_keys_before_anything_is_built(tmp_path):
    ended = yolopard("serve", "--host", "0.0.0.0", "--engines-dir", str(tmp_path))
    assert ended.returncode == 1
    assert ended.stderr.startswith("yolopard: HOST=0.0.0.0 is open to other machines: give API_KEYS")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting", ["PORT", "GRPC_PORT"])
def test_a_port_in_use_is_reported_with_its_setting(tmp_path, setting):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = {"YOLOPARD_PORT": str(free_port()), f"YOLOPARD_{setting}": str(taken.getsockname()[1])}
        ended = yolopard("serve", "--engines-dir", str(tmp_path), **ports)
    assert ended.returncode == 1
    assert re.fullmatch(rf"yolopard: 127\.0\.0\.1:\d+ .* choose another {setting} or HOST\n", ended.stderr)


def test_grpc_without_its_package_is_reported_in_one_line(tmp_path):
    (tmp_path / "tritonclient.py").touch()  # hides the real one
    ports = {"YOLOPARD_PORT": str(free_port()), "YOLOPARD_GRPC_PORT": str(free_port())}
    ended = yolopard("serve", PYTHONPATH=str(tmp_path), **ports)
    assert ended.returncode == 1
    assert re.fullmatch(r"yolopard: GRPC_PORT=\d+ needs .*: pip install 'yolopard\[grpc\]'\n", ended.stderr)


def test_make_passes_settings_to_the_server():
    made = subprocess.run(
        ["make", "--dry-run", "--old-file=.venv/serve", "serve", "WEIGHTS=my model's.pt", "PORT=9000", "IMGSZ=1280"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "YOLOPARD_PORT='9000'" in made
    assert "YOLOPARD_IMGSZ='1280'" in made
    assert "YOLOPARD_WEIGHTS='my model'\\''s.pt'" in made
