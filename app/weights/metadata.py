"""The metadata that Ultralytics writes into its exports, in the forms of all its releases -> plain values.

Texts are the repr of Python values or JSON. Releases before 8.0.50 wrote `stride` and `names` alone.
"""

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

STRIDE, IMGSZ = 32, 640  # as Ultralytics has it where nothing is written

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def value(text: Any) -> Any:
    """The value that a text stands for: a Python literal or JSON; other texts and values as they are."""
    if isinstance(text, str):
        for parse in (ast.literal_eval, json.loads):
            try:
                return parse(text)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
    return text


def largest(given: Any, default: int) -> int:
    """The largest number of 32, "32.0", [640, 480] or "tensor([8., 16., 32.])"; the default where there is none."""
    return int(max(map(float, _NUMBER.findall(str(given))), default=0)) or default


def shape(imgsz: Any) -> tuple[int, int] | None:
    """Height and width of frames, px; None where they are not written."""
    numbers = [int(float(each)) for each in _NUMBER.findall(str(imgsz))]
    return (numbers[0], numbers[-1]) if len(numbers) in (1, 2) else None


def trained_size(imgsz: Any, stride: int) -> int:
    """The longest side of the frames that weights were trained on, as their `imgsz` says it, up to a full stride."""
    return -(-largest(imgsz, IMGSZ) // stride) * stride


def flag(given: Any) -> bool:
    """Whether True, "True" or "true" is written."""
    return str(given).lower() == "true"


def kpt_shape(given: Any) -> tuple[int, int] | None:
    """Keypoints of an object and values of a keypoint, 2 or 3; None where that is not written."""
    numbers = [int(each) for each in _NUMBER.findall(str(given))]
    return (numbers[0], numbers[1]) if len(numbers) == 2 and numbers[1] in (2, 3) else None


def names(given: Any, count: int | None) -> dict[int, str]:
    """Class id -> name of `count` classes, or of as many as there are names.

    A class without a name is called class7, as Ultralytics calls it; names of classes that the model has not are left
    out.
    """
    known = _names(given)
    if count is None:
        count = max(known, default=-1) + 1
    return {i: known.get(i, f"class{i}") for i in range(count)}


def names_problem(given: Any, count: int) -> str:
    """In what the names do not fit so many classes, in words; "" if they do."""
    known = _names(given)
    lacking = [f"class{i}" for i in range(count) if i not in known]
    if lacking:
        called = ", ".join(lacking[:3]) + (" and so on" if len(lacking) > 3 else "")
        return f"it names {count - len(lacking)} of its {count} classes; the others are called {called}"
    return f"it names {len(known)} classes and has {count}: the last names are left out" if len(known) > count else ""


def _names(given: Any) -> dict[int, str]:
    """Of a dict by ids, be they texts, or of a list."""
    listed = value(given)
    if isinstance(listed, Mapping) and all(str(i).strip().isdecimal() for i in listed):
        return {int(i): str(name) for i, name in listed.items()}
    if isinstance(listed, Mapping):
        listed = list(listed.values())
    return {i: str(name) for i, name in enumerate(listed)} if isinstance(listed, list | tuple) else {}
