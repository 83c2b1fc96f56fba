"""The inference API of Ultralytics Platform and of its predecessor HUB: https://docs.ultralytics.com/platform/.

HUB had two response formats. Requests with HUB's old field names get the old one: box centres and sizes as fractions of
the image's width and height.
"""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import AliasChoices, BaseModel, Field, ValidationError

from app.api.auth import described
from app.api.context import RequestContext
from app.api.docs import ERRORS
from app.api.errors import explain_validation
from app.api.request import images
from app.api.request.body import Form, read_form
from app.api.response import ResponseFormat, to_json
from app.api.routing import (
    body_limit,
    image_route,
    predict,
    read_before_deadline,
    require_boxes,
    require_model,
    respond,
)
from app.errors import EmptyBody, YolopardError
from app.model import ModelInfo
from app.serving.prediction import Prediction
from app.serving.service import Service
from app.vision.postprocess import Thresholds, upright

PROTOCOL = "platform"
_OLD_FIELDS = {"image", "url", "size", "confidence"}  # of HUB; one of them selects its old response format
_OPENAPI = {
    "requestBody": {
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "an image; `image` works too"},
                        "source": {"type": "string", "description": "or its URL, or base64; `url` works too"},
                        "conf": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.25},
                        "iou": {"type": "number", "minimum": 0, "maximum": 1, "default": 0.7},
                        "normalize": {"type": "boolean", "default": False},
                        "decimals": {"type": "integer", "minimum": 0, "maximum": 10, "default": 5},
                    },
                }
            }
        }
    }
}


class PredictForm(BaseModel):
    """The supported fields. Others are ignored, also `imgsz`: the engine determines the size."""

    conf: Annotated[float, Field(ge=0, le=1, validation_alias=AliasChoices("conf", "confidence"))] = 0.25
    iou: Annotated[float, Field(ge=0, le=1)] = 0.7
    normalize: bool = False
    decimals: Annotated[int, Field(ge=0, le=10)] = 5
    source: Annotated[str, Field(validation_alias=AliasChoices("source", "url", "image", "file"))] = ""
    model: str = ""  # from HUB clients: a name, or a URL that ends with one


def shape(error: YolopardError, request_id: str) -> tuple[int, dict[str, Any]]:
    """Return status and body of an error. The Platform documents no format; `success` and `message` are HUB's."""
    return error.status, {
        "error": str(error),
        "success": False,
        "message": str(error),
        "code": error.code,
        "request_id": request_id,
    }


def routes(service: Service) -> APIRouter:
    """Routes for the Platform's shared and dedicated endpoints, and for both of HUB's."""
    settings = service.settings
    router = APIRouter(
        tags=[PROTOCOL],
        route_class=image_route(service, PROTOCOL, shape),
        responses=ERRORS,
        dependencies=described(settings.api_keys),
    )

    async def answer(request: Request, model: str = "", *, hub: bool = False) -> Response:
        started = time.perf_counter()
        form, fields, image = await read_before_deadline(request, _read(service, request))
        name = model or fields.model.rstrip("/").rpartition("/")[2]
        require_model(name, service.predictor.model.name, "")
        old = hub and bool(_OLD_FIELDS & {*form.fields, form.file_name})
        if old:
            require_boxes(service.predictor.model)
        predictions = await predict(service, request, [image], Thresholds(fields.conf, fields.iou))
        if old:
            return await respond(service, predictions, lambda: _old_json(predictions[0], service.predictor.model))
        response_format = ResponseFormat(decimals=fields.decimals, normalize=fields.normalize)
        return await respond(service, predictions, lambda: to_json(service, [predictions], started, response_format))

    @router.post("/predict", summary="Dedicated endpoint of Ultralytics Platform", openapi_extra=_OPENAPI)
    async def dedicated(request: Request) -> Response:
        return await answer(request)

    @router.post(
        "/api/models/{model}/predict", summary="Shared endpoint of Ultralytics Platform", openapi_extra=_OPENAPI
    )
    async def shared(request: Request, model: str) -> Response:
        return await answer(request, model)

    @router.post("/v1/predict/{model}", summary="Ultralytics HUB, until 2024", openapi_extra=_OPENAPI)
    async def hub(request: Request, model: str) -> Response:
        return await answer(request, model, hub=True)

    @router.post("/", summary="Ultralytics HUB, with the model in a field", openapi_extra=_OPENAPI)
    async def later_hub(request: Request) -> Response:
        return await answer(request)

    return router


async def _read(service: Service, request: Request) -> tuple[Form, PredictForm, bytes]:
    form = await read_form(request, body_limit(service, request))
    fields = _parse({**request.query_params, **form.fields})
    if form.file is None and not fields.source:
        raise EmptyBody("the form has no image: send it as the part 'file', or as URL or base64 in the field 'source'")
    image = (
        await images.load(fields.source, service.settings, RequestContext.of(request.scope).share)
        if form.file is None
        else form.file
    )
    return form, fields, image


def _parse(fields: dict[str, str]) -> PredictForm:
    try:
        return PredictForm.model_validate(fields)
    except ValidationError as error:
        raise explain_validation(error) from error


def _old_json(prediction: Prediction, model: ModelInfo) -> dict[str, Any]:
    found, (height, width) = prediction.detections, prediction.shape
    fractions = (upright(found.boxes) / (width, height, width, height)).tolist()
    return {
        "success": True,
        "message": "Inference complete.",
        "data": [
            {
                "class": class_id,
                "name": model.names[class_id],
                "confidence": round(score, 5),
                "xcenter": (x1 + x2) / 2,
                "ycenter": (y1 + y2) / 2,
                "width": x2 - x1,
                "height": y2 - y1,
            }
            for class_id, score, (x1, y1, x2, y2) in zip(
                found.classes.tolist(), found.scores.tolist(), fractions, strict=True
            )
        ],
    }
