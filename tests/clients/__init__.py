"""Tests of existing, unchanged clients with a server: `python tests/clients` prints the table of RESULTS.md.

Each family of clients has a module with CHECKS: client, version, call and a function. The function takes the server's
URL, returns the result as a short text, and raises if it is wrong, for example if boxes differ from POST /v1/detect.
"""

import json
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

Check = tuple[str, str, str, Callable[[str], str]]
Box = tuple[str, Sequence[float]]  # class, x1 y1 x2 y2 in px

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "models" / "demo" / "samples" / "scene-1.jpg"
KEY = "key-of-the-clients-tests"  # always sent; a server without API_KEYS ignores it


def native(url: str, **query: float) -> list[Box]:
    """Return the boxes of the sample by POST /v1/detect, best first."""
    params = "&".join(f"{name}={value}" for name, value in query.items())
    request = urllib.request.Request(f"{url}/v1/detect?{params}", SAMPLE.read_bytes(), {"X-API-Key": KEY})
    with urllib.request.urlopen(request, timeout=30) as response:
        found = json.load(response)["images"][0]["results"]
    assert found
    return [(each["name"], [each["box"][side] for side in ("x1", "y1", "x2", "y2")]) for each in found]


def model(url: str) -> str:
    """Return the name of the served model."""
    request = urllib.request.Request(f"{url}/v1/models", headers={"X-API-Key": KEY})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)["models"][0]["name"]


def same(found: Sequence[Box], wanted: Sequence[Box], px: float) -> str:
    """Compare boxes and return a text with the largest difference of their sides.

    Raises AssertionError if the classes or their order differ, or sides by more than `px`.
    """
    assert [name for name, _ in found] == [name for name, _ in wanted], (found, wanted)
    worst = max(
        abs(a - b) for (_, one), (_, other) in zip(found, wanted, strict=True) for a, b in zip(one, other, strict=True)
    )
    assert worst <= px, worst
    return f"{len(found)} boxes, within {worst:.2f} px of /v1/detect"
