"""The API of a Roboflow inference server, as `inference_sdk` uses it, and that of detect.roboflow.com."""

import base64
import time
import uuid
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import AfterValidator, AliasChoices, BaseModel, Field, ValidationError

from app import __version__
from app.api.auth import described, require_key
from app.api.context import RequestContext
from app.api.docs import ERRORS
from app.api.errors import explain_validation
from app.api.protocols.predict import class_ids
from app.api.request import images
from app.api.request.body import is_multipart, parsed, read_body, read_form, read_json
from app.api.routing import (
    body_limit,
    image_route,
    predict,
    protocol_route,
    read_before_deadline,
    require_boxes,
    require_key_in_front,
    require_model,
    respond,
    small_limit,
)
from app.errors import EmptyBody, TooManyFiles, YolopardError
from app.model import ModelInfo
from app.serving.prediction import Prediction
from app.serving.service import Service
from app.vision.postprocess import Thresholds, upright
from app.vision.preprocess import KINDS, sniff

M = TypeVar("M", bound=BaseModel)

PROTOCOL = "roboflow"
MAX_IMAGES, MAX_CLASSES = 1024, 10_000  # per list, checked when the body is parsed; MAX_FILES may allow fewer images
ALIASES = {  # inference_sdk replaces names such as "yolov8n-640" by these before it sends the request
    **{f"yolov8{size}-640": f"coco/{version}" for size, version in zip("nsmlx", (3, 6, 8, 7, 5), strict=True)},
    **{f"yolov8{size}-1280": f"coco/{version}" for size, version in zip("nsmlx", range(9, 14), strict=True)},
}


def _fraction(value: float) -> float:
    """Return 0.4 for 40: clients of detect.roboflow.com send percentages."""
    return value / 100 if value > 1 else value


Fraction = Annotated[float, Field(ge=0, le=100), AfterValidator(_fraction)]


class PredictParams(BaseModel):
    """Parameters that select boxes. Options that would change the result and are not supported are refused by name."""

    api_key: str = ""
    confidence: Fraction = 0.4
    iou: Fraction = Field(0.3, validation_alias=AliasChoices("iou_threshold", "overlap"))
    max_detections: int = Field(300, ge=1, le=1024)
    class_agnostic_nms: bool = False
    disable_preproc_auto_orient: Literal[False, "false", "False"] = False

    def thresholds(self, classes: list[str], model: ModelInfo) -> Thresholds:
        """Return the thresholds for postprocessing. Raises BadParameter for a class the model does not have."""
        ids = class_ids(classes, model)
        return Thresholds(self.confidence, self.iou, self.max_detections, ids, self.class_agnostic_nms)


class Image(BaseModel):
    type: Literal["base64", "url"]  # not numpy: the SDK sends it as a pickle
    value: str


class Inference(PredictParams):
    """The body of /infer/object_detection."""

    model_id: str
    image: Image | Annotated[list[Image], Field(max_length=MAX_IMAGES)]
    class_filter: Annotated[list[str], Field(max_length=MAX_CLASSES)] | None = None
    visualize_predictions: bool = False


class Snippet(PredictParams):
    """The query of /{project}/{version}."""

    image: str = ""  # a URL
    classes: str = ""
    format: Literal["json", "image"] = "json"


class Addition(BaseModel):
    """The body of /model/add."""

    api_key: str = ""
    model_id: str = ""


_INFERENCE = {
    "model_id": "yolov8n-demo",
    "image": {"type": "base64", "value": "/9j/4AAQ..."},
    "confidence": 0.4,
    "iou_threshold": 0.3,
}


def _json(example: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"example": example}}}}


def shape(error: YolopardError, request_id: str) -> tuple[int, dict[str, Any]]:
    """Return status and body of an error. The SDK shows `message`."""
    return error.status, {"message": str(error), "code": error.code, "request_id": request_id}


def model_ids(model: ModelInfo) -> list[str]:
    """Return the ids that clients may use for the model."""
    alias = ALIASES.get(f"{model.name}-{model.imgsz}")
    return [model.name, f"{model.name}/1", *([alias] if alias else [])]


def routes(service: Service) -> APIRouter:
    """Routes for models and inference. POST /{project}/{version} is the last one; the version is an integer."""
    return APIRouter(routes=[*_registry(service).routes, *_inference(service).routes])


def _registry(service: Service) -> APIRouter:
    settings, identity = service.settings, str(uuid.uuid4())
    router = APIRouter(
        tags=[PROTOCOL],
        route_class=protocol_route(PROTOCOL, shape),
        responses=ERRORS,
        dependencies=described(settings.api_keys),
    )

    def models() -> dict[str, Any]:
        ids = model_ids(service.predictor.model)
        return {"models": [{"model_id": each, "task_type": "object-detection"} for each in ids]}

    @router.get("/info", summary="Name and version of the server")
    async def info() -> dict[str, str]:
        return {"name": "Yolopard", "version": __version__, "uuid": identity}

    @router.get("/model/registry", summary="Ids of the model")
    async def registry(request: Request, api_key: str = "") -> dict[str, Any]:
        require_key(settings.api_keys, request.headers, api_key)
        return models()

    @router.post(
        "/model/add", summary="Ids of the model, already loaded", openapi_extra=_json({"model_id": "yolov8n-demo"})
    )
    async def add(request: Request) -> dict[str, Any]:
        require_key_in_front(service, request.scope, RequestContext.of(request.scope), key_inside=True)
        addition = _validate(
            await read_before_deadline(request, read_json(request, small_limit(service, request))), Addition
        )
        require_key(settings.api_keys, request.headers, request.query_params.get("api_key", ""), addition.api_key)
        _require(addition.model_id, service.predictor.model)
        return models()

    return router


