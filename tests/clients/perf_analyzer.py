"""Triton's load generator. It reads the server's statistics before and after, and prints the difference."""

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
# Three windows of REQUESTS, with any difference (-s): otherwise it measures until three are similar.
WINDOWS = ["--measurement-mode", "count_windows", "--measurement-request-count", str(REQUESTS), "-r", "3", "-s", "999"]


def measure(protocol: str, suffix: str, *options: str) -> Callable[[str], str]:
    def check(url: str) -> str:
        address = url.removeprefix("http://") if protocol == "http" else f"127.0.0.1:{kserve.GRPC_PORT}"
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({"data": [{"image": {"content": {"b64": bytes_element()}, "shape": [1]}}]}, file)
            file.flush()
            data = ["--input-data", file.name] if suffix else ["--shape", "images:3,640,640"]
            command = [COMMAND, "-m", model(url) + suffix, "-i", protocol, "-u", address, *data, *WINDOWS, *options]
            finished = subprocess.run(
                command, env=environment(), capture_output=True, text=True, timeout=120, check=False
            )
        return reported(finished.stdout + finished.stderr)

    return check


def bytes_element() -> str:
    """Return the sample as a BYTES element, which begins with its length, in base64."""
    content = SAMPLE.read_bytes()
    return base64.b64encode(len(content).to_bytes(4, "little") + content).decode()


def environment() -> dict[str, str]:
    """Return the environment variables. perf_analyzer needs CUDA's runtime even if it does not use it."""
    return os.environ | {"LD_LIBRARY_PATH": str(FOLDER / "nvidia" / "cuda_runtime" / "lib")}


def reported(output: str) -> str:
    """Return a text with the counts. Raises AssertionError if client and server differ by more than two requests.

    One or two requests may end in a later window than they began in.
    """
    sent = sum(map(int, re.findall(r"Request count: (\d+)", output)))
    answered = sum(map(int, re.findall(r"Successful request count: (\d+)", output)))
    images = sum(map(int, re.findall(r"Inference count: (\d+)", output)))
    assert sent >= REQUESTS, output
    assert abs(sent - answered) <= 2, output
    assert images >= answered, output
    assert re.search(r"queue \d+ usec \+ compute input [1-9]\d* usec \+ compute infer [1-9]", output), output
    return f"{sent} requests; by the server's statistics {answered}, of {images} images, and its times"


def can_run() -> bool:
    """Return True if perf_analyzer is installed (`make clients`) and Debian's libb64-0d too."""
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
