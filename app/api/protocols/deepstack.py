"""The DeepStack and CodeProject.AI API, used by Frigate, Home Assistant, Blue Iris, Agent DVR and others.

Every response is JSON with a Content-Length, because Blue Iris cannot read chunked ones. It has at most 20 boxes,
highest score first: Frigate stops reading at the first low score and crashes on the 21st box.
"""

import time
from email.utils import formatdate
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from app import __version__
from app.api.auth import described, require_key
from app.api.context import RequestContext
from app.api.docs import ERRORS
from app.api.errors import explain_validation
from app.api.request import images
from app.api.request.body import Form, read_form
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
from app.errors import EmptyBody, YolopardError
from app.serving.prediction import Prediction
from app.serving.service import Service
from app.vision.postprocess import Thresholds, upright

PROTOCOL = "deepstack"
MAX_BOXES = 20
IOU = 0.45  # the value in DeepStack's and CodeProject.AI's own YOLOv5
GENERAL = "general"  # name that clients use for the default model
_FIELDS = {
    "image": {"type": "string", "format": "binary"},
    "min_confidence": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.4},
    "api_key": {"type": "string"},
}
_OPENAPI = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": {"type": "object", "required": ["image"], "properties": _FIELDS}}
        },
    }
}


def _lenient(value: str) -> str:
    """Accept a decimal comma, and "" for the default: SynoAI sends 0,45 in some locales."""
    return value.strip().replace(",", ".") or "0.4"


class DetectionForm(BaseModel):
    """The form fields besides the image file. Other fields are ignored."""

    min_confidence: Annotated[float, Field(ge=0, le=1), BeforeValidator(_lenient)] = 0.4
    api_key: str = ""
    image: str = ""  # base64, from clients that send no file


def shape(error: YolopardError, request_id: str) -> tuple[int, dict[str, Any]]:
    """Return status and body of an error, with the keys of DeepStack and CodeProject.AI."""
    return error.status, {
        "success": False,
        "error": str(error),
        "code": error.status,
        "duration": 0,
        "requestId": request_id,
    }


def routes(service: Service) -> APIRouter:
    """Routes for detection, the one custom model, the list of models, and ping."""
    return APIRouter(routes=[*_server(service).routes, *_vision(service).routes])


def _server(service: Service) -> APIRouter:
    settings = service.settings
    router = APIRouter(tags=[PROTOCOL], route_class=protocol_route(PROTOCOL, shape), responses=ERRORS)

    @router.get("/v1/status/ping", summary="Liveness of the process")
    @router.get("/v1/server/status/ping", summary="Liveness of the process")
    async def ping() -> dict[str, Any]:
        return {"success": True, "message": __version__}

    @router.post("/v1/vision/custom/list", summary="Names of the models", dependencies=described(settings.api_keys))
    async def models(request: Request) -> dict[str, Any]:
        require_key_in_front(service, request.scope, RequestContext.of(request.scope), key_inside=True)
        form = await read_before_deadline(request, read_form(request, small_limit(service, request)))
        require_key(
            settings.api_keys, request.headers, request.query_params.get("api_key", ""), form.fields.get("api_key", "")
        )
        return {"success": True, "models": [service.predictor.model.name], "code": 200}

    return router


def _vision(service: Service) -> APIRouter:
    settings = service.settings
    router = APIRouter(
        tags=[PROTOCOL],
        route_class=image_route(service, PROTOCOL, shape, key_inside=True),
        responses=ERRORS,
        dependencies=described(settings.api_keys),
    )

    async def answer(request: Request, model: str = GENERAL) -> Response:
        started = time.perf_counter()
        form = await read_before_deadline(request, read_form(request, body_limit(service, request)))
        fields = _parse(form)
        require_key(settings.api_keys, request.headers, request.query_params.get("api_key", ""), fields.api_key)
        require_boxes(service.predictor.model)
        require_model(model, service.predictor.model.name, GENERAL)
        if form.file is None and not fields.image:
            raise EmptyBody("the form has no image: send it as the part 'image'")
        image = await images.from_text(fields.image) if form.file is None else form.file
        predictions = await predict(service, request, [image], Thresholds(fields.min_confidence, IOU, MAX_BOXES))
        more = {"requestId": RequestContext.of(request.scope).request_id}
        return await respond(service, predictions, lambda: _to_json(service, predictions[0], started) | more)

    @router.post("/v1/vision/detection", summary="Boxes in DeepStack's response format", openapi_extra=_OPENAPI)
    async def detection(request: Request) -> Response:
        return await answer(request)

    @router.post("/v1/vision/custom/{model}", summary="Boxes of the named model", openapi_extra=_OPENAPI)
    async def custom(request: Request, model: str) -> Response:
        return await answer(request, model)

    return router


def _parse(form: Form) -> DetectionForm:
    try:
        return DetectionForm.model_validate(form.fields)
    except ValidationError as error:
        raise explain_validation(error) from error


def _to_json(service: Service, prediction: Prediction, started: float) -> dict[str, Any]:
    """Return the response with the keys of both APIs: `duration` is DeepStack's, most others are CodeProject.AI's."""
    found, names = prediction.detections, service.predictor.model.names
    predictions = [
        {
            "confidence": round(score, 5),
            "label": names[class_id],
            **{side: round(value) for side, value in zip(("x_min", "y_min", "x_max", "y_max"), box, strict=True)},
        }
        for class_id, score, box in zip(
            found.classes.tolist(), found.scores.tolist(), upright(found.boxes).tolist(), strict=True
        )
    ]
    labels = ", ".join(each["label"] for each in predictions)
    total_ms = round((time.perf_counter() - started) * 1000)
    return {
        "success": True,
        "predictions": predictions,
        "count": len(predictions),
        "message": f"Found {labels}" if labels else "No objects found",
        "code": 200,
        "command": "detect",
        "duration": 0,
        "processMs": total_ms,
        "inferenceMs": round(prediction.timings.infer * 1000),
        "analysisRoundTripMs": total_ms,
        "moduleId": "Yolopard",
        "moduleName": f"Yolopard {__version__}",
        "inferenceDevice": service.loaded[0].stored.manifest.fingerprint.device,
        "timestampUTC": formatdate(usegmt=True),
    }
