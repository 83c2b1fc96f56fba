"""Limits of a gRPC message with many small fields, checked before it is parsed."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as messages

from app.api.protocols.kserve.bounds import MAX_FIELDS, split
from app.errors import BadParameter, MalformedBody


def request(**fields: object) -> messages.ModelInferRequest:
    return messages.ModelInferRequest(model_name="pets", **fields)


def input_of(**contents: object) -> messages.ModelInferRequest.InferInputTensor:
    return messages.ModelInferRequest.InferInputTensor(name="images", shape=[1, 3, 64, 64], contents=contents)


def test_a_valid_message_passes():
    images = [messages.ModelInferRequest.InferInputTensor(name=f"images{i}", shape=[1, 3, 64, 64]) for i in range(64)]
    valid = request(inputs=images, raw_input_contents=[b"x" * 100_000] * 64, parameters={})
    split(valid.SerializeToString(), 0)
    split(request(inputs=[input_of(bytes_contents=[b"x" * 100_000] * 64)]).SerializeToString(), 0)
    split(request(inputs=[input_of(fp32_contents=[0.5] * 100)]).SerializeToString(), 400)


@pytest.mark.parametrize(
    "message",
    [
        request(inputs=[messages.ModelInferRequest.InferInputTensor()] * MAX_FIELDS),
        request(raw_input_contents=[b""] * MAX_FIELDS),
        request(outputs=[messages.ModelInferRequest.InferRequestedOutputTensor()] * MAX_FIELDS),
        request(inputs=[input_of(bytes_contents=[b""] * MAX_FIELDS)]),
        request(parameters={str(i): messages.InferParameter(bool_param=True) for i in range(MAX_FIELDS)}),
    ],
    ids=["inputs", "raw contents", "outputs", "elements", "parameters"],
)
def test_a_message_over_max_fields_is_refused(message):
    with pytest.raises(MalformedBody, match=f"more than {MAX_FIELDS} fields"):
        split(message.SerializeToString(), 1 << 30)


def test_the_number_of_values_in_typed_contents_is_limited():
    message = request(inputs=[input_of(uint_contents=[1] * 500), input_of(uint_contents=[1] * 501)])
    with pytest.raises(BadParameter, match="raw_input_contents"):
        split(message.SerializeToString(), 1000)


def test_a_long_shape_is_refused():
    shape = messages.ModelInferRequest.InferInputTensor(name="images", shape=[1] * 2000)
    with pytest.raises(BadParameter, match="shape"):
        split(request(inputs=[shape]).SerializeToString(), 0)


@given(st.binary(max_size=300))
def test_any_bytes_pass_or_raise_malformed_body_or_bad_parameter(data):
    try:
        split(data, 100)
    except (MalformedBody, BadParameter):
        return
    try:
        messages.ModelInferRequest.FromString(data)
    except DecodeError:
        return


def test_raw_contents_are_split_off_and_not_copied():
    whole = request(id="7", raw_input_contents=[b"abc", b"defg"]).SerializeToString()
    small, raw = split(whole, 0)
    assert messages.ModelInferRequest.FromString(small) == request(id="7")
    assert [bytes(each) for each in raw] == [b"abc", b"defg"]
    assert all(each.obj is whole for each in raw)