def _inference(service: Service) -> APIRouter:
    settings = service.settings
    router = APIRouter(
        tags=[PROTOCOL],
        route_class=image_route(service, PROTOCOL, shape, key_inside=True),
        responses=ERRORS,
        dependencies=described(settings.api_keys),
    )

    @router.post(
        "/infer/object_detection", summary="Boxes of an image, or of a list of images", openapi_extra=_json(_INFERENCE)
    )
    async def infer(request: Request) -> Response:
        started = time.perf_counter()
        requested = _validate(
            await read_before_deadline(request, read_json(request, body_limit(service, request))), Inference
        )
        require_key(settings.api_keys, request.headers, request.query_params.get("api_key", ""), requested.api_key)
        predictor = service.predictor
        _require(requested.model_id, predictor.model)
        given = requested.image if isinstance(requested.image, list) else [requested.image]
        if not 1 <= len(given) <= settings.max_files:
            raise TooManyFiles(f"a request has 1 to {settings.max_files} images, not {len(given)}")
        files = [await read_before_deadline(request, _load(service, request, image)) for image in given]
        thresholds = requested.thresholds(requested.class_filter or [], predictor.model)
        predictions = await predict(service, request, files, thresholds)
        answers = [_to_json(request, each, predictor.model, started) for each in predictions]
        if requested.visualize_predictions:
            for answer, data, prediction in zip(answers, files, predictions, strict=True):
                answer["visualization"] = base64.b64encode(await predictor.draw(data, prediction, "jpeg")).decode()
        return await respond(service, predictions, lambda: answers if isinstance(requested.image, list) else answers[0])

    @router.post("/{project}/{version:int}", summary="Boxes in detect.roboflow.com's response format")
    async def snippet(request: Request, project: str, version: int) -> Response:
        started = time.perf_counter()
        requested = _parse_query(request)
        require_key(settings.api_keys, request.headers, requested.api_key)
        predictor = service.predictor
        _require(f"{project}/{version}", predictor.model)
        data = await read_before_deadline(request, _read(service, request, requested.image))
        thresholds = requested.thresholds([name for name in requested.classes.split(",") if name], predictor.model)
        predictions = await predict(service, request, [data], thresholds)
        if requested.format == "image":
            return Response(await predictor.draw(data, predictions[0], "jpeg"), media_type="image/jpeg")
        return await respond(service, predictions, lambda: _to_json(request, predictions[0], predictor.model, started))

    return router


async def _load(service: Service, request: Request, image: Image) -> bytes:
    if image.type == "base64":
        return await images.from_text(image.value)
    return await images.load(image.value, service.settings, RequestContext.of(request.scope).share)


async def _read(service: Service, request: Request, url: str) -> bytes:
    """Read the image from `url`, the form's file or the body: raw bytes or base64, whatever the Content-Type says."""
    if url:
        return await images.load(url, service.settings, RequestContext.of(request.scope).share)
    if is_multipart(request):
        form = await read_form(request, body_limit(service, request))
        body = form.file or form.fields.get("file", "").encode()
    else:
        body = await read_body(request, body_limit(service, request))
    if not body:
        raise EmptyBody("the body is empty: send an image, raw or in base64")
    return body if sniff(body) in KINDS else await parsed(lambda: images.from_base64(body), body)


def _validate(body: Any, kind: type[M]) -> M:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise explain_validation(error) from error


def _parse_query(request: Request) -> Snippet:
    try:
        return Snippet.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise explain_validation(error) from error


def _require(name: str, model: ModelInfo) -> None:
    require_boxes(model)
    require_model(name, *model_ids(model))


def _to_json(request: Request, prediction: Prediction, model: ModelInfo, started: float) -> dict[str, Any]:
    """Return the response: boxes as centre and size, in px of the original image."""
    found, (height, width) = prediction.detections, prediction.shape
    return {
        "inference_id": RequestContext.of(request.scope).request_id,
        "time": round(time.perf_counter() - started, 5),
        "image": {"width": width, "height": height},
        "predictions": [
            {
                "x": (x1 + x2) / 2,
                "y": (y1 + y2) / 2,
                "width": x2 - x1,
                "height": y2 - y1,
                "confidence": score,
                "class": model.names[label],
                "class_id": label,
                "detection_id": str(uuid.uuid4()),
            }
            for label, score, (x1, y1, x2, y2) in zip(
                found.classes.tolist(), found.scores.tolist(), upright(found.boxes).tolist(), strict=True
            )
        ],
    }
