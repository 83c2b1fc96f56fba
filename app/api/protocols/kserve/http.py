"""The HTTP routes under /v2."""

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

MAX_JSON_VALUES = 2_000_000  # numbers in a JSON response


def shape(error: YolopardError, request_id: str) -> tuple[int, dict[str, Any]]:
    """Return status and body of an error in Triton's format, which has 400 where other protocols have 415 or 422."""
    return {415: 400, 422: 400}.get(error.status, error.status), {"error": str(error)}


def routes(service: Service, models: Repository) -> APIRouter:
    """Return all routes under /v2."""
    health, management = _health(service), _management(service, models)
    return APIRouter(routes=[*health.routes, *_inference(service, models).routes, *management.routes])


def _health(service: Service) -> APIRouter:
    router = APIRouter(tags=[PROTOCOL], route_class=protocol_route(PROTOCOL, shape))

    @router.get("/v2/health/live", summary="Liveness of the process")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @router.get("/v2/health/ready", summary="Readiness to serve requests")
    async def ready() -> JSONResponse:
        return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)

    return router


def _management(service: Service, models: Repository) -> APIRouter:
    """Routes for the server, its models, and the parts of Triton's API that are not supported."""
    settings = service.settings

    def key(request: Request) -> None:
        require_key(settings.api_keys, request.headers)

    keyed = [Depends(key), *described(settings.api_keys)]
    router = APIRouter(tags=[PROTOCOL], route_class=protocol_route(PROTOCOL, shape), dependencies=keyed)

    @router.get("/v2", summary="Name, version and extensions of the server")
    async def server() -> dict[str, Any]:
        return models.server()

    @router.post("/v2/repository/index", summary="Names and states of the models")
    async def index() -> list[dict[str, str]]:
        return models.index()

    @router.post("/v2/repository/models/{model}/load", summary="Does nothing: the model is already loaded")
    async def load(model: str, request: Request) -> dict[str, str]:
        body = await read_before_deadline(request, read_body(request, small_limit(service, request)))
        models.load(model, changed=_has_parameters(body))
        return {}

    @router.post("/v2/repository/models/{model}/unload", summary="Always refused: models are not unloaded")
    async def unload(model: str) -> None:
        models.unload(model)

    _add_model_routes(router, models)
    for path in ("trace/setting", "models/{model}/trace/setting", "logging", "{kind}sharedmemory/{rest:path}"):
        router.add_api_route(f"/v2/{path}", elsewhere, methods=["GET", "POST"], include_in_schema=False)
    return router


def _add_model_routes(router: APIRouter, models: Repository) -> None:
    @router.get("/v2/models/stats", summary="Statistics of all models")
    @router.get("/v2/models/{model}/stats", summary="Statistics of a model")
    @router.get("/v2/models/{model}/versions/{version}/stats", include_in_schema=False)
    async def stats(model: str = "", version: str = "") -> dict[str, Any]:
        return models.statistics(model, version)

    @router.get("/v2/models/{model}", summary="Inputs and outputs of a model")
    @router.get("/v2/models/{model}/versions/{version}", include_in_schema=False)
    async def metadata(model: str, version: str = "") -> dict[str, Any]:
        return models.metadata(model, version)

    @router.get("/v2/models/{model}/config", summary="Configuration of a model in Triton's format")
    @router.get("/v2/models/{model}/versions/{version}/config", include_in_schema=False)
    async def config(model: str, version: str = "") -> dict[str, Any]:
        return models.config(model, version)

    @router.get("/v2/models/{model}/ready", summary="Readiness of a model")
    @router.get("/v2/models/{model}/versions/{version}/ready", include_in_schema=False)
    async def model_ready(model: str, version: str = "") -> dict[str, bool]:
        models.require_ready(model, version)
        return {"ready": True}


def _inference(service: Service, models: Repository) -> APIRouter:
    settings = service.settings
    router = APIRouter(
        tags=[PROTOCOL], route_class=image_route(service, PROTOCOL, shape), dependencies=described(settings.api_keys)
    )

    @router.post("/v2/models/{model}/infer", summary="Predictions for frames or images", openapi_extra=_OPENAPI)
    @router.post("/v2/models/{model}/versions/{version}/infer", include_in_schema=False)
    async def infer(request: Request, model: str, version: str = "") -> Response:
        target, context = models.find(model, version), RequestContext.of(request.scope)
        context.engine = service.predictor.engines[0]
        limit = body_limit(service, request, max(settings.max_tensor_bytes, settings.max_body_bytes))
        body = await read_before_deadline(request, read_body(request, limit))
        infer_request = await _parsed(lambda: parse(body, request.headers, target, limit), body, request.headers)
        pixels, answer_bytes = models.weigh(target, infer_request.inference)
        context.share.add_bytes(answer_bytes)
        admit(service, request, pixels)
        async with unless_gone(request):
            outputs = await models.infer(target, infer_request.inference, context.deadline)
        context.share.add_bytes(sum(output.size for output in outputs))
        return await _respond(request, *await _encoded(target, infer_request, outputs))

    return router


async def _parsed(work: Callable[[], InferRequest], body: bytes, headers: Headers) -> InferRequest:
    """Run `work`, on a thread if it has to inflate or has much JSON to parse."""
    binary = headers.get(LENGTH, "")
    is_short = binary.isdecimal() and int(binary) <= MIN_THREAD_BYTES and "content-encoding" not in headers
    return work() if is_short or len(body) <= MIN_THREAD_BYTES // 8 else await on_parser(work)


async def _encoded(model: Model[Any], infer_request: InferRequest, outputs: list[Tensor]) -> tuple[bytes, int | None]:
    """Run `encode`. Raises BadParameter for over MAX_JSON_VALUES numbers as JSON, which takes 10 times their bytes."""
    as_json = [each for each in outputs if not infer_request.binary.get(each.name, infer_request.binary_unless_said)]
    if sum(output.size for output in as_json) > MAX_JSON_VALUES * 4:
        raise BadParameter(f"the outputs hold more than {MAX_JSON_VALUES} numbers: request them with binary_data")
    work = partial(encode, model, infer_request, outputs)
    return await on_parser(work) if sum(output.size for output in as_json) > MIN_THREAD_BYTES else work()


async def elsewhere(request: Request) -> None:
    """Refuse a part of Triton's API that is not supported."""
    raise Unsupported(f"{request.url.path} is not supported")


def _has_parameters(body: bytes) -> bool:
    """Return True if the body of a load request has parameters. Raises MalformedBody if it is not a JSON object."""
    try:
        return bool(body) and bool(orjson.loads(body).get("parameters"))
    except (orjson.JSONDecodeError, AttributeError) as error:
        raise MalformedBody("the request is not a JSON object") from error


async def _respond(request: Request, body: bytes, header_length: int | None) -> Response:
    """Compress only if Accept-Encoding names one encoding: clients that always send a list gain nothing from it."""
    headers = {} if header_length is None else {LENGTH: str(header_length)}
    if compress := COMPRESS.get(encoding := request.headers.get("accept-encoding", "")):
        work = partial(compress, body)
        body = await on_parser(work) if len(body) > MIN_THREAD_BYTES else work()
        headers["Content-Encoding"] = encoding
    kind = "application/json" if header_length is None else "application/octet-stream"
    return Response(body, headers=headers, media_type=kind)
