"""Converts messages of Triton's client package to the models' requests, and outputs to messages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as messages

from app.api.protocols.kserve.bounds import split
from app.api.protocols.kserve.models import Model
from app.api.protocols.kserve.repository import VERSION, Inference
from app.api.protocols.kserve.tensors import BYTES, Tensor, from_elements, from_raw, from_values
from app.errors import BadParameter, MalformedBody

_CONTENTS = {"FP32": "fp32_contents", "UINT8": "uint_contents"}


def read(kind: Any, data: bytes) -> Any:
    """Parse a message of class `kind`. Raises MalformedBody if `data` is not one."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise MalformedBody(f"the message is not a {kind.DESCRIPTOR.name}") from error


@dataclass(frozen=True, slots=True)
class InferRequest:
    """The content of a ModelInferRequest."""

    model: str
    version: str
    id: str
    inference: Inference


def read_request(data: bytes, max_numbers: int) -> InferRequest:
    """Parse a ModelInferRequest. Raises BadParameter, or MalformedBody if it is not one or has too many fields."""
    small, raw = split(data, max_numbers)
    request = read(messages.ModelInferRequest, small)
    return InferRequest(request.model_name, request.model_version, request.id, read_inference(request, raw))


def read_inference(request: Any, raw: Sequence[bytes | memoryview]) -> Inference:
    """Return the inference; `raw` has the raw_input_contents. Raises BadParameter if the inputs do not fit."""
    if raw and len(raw) != len(request.inputs):
        raise BadParameter(f"raw_input_contents has {len(raw)} entries for {len(request.inputs)} inputs")
    inputs = [
        from_raw(each.name, each.datatype, tuple(each.shape), raw[i]) if raw else _typed(each)
        for i, each in enumerate(request.inputs)
    ]
    parameters = {name: _value(parameter) for name, parameter in request.parameters.items()}
    return Inference(inputs, [output.name for output in request.outputs], parameters, request.id)


def _typed(given: Any) -> Tensor:
    """Return the tensor of an input with its values in `contents`. Raises BadParameter."""
    name, shape, contents = given.name, tuple(given.shape), given.contents
    if given.datatype == BYTES:
        return from_elements(name, shape, list(contents.bytes_contents))
    if given.datatype not in _CONTENTS:
        raise BadParameter(f"{name}: {given.datatype} must be sent as raw_input_contents")
    return from_values(name, given.datatype, shape, list(getattr(contents, _CONTENTS[given.datatype])))


def _value(parameter: Any) -> Any:
    return getattr(parameter, parameter.WhichOneof("parameter_choice") or "bool_param")


def write_response(model: Model[Any], request_id: str, outputs: list[Tensor]) -> Any:
    described = [{"name": output.name, "datatype": output.datatype, "shape": output.shape} for output in outputs]
    raw = [output.raw for output in outputs]
    return messages.ModelInferResponse(
        model_name=model.name, model_version=VERSION, id=request_id, outputs=described, raw_output_contents=raw
    )
