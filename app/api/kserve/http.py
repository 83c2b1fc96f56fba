"""/v2 over HTTP, with the binary extension: a JSON header, and behind it the bytes of the tensors."""

import gzip
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field, ValidationError
from starlette.datastructures import Headers

from app.api.body import LONG_BYTES, Limit, load_json, on_parser, read_body
from app.api.disconnect import unless_gone
from app.api.door import admit, arrival, body_limit, door, small_limit, spoken
from app.api.errors import explain_validation
from app.api.exchange import Exchange
from app.api.keys import described, require_key
from app.api.kserve.models import Model
from app.api.kserve.repository import VERSION, Inference, Repository
from app.api.kserve.tensors import BYTES, Tensor, from_raw, from_values
from app.api.service import Service
from app.errors import BadParameter, BodyTooLarge, MalformedBody, Unsupported, YolopardError

PROTOCOL = "kserve"
_LENGTH = "Inference-Header-Content-Length"
_COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
_ELSEWHERE = {"classification", "shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"}
_OPENAPI: dict[str, Any] = {"requestBody": {"content": {"application/json": {}, "application/octet-stream": {}}}}

MAX_TENSORS, MAX_SIDES, MAX_PARAMETERS = 64, 100, 64
INFLATED_AT_A_TIME = 1 << 20
MAX_JSON_VALUES = 2_000_000  # in an answer

Length = Annotated[int, Field(ge=0, strict=True)]
Parameters = Annotated[dict[str, Any], Field(max_length=MAX_PARAMETERS)]


class InputHeader(BaseModel):
    name: str
    shape: Annotated[list[Length], Field(max_length=MAX_SIDES)]
    datatype: str
    parameters: Parameters = {}
    data: Any = None


class OutputHeader(BaseModel):
    name: str
    parameters: Parameters = {}


class Header(BaseModel):
    """The JSON of a request."""

    id: str = ""
    inputs: Annotated[list[InputHeader], Field(max_length=MAX_TENSORS)]
    outputs: Annotated[list[OutputHeader], Field(max_length=MAX_TENSORS)] = []
    parameters: Parameters = {}


@dataclass(frozen=True, slots=True)
class Question:
    """A request, and which of its outputs come as bytes."""

    inference: Inference
    binary: dict[str, bool] = field(default_factory=dict)  # by output
    binary_unless_said: bool = True


def parse(body: bytes, headers: Headers, model: Model[Any], limit: Limit) -> Question:
    """The request in a body; of one without a JSON header, which the image model takes, the body is the one image.

    The limit is that of the body when it is inflated, which is counted too. Raises a RequestError or Overloaded.
    """
    body = _inflate(body, headers.get("content-encoding", "identity").strip().lower(), limit)
    length = headers.get(_LENGTH, str(len(body)))
    if not length.isdecimal() or int(length) > len(body):
        raise BadParameter(f"{_LENGTH}: {length!r} is no length within the body, which has {len(body)} bytes")
    size = int(length)
    if size == 0 and body:
        return Question(Inference([_only_element(body, model)]))
    header = _header(load_json(body[:size], limit.max_json_bytes))
    binary_unless_said = bool(header.parameters.pop("binary_data_output", False))
    inputs, rest = [], memoryview(body)[size:]
    for each in header.inputs:
        tensor, rest = _input(each, rest)
        inputs.append(tensor)
    if rest:
        raise BadParameter(f"unexpected additional input data for model {model.name!r}: {len(rest)} bytes")
    for output in header.outputs:
        _refuse_elsewhere(output.name, output.parameters)
    outputs = [output.name for output in header.outputs]
    binary = {
        output.name: bool(output.parameters["binary_data"])
        for output in header.outputs
        if "binary_data" in output.parameters
    }
    return Question(Inference(inputs, outputs, header.parameters, header.id), binary, binary_unless_said)


