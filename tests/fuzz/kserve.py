"""Malformed requests to /v2 and to gRPC: valid ones with one or more errors."""

import base64
import gzip
import json
import math
import zlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import grpc
import httpx
import numpy as np
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as messages

from fuzz.parts import IMAGES, JSON, WORDS, Draw, broken, damaged_images

SERVICE = "/inference.GRPCInferenceService/"
CALLS = {  # gRPC method -> type of the request
    "ServerLive": messages.ServerLiveRequest,
    "ServerReady": messages.ServerReadyRequest,
    "ServerMetadata": messages.ServerMetadataRequest,
    "ModelReady": messages.ModelReadyRequest,
    "ModelMetadata": messages.ModelMetadataRequest,
    "ModelConfig": messages.ModelConfigRequest,
    "ModelStatistics": messages.ModelStatisticsRequest,
    "RepositoryIndex": messages.RepositoryIndexRequest,
    "RepositoryModelLoad": messages.RepositoryModelLoadRequest,
    "RepositoryModelUnload": messages.RepositoryModelUnloadRequest,
    "SystemSharedMemoryStatus": messages.SystemSharedMemoryStatusRequest,
    "ModelInfer": messages.ModelInferRequest,
    "ModelStreamInfer": messages.ModelInferRequest,
}
LIMITS = {"max_tensor_bytes": 300_000, "max_body_bytes": 300_000}  # settings of the server
TOO_MANY = 400_000  # bytes
DEEP = [b"[" * 3000, b'{"inputs":' + b"[" * 500 + b"]" * 500 + b"}"]
DATATYPES = ["FP32", "FP16", "UINT8", "INT32", "BYTES", "FP64", "BOOL", "", "fp32", "\0"]
OUTPUTS = ["output0", "output1", "num_detections", "boxes", "scores", "masks", "keypoints", "corners", "x"]
SIZES = [-(2**63), -1, 0, 1, 3, 31, 32, 64, 2**31, 2**62, 2**63 - 1]
SHAPES = st.one_of(
    st.lists(st.sampled_from(SIZES), max_size=6),
    st.sampled_from([[0, 2**62], [0, 3, 2**31, 2**31], [2**32, 2**32], [1] * 9, [1, 3, 32], [0, 3, 32, 32]]),
)
ODD = st.one_of(JSON, st.sampled_from([2**70, -(2**70), 1e308, [[]] * 3, [[[[]]]]]))
PARAMETERS = st.dictionaries(
    st.sampled_from(
        [
            "conf",
            "iou",
            "max_det",
            "classes",
            "agnostic",
            "timeout",
            "priority",
            "binary_data_output",
            "sequence_id",
            "x",
        ]
    ),
    ODD,
    max_size=2,
)
OTHER_PATHS = [
    "",
    "/health/live",
    "/health/ready",
    "/models/stats",
    "/models/{model}",
    "/models/{model}/config",
    "/models/{model}/ready",
    "/models/{model}/stats",
    "/models/{model}_image/versions/1/config",
    "/repository/index",
    "/repository/models/{model}/load",
    "/repository/models/{model}/unload",
    "/logging",
    "/systemsharedmemory/region/x/register",
]


@st.composite
def tensors(draw: Draw, name: str) -> tuple[str, str, list[int], bytes]:
    """Draw name, datatype, shape and bytes of an input. In four of ten draws one of these is wrong."""
    if name == "image":
        elements = draw(st.lists(st.one_of(st.sampled_from(IMAGES), damaged_images()), min_size=1, max_size=2))
        raw = b"".join(len(each).to_bytes(4, "little") + each for each in elements)
        tensor = [name, "BYTES", [len(elements)], raw]
    else:
        datatype, itemsize = draw(st.sampled_from([("FP32", 4), ("FP16", 2), ("UINT8", 1)]))
        shape = [draw(st.integers(1, 2)), 3, *draw(st.sampled_from([(32, 32), (32, 64), (64, 64)]))]
        raw = np.random.default_rng(draw(st.integers(0, 9))).bytes(int(np.prod(shape)) * itemsize)
        tensor = [name, datatype, shape, raw]
    if (wrong := draw(st.integers(0, 9))) < 4:
        tensor[wrong] = draw((WORDS, st.sampled_from(DATATYPES), SHAPES, broken(tensor[3]))[wrong])
        tensor[3] = b"" if 0 in tensor[2] else tensor[3]
    return tuple(tensor)


