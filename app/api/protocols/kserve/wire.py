"""The binary tensor data extension of HTTP: a JSON header, followed by the bytes of the tensors."""

import gzip
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, Field, ValidationError
from starlette.datastructures import Headers

from app.api.errors import explain_validation
from app.api.protocols.kserve.models import Model
from app.api.protocols.kserve.repository import VERSION, Inference
from app.api.protocols.kserve.tensors import BYTES, Tensor, from_raw, from_values
from app.api.request.body import Limit, load_json
from app.errors import BadParameter, BodyTooLarge, MalformedBody, Unsupported

LENGTH = "Inference-Header-Content-Length"
COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
_UNSUPPORTED = {"classification", "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"}
MAX_TENSORS, MAX_DIMENSIONS, MAX_PARAMETERS = 64, 100, 64
MAX_INFLATED_CHUNK = 1 << 20  # bytes

Length = Annotated[int, Field(ge=0, strict=True)]
Parameters = Annotated[dict[str, Any], Field(max_length=MAX_PARAMETERS)]


class InputHeader(BaseModel):
    name: str
    shape: Annotated[list[Length], Field(max_length=MAX_DIMENSIONS)]
    datatype: str
    parameters: Parameters = {}
    data: Any = None


class OutputHeader(BaseModel):
    name: str
    parameters: Parameters = {}


class Header(BaseModel):
    """The JSON header of a request."""

    id: str = ""
    inputs: Annotated[list[InputHeader], Field(max_length=MAX_TENSORS)]
    outputs: Annotated[list[OutputHeader], Field(max_length=MAX_TENSORS)] = []
    parameters: Parameters = {}


@dataclass(frozen=True, slots=True)
class InferRequest:
    """An inference request, and which of its outputs to send as bytes."""

    inference: Inference
    binary: dict[str, bool] = field(default_factory=dict)  # by output name
    binary_unless_said: bool = True  # for outputs not in `binary`


def parse(body: bytes, headers: Headers, model: Model[Any], limit: Limit) -> InferRequest:
    """Parse a request body. Without a JSON header the body is one image, for the image model.

    `limit` applies to the inflated body, whose bytes are counted too. Raises a RequestError or Overloaded.
    """
    inflated = _inflate(body, headers.get("content-encoding", "identity").strip().lower(), limit)
    return _parse(inflated, headers, model, limit)


def _parse(body: bytes | bytearray, headers: Headers, model: Model[Any], limit: Limit) -> InferRequest:
    length = headers.get(LENGTH, str(len(body)))
    if not length.isdecimal() or int(length) > len(body):
        raise BadParameter(f"{LENGTH}: {length!r} is not a length within the body of {len(body)} bytes")
    size = int(length)
    if size == 0 and body:
        return InferRequest(Inference([_only_element(body, model)]))
    header = _header(load_json(body[:size], limit.max_json_bytes))
    binary_unless_said = bool(header.parameters.pop("binary_data_output", False))
    inputs, rest = [], memoryview(body)[size:]
    for each in header.inputs:
        tensor, rest = _input(each, rest)
        inputs.append(tensor)
    if rest:
        raise BadParameter(f"unexpected additional input data for model {model.name!r}: {len(rest)} bytes")
    for output in header.outputs:
        _refuse_unsupported(output.name, output.parameters)
    outputs = [output.name for output in header.outputs]
    binary = {
        output.name: bool(output.parameters["binary_data"])
        for output in header.outputs
        if "binary_data" in output.parameters
    }
    return InferRequest(Inference(inputs, outputs, header.parameters, header.id), binary, binary_unless_said)


def encode(model: Model[Any], infer_request: InferRequest, outputs: Sequence[Tensor]) -> tuple[bytes, int | None]:
    """Return the response body, and the length of its JSON header, None if no bytes follow it."""
    described, raw = [], []
    for output in outputs:
        description: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
        if infer_request.binary.get(output.name, infer_request.binary_unless_said):
            raw.append(output.raw)
            description["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            description["data"] = output.values
        described.append(description)
    answer = {"model_name": model.name, "model_version": VERSION, "outputs": described}
    header = orjson.dumps(({"id": infer_request.inference.id} if infer_request.inference.id else {}) | answer)
    return b"".join([header, *raw]), len(header) if raw else None


def _inflate(body: bytes, encoding: str, limit: Limit) -> bytes | bytearray:
    if encoding == "identity":
        return body
    if encoding not in COMPRESS:
        raise Unsupported(f"Content-Encoding: {encoding!r} is not supported; use gzip or deflate")
    inflater = zlib.decompressobj(32 + zlib.MAX_WBITS)  # detects gzip or zlib by the first bytes
    inflated, rest = bytearray(), body
    while rest and not inflater.eof:
        try:
            piece = inflater.decompress(rest, MAX_INFLATED_CHUNK)
        except zlib.error as error:
            raise MalformedBody(f"the body is not {encoding}: {error}") from error
        rest = inflater.unconsumed_tail
        limit.share.add_bytes(len(piece))
        inflated += piece
        if len(inflated) > limit.max_bytes:
            raise BodyTooLarge(f"the body is larger than {limit.max_bytes} bytes when it is inflated")
    if not inflater.eof:
        raise MalformedBody(f"the {encoding} body is cut short")
    return inflated


def _only_element(body: bytes | bytearray, model: Model[Any]) -> Tensor:
    if model.input.datatype != BYTES:
        raise BadParameter(f"a body without a JSON header is one image, and model {model.name!r} takes tensors")
    return Tensor(model.input.name, BYTES, (1,), [bytes(body)])


def _header(given: Any) -> Header:
    try:
        return Header.model_validate(given)
    except ValidationError as error:
        raise explain_validation(error, whole_path=True) from error


def _input(header: InputHeader, rest: memoryview) -> tuple[Tensor, memoryview]:
    """Return the tensor, and `rest` without its bytes. Raises BadParameter or Unsupported."""
    _refuse_unsupported(header.name, header.parameters)
    size = header.parameters.get("binary_data_size")
    if (size is None) == (header.data is None):
        raise BadParameter(f"{header.name}: give its data, or the binary_data_size of its bytes behind the JSON")
    name, datatype, shape = header.name, header.datatype, tuple(header.shape)
    if header.data is not None:
        return from_values(name, datatype, shape, header.data), rest
    if not isinstance(size, int) or not 0 <= size <= len(rest):
        raise BadParameter(f"{name}: binary_data_size {size!r} is not a length within the {len(rest)} remaining bytes")
    return from_raw(name, datatype, shape, rest[:size]), rest[size:]


def _refuse_unsupported(name: str, parameters: dict[str, Any]) -> None:
    if requested := sorted(_UNSUPPORTED & parameters.keys()):
        raise Unsupported(f"{name}: {requested[0]} is not supported")