def encode(model: Model[Any], question: Question, outputs: Sequence[Tensor]) -> tuple[bytes, int | None]:
    """The body of the answer, and the length of its JSON if bytes follow."""
    described, raw = [], []
    for output in outputs:
        said: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": output.shape}
        if question.binary.get(output.name, question.binary_unless_said):
            raw.append(output.raw)
            said["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            said["data"] = output.values
        described.append(said)
    answer = {"model_name": model.name, "model_version": VERSION, "outputs": described}
    header = orjson.dumps(({"id": question.inference.id} if question.inference.id else {}) | answer)
    return b"".join([header, *raw]), len(header) if raw else None


def _inflate(body: bytes, encoding: str, limit: Limit) -> bytes:
    if encoding == "identity":
        return body
    if encoding not in _COMPRESS:
        raise Unsupported(f"Content-Encoding: {encoding!r} is not read here; gzip and deflate are")
    inflater = zlib.decompressobj(32 + zlib.MAX_WBITS)  # either, by its first bytes
    inflated, rest = bytearray(), body
    while rest and not inflater.eof:
        try:
            piece = inflater.decompress(rest, INFLATED_AT_A_TIME)
        except zlib.error as error:
            raise MalformedBody(f"the body is not {encoding}: {error}") from error
        rest = inflater.unconsumed_tail
        limit.share.add_bytes(len(piece))
        inflated += piece
        if len(inflated) > limit.max_bytes:
            raise BodyTooLarge(f"the body is larger than {limit.max_bytes} bytes when it is inflated")
    if not inflater.eof:
        raise MalformedBody(f"the {encoding} body is cut short")
    return bytes(inflated)


def _only_element(body: bytes, model: Model[Any]) -> Tensor:
    if model.input.datatype != BYTES:
        raise BadParameter(f"a body without a JSON header is one image, and model {model.name!r} takes tensors")
    return Tensor(model.input.name, BYTES, (1,), [body])


def _header(given: Any) -> Header:
    try:
        return Header.model_validate(given)
    except ValidationError as error:
        raise explain_validation(error, whole_path=True) from error


def _input(header: InputHeader, rest: memoryview) -> tuple[Tensor, memoryview]:
    """The tensor, and what follows its bytes."""
    _refuse_elsewhere(header.name, header.parameters)
    size = header.parameters.get("binary_data_size")
    if (size is None) == (header.data is None):
        raise BadParameter(f"{header.name}: give its data, or the binary_data_size of its bytes behind the JSON")
    name, datatype, shape = header.name, header.datatype, tuple(header.shape)
    if header.data is not None:
        return from_values(name, datatype, shape, header.data), rest
    if not isinstance(size, int) or not 0 <= size <= len(rest):
        raise BadParameter(f"{name}: binary_data_size {size!r} is no length within the {len(rest)} bytes that are left")
    return from_raw(name, datatype, shape, rest[:size]), rest[size:]


def _refuse_elsewhere(name: str, parameters: dict[str, Any]) -> None:
    if asked := sorted(_ELSEWHERE & parameters.keys()):
        raise Unsupported(f"{name}: {asked[0]} is not offered here")


def shape(error: YolopardError, request_id: str) -> tuple[int, dict[str, Any]]:
    """Triton's, which calls whatever the client did wrong a bad request."""
    return {415: 400, 422: 400}.get(error.status, error.status), {"error": str(error)}


def routes(service: Service, models: Repository) -> APIRouter:
    """Everything under /v2."""
    settings = service.settings

    def key(request: Request) -> None:
        require_key(settings.api_keys, request.headers)

    keyed = [Depends(key), *described(settings.api_keys)]
    health = APIRouter(tags=[PROTOCOL], route_class=spoken(PROTOCOL, shape))
    facts = APIRouter(tags=[PROTOCOL], route_class=spoken(PROTOCOL, shape), dependencies=keyed)
    images = APIRouter(
        tags=[PROTOCOL], route_class=door(service, PROTOCOL, shape), dependencies=described(settings.api_keys)
    )

    @facts.get("/v2", summary="What this server is")
    async def server() -> dict[str, Any]:
        return models.server()

    @health.get("/v2/health/live", summary="The process answers")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @health.get("/v2/health/ready", summary="Images are answered")
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    @facts.post("/v2/repository/index", summary="The models")
    async def index() -> list[dict[str, str]]:
        return models.index()

    @facts.post("/v2/repository/models/{model}/load", summary="Only confirms: models do not change")
    async def load(model: str, request: Request) -> dict[str, str]:
        body = await arrival(request, read_body(request, small_limit(service, request)))
        models.load(model, changed=_has_parameters(body))
        return {}

    @facts.post("/v2/repository/models/{model}/unload", summary="Refused: models do not change")
    async def unload(model: str) -> None:
        models.unload(model)

    @facts.get("/v2/models/stats", summary="What all models have done")
    @facts.get("/v2/models/{model}/stats", summary="What a model has done")
    @facts.get("/v2/models/{model}/versions/{version}/stats", include_in_schema=False)
    async def stats(model: str = "", version: str = "") -> dict[str, Any]:
        return models.statistics(model, version)

    @facts.get("/v2/models/{model}", summary="Inputs and outputs")
    @facts.get("/v2/models/{model}/versions/{version}", include_in_schema=False)
    async def metadata(model: str, version: str = "") -> dict[str, Any]:
        return models.metadata(model, version)

    @facts.get("/v2/models/{model}/config", summary="The model, as Triton's clients want it told")
    @facts.get("/v2/models/{model}/versions/{version}/config", include_in_schema=False)
    async def config(model: str, version: str = "") -> dict[str, Any]:
        return models.config(model, version)

    @facts.get("/v2/models/{model}/ready", summary="The model answers")
    @facts.get("/v2/models/{model}/versions/{version}/ready", include_in_schema=False)
    async def model_ready(model: str, version: str = "") -> dict[str, bool]:
        models.require_ready(model, version)
        return {"ready": True}

    @images.post("/v2/models/{model}/infer", summary="What is on frames or images", openapi_extra=_OPENAPI)
    @images.post("/v2/models/{model}/versions/{version}/infer", include_in_schema=False)
    async def infer(request: Request, model: str, version: str = "") -> Response:
        asked, exchange = models.find(model, version), Exchange.of(request.scope)
        exchange.engine = service.predictor.engines[0]
        most = max(settings.max_tensor_bytes, settings.max_body_bytes)
        limit = body_limit(service, request, most)
        body = await arrival(request, read_body(request, limit))
        question = await _parsed(lambda: parse(body, request.headers, asked, limit), body, request.headers)
        pixels, answer_bytes = models.weigh(asked, question.inference)
        exchange.share.add_bytes(answer_bytes)
        admit(service, request, pixels)
        async with unless_gone(request):
            outputs = await models.infer(asked, question.inference, exchange.deadline)
        exchange.share.add_bytes(sum(output.size for output in outputs))
        return await _respond(request, *await _encoded(asked, question, outputs))

    for path in ("trace/setting", "models/{model}/trace/setting", "logging", "{kind}sharedmemory/{rest:path}"):
        facts.add_api_route(f"/v2/{path}", elsewhere, methods=["GET", "POST"], include_in_schema=False)

    return APIRouter(routes=[*health.routes, *images.routes, *facts.routes])


async def _parsed(work: Callable[[], Question], body: bytes, headers: Headers) -> Question:
    """What takes long, inflating and much JSON, is done on a thread."""
    binary = headers.get(_LENGTH, "")
    is_short = binary.isdecimal() and int(binary) <= LONG_BYTES and "content-encoding" not in headers
    return work() if is_short or len(body) <= LONG_BYTES // 8 else await on_parser(work)


async def _encoded(model: Model[Any], question: Question, outputs: list[Tensor]) -> tuple[bytes, int | None]:
    """As `encode`. Raises BadParameter for numbers that are too many for JSON, which takes ten times their bytes."""
    as_json = [each for each in outputs if not question.binary.get(each.name, question.binary_unless_said)]
    if sum(output.size for output in as_json) > MAX_JSON_VALUES * 4:
        raise BadParameter(f"the outputs hold more than {MAX_JSON_VALUES} numbers: ask for them with binary_data")
    work = partial(encode, model, question, outputs)
    return await on_parser(work) if sum(output.size for output in as_json) > LONG_BYTES else work()


async def elsewhere(request: Request) -> None:
    """What Triton has besides."""
    raise Unsupported(f"{request.url.path} is not offered here")


def _has_parameters(body: bytes) -> bool:
    """Of a request to load."""
    try:
        return bool(body) and bool(orjson.loads(body).get("parameters"))
    except (orjson.JSONDecodeError, AttributeError) as error:
        raise MalformedBody("the request is not a JSON object") from error


async def _respond(request: Request, body: bytes, header_length: int | None) -> Response:
    """Compressed for who asks for one encoding only: others send a list with every request, and gain nothing."""
    headers = {} if header_length is None else {_LENGTH: str(header_length)}
    if compress := _COMPRESS.get(encoding := request.headers.get("accept-encoding", "")):
        work = partial(compress, body)
        body = await on_parser(work) if len(body) > LONG_BYTES else work()
        headers["Content-Encoding"] = encoding
    kind = "application/json" if header_length is None else "application/octet-stream"
    return Response(body, headers=headers, media_type=kind)
