"""Converts tensors between NumPy and their bytes or JSON on the wire."""

import base64
import binascii
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import BadParameter

BYTES = "BYTES"
MAX_DIMENSIONS = 8
MAX_VALUES = 2**40  # so that NumPy can count the bytes; dimensions of 0 count as 1
DTYPES: dict[str, np.dtype[Any]] = {
    "FP32": np.dtype("<f4"),
    "FP16": np.dtype("<f2"),
    "UINT8": np.dtype("u1"),
    "INT32": np.dtype("<i4"),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor. `data` is an array of that shape, or for BYTES a list of the elements."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: NDArray[Any] | list[bytes]

    @classmethod
    def of(cls, name: str, data: NDArray[Any]) -> "Tensor":
        """Return a tensor of an array of numbers, or of an object array of bytes."""
        if data.dtype.kind == "O":
            return cls(name, BYTES, data.shape, data.ravel().tolist())
        datatype = next(known for known, dtype in DTYPES.items() if dtype == data.dtype)
        return cls(name, datatype, data.shape, data)

    @property
    def numbers(self) -> NDArray[Any]:
        """The array. Raises BadParameter for BYTES."""
        if isinstance(self.data, list):
            raise BadParameter(f"{self.name}: {BYTES} where numbers are expected")
        return self.data

    @property
    def elements(self) -> list[bytes]:
        """The list of elements. Raises BadParameter for numbers."""
        if not isinstance(self.data, list):
            raise BadParameter(f"{self.name}: {self.datatype} where {BYTES} are expected")
        return self.data

    @property
    def size(self) -> int:
        """Approximate size in bytes."""
        return sum(map(len, self.data)) if isinstance(self.data, list) else self.data.nbytes

    @property
    def raw(self) -> bytes:
        """The bytes that `from_raw` reads."""
        if isinstance(self.data, list):
            return b"".join(len(element).to_bytes(4, "little") + element for element in self.data)
        return self.data.tobytes()

    @property
    def values(self) -> list[Any]:
        """A flat list for JSON; elements of BYTES as str."""
        if isinstance(self.data, list):
            return [element.decode() for element in self.data]
        values: list[Any] = self.data.ravel().tolist()
        return values


def from_raw(name: str, datatype: str, shape: tuple[int, ...], raw: bytes | memoryview) -> Tensor:
    """Return a tensor of little-endian numbers, not copied, or of BYTES elements, each after its length in 4 bytes.

    Raises BadParameter for an unsupported datatype, and if the size does not match the shape.
    """
    count = _count(name, shape)
    if datatype == BYTES:
        return from_elements(name, shape, _split(name, memoryview(raw)))
    dtype = _dtype(name, datatype)
    if len(raw) != count * dtype.itemsize:
        expected = f"{datatype} of shape {list(shape)} is {count * dtype.itemsize} bytes"
        raise BadParameter(f"{name}: {expected}, and there are {len(raw)}")
    return Tensor(name, datatype, shape, np.frombuffer(raw, dtype).reshape(shape))


def from_values(name: str, datatype: str, shape: tuple[int, ...], values: Any) -> Tensor:
    """Return a tensor of numbers in lists, nested or flat, or of elements in base64. Raises BadParameter."""
    count = _count(name, shape)
    if datatype == BYTES:
        texts = np.array(values, object).ravel().tolist()
        return from_elements(name, shape, [_decode(name, text) for text in texts])
    dtype = _dtype(name, datatype)
    try:
        with np.errstate(over="ignore"):  # values too large for FP16 become infinite
            data = np.array(values, dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadParameter(f"{name}: data is not a list of {datatype}: {error}") from error
    if data.size != count:
        raise BadParameter(f"{name}: shape {list(shape)} is {count} values, and there are {data.size}")
    return Tensor(name, datatype, shape, data.reshape(shape))


def from_elements(name: str, shape: tuple[int, ...], elements: list[bytes]) -> Tensor:
    """Return a tensor of BYTES. Raises BadParameter if the number of elements does not match the shape."""
    if len(elements) != _count(name, shape):
        raise BadParameter(f"{name}: shape {list(shape)} is {math.prod(shape)} elements, and there are {len(elements)}")
    return Tensor(name, BYTES, shape, elements)


def _count(name: str, shape: tuple[int, ...]) -> int:
    if len(shape) > MAX_DIMENSIONS or min(shape, default=0) < 0 or math.prod(side or 1 for side in shape) > MAX_VALUES:
        raise BadParameter(f"{name}: shape {list(shape)} is not a valid tensor shape")
    return math.prod(shape)


def _dtype(name: str, datatype: str) -> np.dtype[Any]:
    if datatype not in DTYPES:
        raise BadParameter(f"{name}: datatype {datatype!r} is not supported; use {', '.join(DTYPES)} or {BYTES}")
    return DTYPES[datatype]


def _split(name: str, raw: memoryview) -> list[bytes]:
    elements, at = list[bytes](), 0
    while at < len(raw):
        begins = at + 4
        at = begins + int.from_bytes(raw[at:begins], "little")
        if begins > len(raw) or at > len(raw):
            raise BadParameter(f"{name}: element {len(elements)} is cut short; its length in 4 bytes comes first")
        elements.append(bytes(raw[begins:at]))
    return elements


def _decode(name: str, text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise BadParameter(f"{name}: in JSON an element must be a base64 string") from error
