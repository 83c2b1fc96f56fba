"""Parses the metadata of Ultralytics exports, in the formats of all releases.

Values are the repr of Python values, or JSON. Releases before 8.0.50 only wrote `stride` and `names`.
"""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

STRIDE, IMGSZ = 32, 640  # Ultralytics' defaults

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def value(text: Any) -> Any:
    """Return the value of a Python literal or of JSON; return other texts and values unchanged."""
    if isinstance(text, str):
        for parse in (ast.literal_eval, json.loads):
            try:
                return parse(text)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
    return text


def largest(given: Any, default: int) -> int:
    """Return the largest number in 32, "32.0", [640, 480] or "tensor([8., 16., 32.])"; the default if there is none."""
    return int(max(map(float, _NUMBER.findall(str(given))), default=0)) or default


def shape(imgsz: Any) -> tuple[int, int] | None:
    """Return height and width of the frames in px; None if they are missing."""
    numbers = [int(float(each)) for each in _NUMBER.findall(str(imgsz))]
    return (numbers[0], numbers[-1]) if len(numbers) in (1, 2) else None


def trained_size(imgsz: Any, stride: int) -> int:
    """Return the longest side of the training frames by `imgsz`, rounded up to a multiple of the stride, px."""
    return -(-largest(imgsz, IMGSZ) // stride) * stride


def flag(given: Any) -> bool:
    """Return True for True, "True" and "true"."""
    return str(given).lower() == "true"


def kpt_shape(given: Any) -> tuple[int, int] | None:
    """Return the number of keypoints per object and of values per keypoint (2 or 3); None if they are missing."""
    numbers = [int(each) for each in _NUMBER.findall(str(given))]
    return (numbers[0], numbers[1]) if len(numbers) == 2 and numbers[1] in (2, 3) else None


def names(given: Any, count: int | None) -> dict[int, str]:
    """Return the names of `count` classes by id; of all classes up to the last name if `count` is None.

    A class without a name is called class7, as in Ultralytics. Names with ids from `count` on are ignored.
    """
    known = _names(given)
    if count is None:
        count = max(known, default=-1) + 1
    return {i: known.get(i, f"class{i}") for i in range(count)}


def names_problem(given: Any, count: int) -> str:
    """Return a text on how the names do not fit `count` classes; "" if they fit."""
    known = _names(given)
    missing = [f"class{i}" for i in range(count) if i not in known]
    if missing:
        called = ", ".join(missing[:3]) + (" and so on" if len(missing) > 3 else "")
        return f"it names {count - len(missing)} of its {count} classes; the others are called {called}"
    return f"it names {len(known)} classes and has {count}: the last names are ignored" if len(known) > count else ""


def _names(given: Any) -> dict[int, str]:
    """Return the names by id. Accepts a dict with int or text ids, a dict without ids, or a list."""
    listed = value(given)
    if isinstance(listed, Mapping) and all(str(i).strip().isdecimal() for i in listed):
        return {int(i): str(name) for i, name in listed.items()}
    if isinstance(listed, Mapping):
        listed = list(listed.values())
    return {i: str(name) for i, name in enumerate(listed)} if isinstance(listed, list | tuple) else {}
