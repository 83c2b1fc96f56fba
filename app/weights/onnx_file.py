"""Reads ONNX files without the onnx package: the metadata, the input size and the names of external data files.

Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from app.model import Shape
from app.weights import metadata

_VARINT, _LENGTH = 0, 2
_WIDTHS = {1: 8, 5: 4}  # wire type -> bytes, for the other types


@dataclass(frozen=True, slots=True)
class OnnxFile:
    """The contents of an ONNX file that are needed to identify it."""

    facts: dict[str, str]  # its metadata
    sides: tuple[int, ...]  # height and width of the input, px; 0 = dynamic
    data: dict[str, int]  # external data file, as named in the model -> its minimum size in bytes

    @property
    def shape(self) -> Shape | None:
        """Height and width of the frames, px; None if they are dynamic."""
        return (self.sides[0], self.sides[1]) if len(self.sides) == 2 and all(self.sides) else None

    @property
    def imgsz(self) -> int:
        """The longest side of the frames, px."""
        return max(self.shape) if self.shape else metadata.largest(self.facts.get("imgsz"), metadata.IMGSZ)

    @property
    def classifies(self) -> bool:
        """True for classification models."""
        return self.facts.get("task") == "classify"


def read(path: Path) -> OnnxFile:
    """Read an ONNX file. Raises ValueError if it is cut short or not an ONNX file."""
    with path.open("rb") as file:
        return _model(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))


def _model(content: memoryview) -> OnnxFile:
    facts, data, graphs = dict[str, str](), dict[str, int](), 0
    sides: tuple[int, ...] = ()
    for number, value in _fields(content):
        if number == 14:
            key, text = _pair(value)
            facts[key] = text
        elif number == 7:
            graphs += 1
            sides = _sides(value)
            for name, size in _locations(value):
                data[name] = max(size, data.get(name, 0))
    if graphs != 1:
        raise ValueError("it has no graph")
    return OnnxFile(facts, sides, data)


def _fields(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and content of each field; the content of a varint is its encoded bytes. Raises ValueError."""
    at, end = 0, len(content)
    while at < end:
        key, at = _varint(content, at)
        if key & 7 == _VARINT:
            start = at
            _, at = _varint(content, at)
        else:
            size, at = _varint(content, at) if key & 7 == _LENGTH else (_WIDTHS.get(key & 7, end + 1), at)
            start, at = at, at + size
        if at > end or not key >> 3:
            raise ValueError("it ends too early or is not an ONNX file")
        yield key >> 3, content[start:at]


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(content) and shift < 64:
        byte = content[at]
        value |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
        if byte < 128:
            return value, at
    raise ValueError("it ends too early or is not an ONNX file")


def _all(content: memoryview, *numbers: int) -> Iterator[memoryview]:
    """Yield the fields at a path of field numbers: each number is inside of the one before."""
    first, *rest = numbers
    for number, value in _fields(content):
        if number == first:
            yield from _all(value, *rest) if rest else (value,)


def _pair(content: memoryview) -> tuple[str, str]:
    found = {number: bytes(value).decode("utf-8", "replace") for number, value in _fields(content)}
    return found.get(1, ""), found.get(2, "")


def _sides(graph: memoryview) -> tuple[int, ...]:
    """Return height and width of the first input; 0 for a dynamic size."""
    for source in _all(graph, 11):
        dims = list(_all(source, 2, 1, 2, 1))
        return tuple(next((_varint(size, 0)[0] for size in _all(dim, 1)), 0) for dim in dims[2:])
    return ()


def _locations(graph: memoryview) -> Iterator[tuple[str, int]]:
    """Yield the external data file and its minimum size in bytes for each tensor of the graph that has one."""
    for tensor in (*_all(graph, 5), *_all(graph, 15, 1), *_all(graph, 15, 2), *_all(graph, 1, 5, 5)):
        entries = dict(map(_pair, _all(tensor, 13)))
        if location := entries.get("location"):
            yield location, int(entries.get("offset") or 0) + int(entries.get("length") or 0)
