"""Triton's load generator. It reads the server's statistics before and after, and tells what they say."""

import base64
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable

from clients import ROOT, SAMPLE, Check, kserve, model

FOLDER = ROOT / ".venv-clients" / "perf_analyzer"
COMMAND = FOLDER / "bin" / "perf_analyzer"
VERSION = "of tritonclient 2.50.0"
REQUESTS = 5
# Three windows of so many, however much they differ; it goes on, and reports nothing, until three are alike.
WINDOWS = ["--measurement-mode", "count_windows", "--measurement-request-count", str(REQUESTS), "-r", "3", "-s", "999"]


def measure(protocol: str, suffix: str, *options: str) -> Callable[[str], str]:
    def check(url: str) -> str:
        address = url.removeprefix("http://") if protocol == "http" else f"127.0.0.1:{kserve.GRPC_PORT}"
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({"data": [{"image": {"content": {"b64": element()}, "shape": [1]}}]}, file)
            file.flush()
            data = ["--input-data", file.name] if suffix else ["--shape", "images:3,640,640"]
            requested = [COMMAND, "-m", model(url) + suffix, "-i", protocol, "-u", address, *data, *WINDOWS, *options]
            ended = subprocess.run(
                requested, env=environment(), capture_output=True, text=True, timeout=120, check=False
            )
        return reported(ended.stdout + ended.stderr)

    return check


def element() -> str:
    """The sample as an element of BYTES, which follows its length, in base64."""
    content = SAMPLE.read_bytes()
    return base64.b64encode(len(content).to_bytes(4, "little") + content).decode()


def environment() -> dict[str, str]:
    """It wants CUDA's runtime, also where it does not use it."""
    return os.environ | {"LD_LIBRARY_PATH": str(FOLDER / "nvidia" / "cuda_runtime" / "lib")}


def reported(output: str) -> str:
    """Both sides' counts must fit, but for a request or two that end in another window than they began."""
    requested = sum(map(int, re.findall(r"Request count: (\d+)", output)))
    answered = sum(map(int, re.findall(r"Successful request count: (\d+)", output)))
    images = sum(map(int, re.findall(r"Inference count: (\d+)", output)))
    assert requested >= REQUESTS, output
    assert abs(requested - answered) <= 2, output
    assert images >= answered, output
    assert re.search(r"queue \d+ usec \+ compute input [1-9]\d* usec \+ compute infer [1-9]", output), output
    return f"{requested} requests; by the server's statistics {answered}, of {images} images, and its times"


def can_run() -> bool:
    """False without `make clients`, or where a library is missing that only Debian's packages have."""
    if not COMMAND.exists():
        return False
    return subprocess.run([COMMAND, "--version"], env=environment(), capture_output=True, check=False).returncode == 0


CHECKS: list[Check] = [
    ("perf_analyzer, HTTP", VERSION, "frames, two a request", measure("http", "", "-b", "2")),
    (
        "perf_analyzer, HTTP",
        VERSION,
        "encoded images, two at a time",
        measure("http", "_image", "--concurrency-range", "2"),
    ),
    ("perf_analyzer, gRPC", VERSION, "frames", measure("grpc", "")),
    ("perf_analyzer, gRPC", VERSION, "frames in a stream", measure("grpc", "", "--streaming", "-a")),
    ("perf_analyzer, gRPC", VERSION, "encoded images", measure("grpc", "_image")),
]