def _or(draw: Draw, right: Any, wrong: st.SearchStrategy[Any]) -> Any:
    """Return `right`, or in one of eight draws a value of `wrong`."""
    return draw(wrong) if draw(st.integers(0, 7)) == 0 else right


@st.composite
def headers(draw: Draw, name: str) -> tuple[bytes, bytes]:
    """Draw the JSON of an inference and the binary tensors that follow it."""
    inputs, binary = [], b""
    for _ in range(_or(draw, 1, st.integers(0, 2))):
        tensor_name, datatype, shape, raw = draw(tensors(name))
        tensor: dict[str, Any] = {"name": tensor_name, "datatype": datatype, "shape": shape}
        if draw(st.integers(0, 3)) == 0:
            values = (
                [base64.b64encode(raw[4:]).decode()] if datatype == "BYTES" else list(raw[: max(math.prod(shape), 0)])
            )
            tensor["data"] = _or(draw, values, ODD)
        else:
            size = _or(draw, len(raw), st.sampled_from([0, -1, 2**63, "1", len(raw) + 1]))
            tensor["parameters"] = _or(draw, {}, st.dictionaries(WORDS, ODD, max_size=1)) | {"binary_data_size": size}
            binary += raw
        if draw(st.integers(0, 9)) == 0:
            tensor[draw(st.sampled_from([*tensor]))] = draw(ODD)
        inputs.append(tensor)
    outputs = st.lists(st.sampled_from(OUTPUTS), max_size=2)
    header: Any = {"inputs": inputs, "parameters": _or(draw, {}, PARAMETERS)}
    header["outputs"] = [{"name": output} for output in _or(draw, [], outputs)]
    if draw(st.integers(0, 9)) == 0:
        header[draw(st.sampled_from([*header, "id"]))] = draw(ODD)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return _or(draw, text, st.one_of(broken(text), st.sampled_from(DEEP))), binary


@st.composite
def bodies(draw: Draw, name: str) -> tuple[bytes, dict[str, str]]:
    """Draw the body of an inference and its headers."""
    text, binary = draw(headers(name))
    body = text + binary + _or(draw, b"", st.sampled_from([b"", b"more", bytes(TOO_MANY)]))
    length = _or(draw, str(len(text)), st.sampled_from(["0", "-1", "x", "9" * 40, str(len(text) - 1), "\xb2"]))
    http_headers = {"Inference-Header-Content-Length": length}
    if encoding := _or(draw, "", st.sampled_from(["gzip", "deflate", "br"])):
        http_headers["Content-Encoding"] = encoding
        packed = zlib.compress(body) if encoding == "deflate" else gzip.compress(body)
        body = _or(draw, packed, st.one_of(broken(packed), st.just(body)))
    return body, http_headers


@st.composite
def requests(draw: Draw, model: str) -> httpx.Request:
    """Draw a request to /v2."""
    if draw(st.integers(0, 5)) == 0:
        path = draw(st.sampled_from(OTHER_PATHS)).format(model=_or(draw, model, st.sampled_from(["x", "%00", "stats"])))
        method = "POST" if "/repository/" in path else "GET"
        body, http_headers = json.dumps(draw(ODD)).encode("utf-8", "ignore"), dict[str, str]()
    else:
        model_name, name = draw(st.sampled_from([(model, "images"), (f"{model}_image", "image")]))
        version = _or(draw, "", st.sampled_from(["/versions/1", "/versions/x"]))
        method, path = "POST", f"/models/{_or(draw, model_name, WORDS)}{version}/infer"
        body, http_headers = draw(bodies(name))
    method = _or(draw, method, st.sampled_from(["GET", "PUT", "OPTIONS", "POST"]))
    http_headers |= _or(draw, {}, st.sampled_from([{"X-Deadline-Ms": "x"}, {"Accept-Encoding": "gzip"}]))
    encoded = [(name, value.encode("latin-1")) for name, value in http_headers.items()]
    url = httpx.URL("http://server").copy_with(raw_path=quote(f"/v2{path}", errors="replace").encode())
    return httpx.Request(method, url, headers=encoded, content=body)


