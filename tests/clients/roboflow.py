"""Roboflow: inference_sdk and supervision. They want older packages than Yolopard: `make clients` has them apart."""

import json
import re
import subprocess
from collections.abc import Callable
from functools import cache
from typing import Any

from clients import KEY, ROOT, SAMPLE, Check, model, native, same

PYTHON = ROOT / ".venv-clients" / "bin" / "python"
PINS = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "tests/clients/requirements.txt").read_text(), re.MULTILINE))
PX = 2.0  # the SDK may compress the image anew


@cache
def _answers(url: str) -> dict[str, Any]:
    """Of all calls: one process, since it takes seconds to begin."""
    command = [str(PYTHON), __file__.replace(".py", "_sdk.py"), url, KEY, model(url), str(SAMPLE)]
    return json.loads(subprocess.run(command, capture_output=True, timeout=60, check=True).stdout)


def _ask(call: str) -> Callable[[str], str]:
    def run(url: str) -> str:
        answers = _answers(url)[call]
        assert isinstance(answers, list), answers
        wanted = native(url, conf=0.5, iou=0.5)
        reported = [same(found, wanted, PX) for found in answers]
        return f"{len(reported)} images, each {reported[0]}" if len(reported) > 1 else reported[0]

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
