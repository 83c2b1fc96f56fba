"""Limits for a gRPC inference message, checked before it is parsed: a field of 2 bytes takes 100 once parsed."""

from collections.abc import Iterator

from app.errors import BadParameter, MalformedBody

MAX_FIELDS = 2_000  # a message of 64 images has a few hundred
MAX_SHAPE = 1024  # bytes
_PARAMETERS, _INPUTS, _OUTPUTS, _RAW = 4, 5, 6, 7  # of ModelInferRequest
_SHAPE, _CONTENTS = 3, 5  # of InferInputTensor
_BYTES = 8  # field of InferTensorContents with images; its other fields hold numbers


def split(message: bytes, max_numbers: int) -> tuple[bytes, list[memoryview]]:
    """Return the message without its raw_input_contents, and the raw_input_contents, which are not copied.

    Raises MalformedBody if it has over MAX_FIELDS fields, BadParameter if over `max_numbers` bytes of typed numbers.
    """
    count = numbers = 0
    small, raw = list[memoryview](), list[memoryview]()

    def counted_fields(view: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
        nonlocal count
        for each in _fields(view):
            count += 1
            if count > MAX_FIELDS:
                raise MalformedBody(f"the message has more than {MAX_FIELDS} fields")
            yield each

    for number, field, value in counted_fields(memoryview(message)):
        (raw if number == _RAW else small).append(value if number == _RAW else field)
        if number not in (_PARAMETERS, _INPUTS, _OUTPUTS):
            continue
        for part, _, content in counted_fields(value):
            if number != _INPUTS:
                continue
            if part == _SHAPE and len(content) > MAX_SHAPE:
                raise BadParameter("the shape of an input has too many dimensions")
            if part == _CONTENTS:
                numbers += sum(len(each) for kind, _, each in counted_fields(content) if kind != _BYTES)
    if numbers > max_numbers:
        raise BadParameter(f"contents hold more than {max_numbers} bytes of numbers: send them as raw_input_contents")
    return b"".join(small), raw


def _fields(view: memoryview) -> Iterator[tuple[int, memoryview, memoryview]]:
    """Yield number, all bytes and content of each field (https://protobuf.dev/programming-guides/encoding).

    Raises MalformedBody if it cannot be decoded.
    """
    at, size = 0, len(view)
    while at < size:
        start = at
        tag, at = _varint(view, at)
        begins = at
        match tag & 7:
            case 0:
                _, at = _varint(view, at)
            case 1:
                at += 8
            case 2:
                length, begins = _varint(view, at)
                at = begins + length
            case 5:
                at += 4
            case _:
                raise MalformedBody("the message is not a ModelInferRequest")
        if at > size:
            raise MalformedBody("the message is not a ModelInferRequest: it is cut short")
        yield tag >> 3, view[start:at], view[begins:at]


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """Return the number and the position after it. Raises MalformedBody if it does not end within 10 bytes."""
    value = 0
    for shift, byte in enumerate(view[at : at + 10]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, at + shift + 1
    raise MalformedBody("the message is not a ModelInferRequest")