@st.composite
def calls(draw: Draw, model: str) -> tuple[str, list[bytes]]:
    """Draw a gRPC method and its messages: one, or up to three of a stream."""
    method = draw(st.sampled_from([*CALLS] + ["ModelInfer"] * 20 + ["ModelStreamInfer"] * 2))
    sent = []
    for _ in range(draw(st.integers(0, 3)) if method == "ModelStreamInfer" else 1):
        kind = CALLS[method]
        message = draw(inferences(model)) if kind is messages.ModelInferRequest else _with_model(kind, model)
        data = message.SerializeToString()
        sent.append(_or(draw, data, broken(data)))
    return method, sent


def _with_model(kind: Any, model: str) -> Any:
    fields = {"name", "model_name"}.intersection(kind.DESCRIPTOR.fields_by_name)
    return kind(**dict.fromkeys(fields, model))


@st.composite
def inferences(draw: Draw, model: str) -> Any:
    """Draw a message of usually one input, with raw or typed contents, sometimes of another datatype."""
    model_name, name = draw(st.sampled_from([(model, "images"), (f"{model}_image", "image")]))
    message = messages.ModelInferRequest(model_name=_or(draw, model_name, st.sampled_from(["x", ""])), id="\u00fc")
    for _ in range(_or(draw, 1, st.integers(0, 2))):
        tensor_name, datatype, shape, raw = draw(tensors(name))
        tensor = message.inputs.add(name=tensor_name.encode("utf-8", "ignore").decode(), datatype=datatype, shape=shape)
        if draw(st.integers(0, 3)) == 0:
            right = {"BYTES": "bytes_contents", "UINT8": "uint_contents"}.get(datatype, "fp32_contents")
            contents = _or(draw, right, st.sampled_from(["int_contents", "bytes_contents", "fp64_contents"]))
            getattr(tensor.contents, contents).extend([raw] if contents == "bytes_contents" else list(raw))
        else:
            message.raw_input_contents.append(raw)
    for parameter in _or(draw, {}, PARAMETERS):
        kind = draw(st.sampled_from(["string_param", "bool_param", "double_param", "int64_param", "uint64_param"]))
        value = {"string_param": "0.5", "bool_param": True, "double_param": float("nan")}.get(kind, 7)
        setattr(message.parameters[parameter], kind, value)
    for output in _or(draw, [], st.lists(st.sampled_from(OUTPUTS), max_size=2)):
        message.outputs.add(name=output)
    message.raw_input_contents.extend(_or(draw, [], st.sampled_from([[], [b""], [bytes(TOO_MANY)]])))
    return message


def send(channel: grpc.Channel, method: str, sent: list[bytes]) -> list[str]:
    """Return the status of the call, or one status for each response of a stream.

    Sends again if the server has just closed the idle connection, like a client that expects this.
    """
    statuses = _send_once(channel, method, sent)
    return _send_once(channel, method, sent) if statuses == ["connection idle"] else statuses


def _send_once(channel: grpc.Channel, method: str, sent: list[bytes]) -> list[str]:
    identity = {"request_serializer": bytes, "response_deserializer": bytes}
    try:
        if method != "ModelStreamInfer":
            channel.unary_unary(SERVICE + method, **identity)(sent[0], timeout=30)
            return ["OK"]
        return [*_answers(channel.stream_stream(SERVICE + method, **identity)(iter(sent), timeout=30))]
    except grpc.RpcError as error:
        return ["connection idle" if "connection idle" in (error.details() or "") else error.code().name]


def _answers(stream: Any) -> Iterator[str]:
    for data in stream:
        answer = messages.ModelStreamInferResponse.FromString(data)
        yield "error in a stream" if answer.error_message else "OK"
