"""The routes of /v2."""

from collections.abc import Callable
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers

from app.api.auth import described, require_key
from app.api.context import RequestContext
from app.api.protocols.kserve.models import Model
from app.api.protocols.kserve.repository import Repository
from app.api.protocols.kserve.tensors import Tensor
from app.api.protocols.kserve.wire import COMPRESS, LENGTH, InferRequest, encode, parse
from app.api.request.body import MIN_THREAD_BYTES, on_parser, read_body
from app.api.request.disconnect import unless_gone
from app.api.routing import admit, body_limit, image_route, protocol_route, read_before_deadline, small_limit
from app.errors import BadParameter, MalformedBody, Unsupported, YolopardError
from app.serving.service import Service

PROTOCOL = "kserve"
_OPENAPI: dict[str, Any] = {"requestBody": {"content": {"application/json": {}, "application/octet-stream": {}}}}

MAX_JSON_VALUES = 2_000_000  # in an answer


def shape(error: YolopardError, request_id: str) -> tuple[int, dict[str, Any]]:
    """Triton's, which calls whatever the client did wrong a bad request."""
    return {415: 400, 422: 400}.get(error.status, error.status), {"error": str(error)}


def routes(service: Service, models: Repository) -> APIRouter:
    """Everything under /v2."""
    health, facts = _health(service), _facts(service, models)
    return APIRouter(routes=[*health.routes, *_inference(service, models).routes, *facts.routes])


def _health(service: Service) -> APIRouter:
    router = APIRouter(tags=[PROTOCOL], route_class=protocol_route(PROTOCOL, shape))

    @router.get("/v2/health/live", summary="The process answers")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/v2/health/ready", summary="Images are answered")
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    return router


def _facts(service: Service, models: Repository) -> APIRouter:
    """Of the server and its models, and what Triton has besides."""
    settings = service.settings

    def key(request: Request) -> None:
        require_key(settings.api_keys, request.headers)

    keyed = [Depends(key), *described(settings.api_keys)]
    router = APIRouter(tags=[PROTOCOL], route_class=protocol_route(PROTOCOL, shape), dependencies=keyed)

    @router.get("/v2", summary="What this server is")
    async def server() -> dict[str, Any]:
        return models.server()

    @router.post("/v2/repository/index", summary="The models")
    async def index() -> list[dict[str, str]]:
        return models.index()

    @router.post("/v2/repository/models/{model}/load", summary="Only confirms: models do not change")
    async def load(model: str, request: Request) -> dict[str, str]:
        body = await read_before_deadline(request, read_body(request, small_limit(service, request)))
        models.load(model, changed=_has_parameters(body))
        return {}

    @router.post("/v2/repository/models/{model}/unload", summary="Refused: models do not change")
    async def unload(model: str) -> None:
        models.unload(model)

    _add_model_facts(router, models)
    for path in ("trace/setting", "models/{model}/trace/setting", "logging", "{kind}sharedmemory/{rest:path}"):
        router.add_api_route(f"/v2/{path}", elsewhere, methods=["GET", "POST"], include_in_schema=False)
    return router


def _add_model_facts(router: APIRouter, models: Repository) -> None:
    @router.get("/v2/models/stats", summary="What all models have done")
    @router.get("/v2/models/{model}/stats", summary="What a model has done")
    @router.get("/v2/models/{model}/versions/{version}/stats", include_in_schema=False)
    async def stats(model: str = "", version: str = "") -> dict[str, Any]:
        return models.statistics(model, version)

    @router.get("/v2/models/{model}", summary="Inputs and outputs")
    @router.get("/v2/models/{model}/versions/{version}", include_in_schema=False)
    async def metadata(model: str, version: str = "") -> dict[str, Any]:
        return models.metadata(model, version)

    @router.get("/v2/models/{model}/config", summary="The model, as Triton's clients want it told")
    @router.get("/v2/models/{model}/versions/{version}/config", include_in_schema=False)
    async def config(model: str, version: str = "") -> dict[str, Any]:
        return models.config(model, version)

    @router.get("/v2/models/{model}/ready", summary="The model answers")
    @router.get("/v2/models/{model}/versions/{version}/ready", include_in_schema=False)
    async def model_ready(model: str, version: str = "") -> dict[str, bool]:
        models.require_ready(model, version)
        return {"ready": True}


def _inference(service: Service, models: Repository) -> APIRouter:
    settings = service.settings
    router = APIRouter(
        tags=[PROTOCOL], route_class=image_route(service, PROTOCOL, shape), dependencies=described(settings.api_keys)
    )

    @router.post("/v2/models/{model}/infer", summary="What is on frames or images", openapi_extra=_OPENAPI)
    @router.post("/v2/models/{model}/versions/{version}/infer", include_in_schema=False)
    async def infer(request: Request, model: str, version: str = "") -> Response:
        wanted, context = models.find(model, version), RequestContext.of(request.scope)
        context.engine = service.predictor.engines[0]
        limit = body_limit(service, request, max(settings.max_tensor_bytes, settings.max_body_bytes))
        body = await read_before_deadline(request, read_body(request, limit))
        infer_request = await _parsed(lambda: parse(body, request.headers, wanted, limit), body, request.headers)
        pixels, answer_bytes = models.weigh(wanted, infer_request.inference)
        context.share.add_bytes(answer_bytes)
        admit(service, request, pixels)
        async with unless_gone(request):
            outputs = await models.infer(wanted, infer_request.inference, context.deadline)
        context.share.add_bytes(sum(output.size for output in outputs))
        return await _respond(request, *await _encoded(wanted, infer_request, outputs))

    return router


async def _parsed(work: Callable[[], InferRequest], body: bytes, headers: Headers) -> InferRequest:
    """What takes long, inflating and much JSON, is done on a thread."""
    binary = headers.get(LENGTH, "")
    is_short = binary.isdecimal() and int(binary) <= MIN_THREAD_BYTES and "content-encoding" not in headers
    return work() if is_short or len(body) <= MIN_THREAD_BYTES // 8 else await on_parser(work)


async def _encoded(model: Model[Any], infer_request: InferRequest, outputs: list[Tensor]) -> tuple[bytes, int | None]:
    """As `encode`. Raises BadParameter for numbers that are too many for JSON, which takes ten times their bytes."""
    as_json = [each for each in outputs if not infer_request.binary.get(each.name, infer_request.binary_unless_said)]
    if sum(output.size for output in as_json) > MAX_JSON_VALUES * 4:
        raise BadParameter(f"the outputs hold more than {MAX_JSON_VALUES} numbers: ask for them with binary_data")
    work = partial(encode, model, infer_request, outputs)
    return await on_parser(work) if sum(output.size for output in as_json) > MIN_THREAD_BYTES else work()


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
    headers = {} if header_length is None else {LENGTH: str(header_length)}
    if compress := COMPRESS.get(encoding := request.headers.get("accept-encoding", "")):
        work = partial(compress, body)
        body = await on_parser(work) if len(body) > MIN_THREAD_BYTES else work()
        headers["Content-Encoding"] = encoding
    kind = "application/json" if header_length is None else "application/octet-stream"
    return Response(body, headers=headers, media_type=kind)
