"""Conversion of bytes and JSON to tensors."""

import base64

import numpy as np
import pytest

from app.api.protocols.kserve.tensors import Tensor, from_raw, from_values
from app.errors import BadParameter

VALUES = np.arange(6, dtype=np.int32).reshape(2, 3)


@pytest.mark.parametrize("dtype", ["FP32", "FP16", "UINT8", "INT32"])
def test_numbers_are_the_same_from_bytes_and_from_json(dtype):
    data = VALUES.astype({"FP32": "<f4", "FP16": "<f2", "UINT8": "u1", "INT32": "<i4"}[dtype])
    for tensor in (
        from_raw("x", dtype, (2, 3), data.tobytes()),
        from_values("x", dtype, (2, 3), VALUES.ravel().tolist()),
        from_values("x", dtype, (2, 3), VALUES.tolist()),
    ):
        assert tensor.numbers.dtype == data.dtype
        np.testing.assert_array_equal(tensor.numbers, data)
    assert Tensor.of("x", data).datatype == dtype


def test_numbers_from_the_body_are_not_copied():
    body = bytearray(VALUES.tobytes())
    tensor = from_raw("x", "INT32", (2, 3), memoryview(body))
    body[0] = 7
    assert tensor.numbers[0, 0] == 7


def test_elements_are_the_same_from_bytes_and_from_json():
    elements = [b"", b"\xff\xd8", b"abc" * 1000]
    raw = b"".join(len(element).to_bytes(4, "little") + element for element in elements)
    texts = [base64.b64encode(element).decode() for element in elements]
    assert from_raw("x", "BYTES", (3,), raw).elements == elements
    assert from_values("x", "BYTES", (3, 1), [[text] for text in texts]).elements == elements


@pytest.mark.parametrize("data", [VALUES, np.array([[b"a", b""], [b"bcd", b"{}"]], object)])
def test_outputs_survive_a_round_trip_through_bytes_and_json(data):
    tensor = Tensor.of("x", data)
    again = from_raw("x", tensor.datatype, tensor.shape, tensor.raw)
    np.testing.assert_array_equal(again.data, tensor.data)
    texts = [text.encode() if isinstance(text, str) else text for text in tensor.values]
    np.testing.assert_array_equal(texts, data.ravel())


@pytest.mark.parametrize("raw", [b"\x03", b"\x03\0\0\0ab", b"\xff\xff\xff\xffab", b"\0\0\0\0", b"\0" * 12])
def test_elements_that_do_not_match_their_bytes_or_count_are_refused(raw):
    with pytest.raises(BadParameter, match="x: "):
        from_raw("x", "BYTES", (2,), raw)


def deep(levels: int) -> list:
    return [deep(levels - 1)] if levels else []


@pytest.mark.parametrize("values", [["?"], [1], [None], [["AA=="], ["AA==", "AA=="]], "A", {}, deep(200)])
def test_elements_in_json_that_are_not_base64_are_refused(values):
    with pytest.raises(BadParameter, match="base64"):
        from_values("x", "BYTES", (1,), values)


@pytest.mark.parametrize("shape", [(0, 2**62), (2**63 - 1, 0), (0, 3, 2**32, 2**32), (1,) * 9, (0, -1)])
def test_an_invalid_shape_is_refused_even_without_values(shape):
    for make in (lambda: from_raw("x", "FP32", shape, b""), lambda: from_values("x", "FP32", shape, [])):
        with pytest.raises(BadParameter, match="is not a valid tensor shape"):
            make()


def test_numbers_in_json_beyond_the_range_become_infinite():
    assert from_values("x", "FP16", (2,), [2**70, -1e308]).numbers.tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize("values", [[1, "a"], [None], {}, "a", [300], [-1], deep(200)])
def test_values_in_json_that_are_not_numbers_are_refused(values):
    with pytest.raises(BadParameter, match="not a list of UINT8"):
        from_values("x", "UINT8", (1,), values)


def test_numbers_and_elements_are_not_interchangeable():
    with pytest.raises(BadParameter, match="BYTES where numbers"):
        _ = from_values("x", "BYTES", (1,), ["AA=="]).numbers
    with pytest.raises(BadParameter, match="FP32 where BYTES"):
        _ = from_values("x", "FP32", (1,), [1]).elements
