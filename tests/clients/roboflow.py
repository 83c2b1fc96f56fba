"""Roboflow: inference_sdk and supervision. They need older packages than Yolopard: `make clients` installs them."""

import json
import re
import subprocess
from collections.abc import Callable
from functools import cache
from typing import Any

from clients import KEY, ROOT, SAMPLE, Check, model, native, same

PYTHON = ROOT / ".venv-clients" / "bin" / "python"
PINS = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "tests/clients/requirements.txt").read_text(), re.MULTILINE))
PX = 2.0  # the SDK may compress the image again


@cache
def _results(url: str) -> dict[str, Any]:
    """Return the results of all calls, from one process, because its start takes seconds."""
    command = [str(PYTHON), __file__.replace(".py", "_sdk.py"), url, KEY, model(url), str(SAMPLE)]
    return json.loads(subprocess.run(command, capture_output=True, timeout=60, check=True).stdout)


def _ask(call: str) -> Callable[[str], str]:
    def run(url: str) -> str:
        boxes = _results(url)[call]
        assert isinstance(boxes, list), boxes
        expected = native(url, conf=0.5, iou=0.5)
        results = [same(found, expected, PX) for found in boxes]
        return f"{len(results)} images, each {results[0]}" if len(results) > 1 else results[0]

    return run


def _check(call: str, package: str = "inference-sdk") -> Check:
    return package, PINS[package], call, _ask(call)


CHECKS: list[Check] = [
    _check("InferenceHTTPClient.infer"),
    _check("infer, the key in a header"),
    _check("infer of a list, two a request"),
    _check("infer_async"),
    _check("infer, API v0"),
    _check("Detections.from_inference", "supervision"),
]
