"""What clients that people have, unchanged, make of a server: `python tests/clients` prints the table of the README.

Each family has its file, with CHECKS: client, version, call, and what runs it. That takes the server's address,
returns what came out in a few words, and raises if that is wrong: other boxes than POST /v1/detect gives, say.
"""

import json
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

Check = tuple[str, str, str, Callable[[str], str]]
Box = tuple[str, Sequence[float]]  # class, x1 y1 x2 y2 in px

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "models" / "demo" / "samples" / "scene-1.jpg"
KEY = "key-of-the-clients-tests"  # always sent; a server without API_KEYS does not look at it


def native(url: str, **query: float) -> list[Box]:
    """What POST /v1/detect finds in the sample, best first."""
    words = "&".join(f"{name}={value}" for name, value in query.items())
    requested = urllib.request.Request(f"{url}/v1/detect?{words}", SAMPLE.read_bytes(), {"X-API-Key": KEY})
    with urllib.request.urlopen(requested, timeout=30) as answer:
        found = json.load(answer)["images"][0]["results"]
    assert found
    return [(each["name"], [each["box"][side] for side in ("x1", "y1", "x2", "y2")]) for each in found]


def model(url: str) -> str:
    """The name of the one that is served."""
    requested = urllib.request.Request(f"{url}/v1/models", headers={"X-API-Key": KEY})
    with urllib.request.urlopen(requested, timeout=30) as answer:
        return json.load(answer)["models"][0]["name"]


def same(found: Sequence[Box], wanted: Sequence[Box], px: float) -> str:
    """Raises unless both hold the same classes, in the same order, and their sides are at most `px` apart."""
    assert [name for name, _ in found] == [name for name, _ in wanted], (found, wanted)
    worst = max(
        abs(a - b) for (_, one), (_, other) in zip(found, wanted, strict=True) for a, b in zip(one, other, strict=True)
    )
    assert worst <= px, worst
    return f"{len(found)} boxes, within {worst:.2f} px of /v1/detect"
