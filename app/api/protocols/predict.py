"""POST /v1/predict, alias /v1/detect: predict on images. Responds in the JSON format of Ultralytics' hosted API."""

import time
from functools import lru_cache
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import QueryParams

from app.api.auth import described
from app.api.context import RequestContext
from app.api.docs import ERRORS
from app.api.errors import explain_validation
from app.api.request.body import read_images
from app.api.response import ResponseFormat, server_timing, to_json
from app.api.routing import body_limit, compare, encoding, image_route, read_before_deadline, respond
from app.errors import BadParameter
from app.model import ModelInfo
from app.serving.prediction import Prediction
from app.serving.predictor import Predictor
from app.serving.service import Service
from app.vision.postprocess import Thresholds

_FOUND = {"name": "red circle", "class": 0, "confidence": 0.94213}
_BOX = {"box": {"x1": 101.52, "y1": 52.25, "x2": 180.03, "y2": 131.87}}
_RESULTS: dict[str, dict[str, Any]] = {
    "detect": _FOUND | _BOX,
    "segment": _FOUND | _BOX | {"segments": {"x": [102.0, 141.0, 179.0, 140.0], "y": [92.0, 53.0, 91.0, 131.0]}},
    "segment, masks=rle": _FOUND | _BOX | {"mask": {"size": [480, 640], "counts": "hT_14f>4L4M2N2"}},
    "pose": _FOUND | _BOX | {"keypoints": {"x": [121.4, 160.2], "y": [80.1, 81.3], "visible": [0.98, 0.91]}},
    "classify": _FOUND,
    "obb": _FOUND | {"box": {"x1": 180, "y1": 91, "x2": 140, "y2": 52, "x3": 101, "y3": 92, "x4": 141, "y4": 131}},
}
_EXAMPLES = {
    task: {
        "value": {
            "images": [
                {
                    "shape": [480, 640],
                    "results": [result],
                    "speed": {"preprocess": 2.1, "inference": 38.4, "postprocess": 0.3},
                }
            ],
            "metadata": {
                "imageCount": 1,
                "functionTimeCall": 0.043,
                "model": f"yolov8n-{task.partition(',')[0]}",
                "version": {"yolopard": "0.1.0"},
            },
        }
    }
    for task, result in _RESULTS.items()
}
_IMAGE = {"schema": {"type": "string", "format": "binary"}}
_FILES = {
    "schema": {
        "type": "object",
        "required": ["file"],
        "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
    }
}
_OPENAPI = {
    "requestBody": {
        "required": True,
        "content": {"multipart/form-data": _FILES, "image/*": _IMAGE, "application/octet-stream": _IMAGE},
    }
}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Predictions, or the image with them drawn on it",
        "content": {"application/json": {"examples": _EXAMPLES}, "image/jpeg": _IMAGE},
    }
}


class PredictParams(BaseModel):
    """Predict parameters: which of the model's boxes to return."""

    model_config = ConfigDict(extra="forbid")

    conf: float = Field(0.25, ge=0, le=1, description="minimum score of a box")
    iou: float = Field(0.7, ge=0, le=1, description="overlap above which the box with the lower score is removed")
    max_det: int = Field(300, ge=1, le=1024, description="maximum number of boxes per image")
    classes: list[str] = Field([], description="names or ids of classes to return, repeated or separated by commas")
    agnostic: bool = Field(False, description="remove overlapping boxes of different classes too")

    def thresholds(self, model: ModelInfo) -> Thresholds:
        """Return the thresholds for postprocessing. Raises BadParameter for a class the model does not have."""
        known = model.names.values()  # a name may contain a comma
        requested = [name for entry in self.classes for name in ([entry] if entry in known else entry.split(","))]
        ids = class_ids([name.strip() for name in requested if name.strip()], model)
        return Thresholds(self.conf, self.iou, self.max_det, ids, self.agnostic)


class DetectQuery(PredictParams):
    """The query of /v1/predict."""

    masks: Literal["polygon", "rle"] = Field(
        "polygon", description="mask format of segment models: polygon = outlines, rle = COCO's compressed run lengths"
    )
    engine: str | None = Field(None, description="name of the engine to use, if COMPARE runs a second one")
    compare: bool = Field(False, description="run all engines and return their differences")
    format: Literal["json", "image"] = Field("json", description="image = with the boxes drawn, JPEG or PNG by Accept")

    def engines(self, predictor: Predictor) -> list[str]:
        """Return the names of the engines to run. Raises BadParameter for an unknown engine or a useless `compare`."""
        if self.engine not in (None, *predictor.engines):
            raise BadParameter(f"engine: {self.engine!r} does not run here; there is {', '.join(predictor.engines)}")
        if not self.compare:
            return [self.engine or predictor.engines[0]]
        if len(predictor.engines) == 1:
            only = predictor.engines[0]
            raise BadParameter(
                f"compare: there is one engine only, {only}; COMPARE=pytorch starts a second one beside it"
            )
        if self.engine or self.format == "image":
            raise BadParameter("compare: returns JSON of all engines; leave out engine and format")
        return predictor.engines


@lru_cache(256)
def parse_query(query: bytes) -> DetectQuery:
    """Parse a raw query string. Raises BadParameter."""
    given = QueryParams(query)
    try:
        return DetectQuery.model_validate({**given, "classes": given.getlist("classes")})
    except ValidationError as error:
        raise explain_validation(error) from error


def class_ids(wanted: list[str], model: ModelInfo) -> tuple[int, ...] | None:
    """Return the ids of classes given by name or number, all ids of a name; None if no class is given.

    Raises BadParameter for a class the model does not have.
    """
    ids: list[int] = []
    for name in wanted:
        found = [i for i, label in model.names.items() if label == name]
        if not found and name.isdecimal() and int(name) in model.names:
            found = [int(name)]
        if not found:
            raise BadParameter(f"classes: {model.name} has no class {name!r}; it has {', '.join(model.names.values())}")
        ids += found
    return tuple(dict.fromkeys(ids)) or None


def routes(service: Service) -> APIRouter:
    """Routes of the native protocol."""

    def given(request: Request) -> dict[str, DetectQuery]:
        return {"query": parse_query(request.scope["query_string"])}

    router = APIRouter(tags=["detect"], route_class=image_route(service, "v1", given=given))

    options: dict[str, Any] = {
        "responses": _RESPONSES | ERRORS,
        "openapi_extra": _OPENAPI,
        "dependencies": described(service.settings.api_keys),
    }

    @router.post("/v1/predict", summary="Predictions for the images in the body", **options)
    @router.post("/v1/detect", summary="Alias of /v1/predict", **options)
    async def detect(request: Request, query: Annotated[DetectQuery, Query()]) -> Response:
        started = time.perf_counter()
        predictor, settings = service.predictor, service.settings
        thresholds, engines = query.thresholds(predictor.model), query.engines(predictor)
        reading = read_images(request, body_limit(service, request), max_files=settings.max_files)
        RequestContext.of(request.scope).engine = engines[0]
        files = await read_before_deadline(request, reading)
        if query.format == "image" and len(files) > 1:
            raise BadParameter("format=image works for one image only: send one file")
        shadowed = not (query.engine or query.compare)
        compared = await compare(service, request, files, thresholds, engines, shadowed=shadowed)
        predictions = [answers[0] for answers in compared]
        if query.format == "json":
            response_format = ResponseFormat(rle=query.masks == "rle")
            return await respond(service, predictions, lambda: to_json(service, compared, started, response_format))
        with encoding(service, engines[0]):
            response = await _drawn(predictor, files[0], predictions[0], request.headers.get("accept", ""))
        response.headers["Server-Timing"] = server_timing(predictions)
        return response

    return router


async def _drawn(predictor: Predictor, data: bytes, prediction: Prediction, accept: str) -> Response:
    kind = "png" if "image/png" in accept and "image/jpeg" not in accept else "jpeg"
    return Response(await predictor.draw(data, prediction, kind), media_type=f"image/{kind}")
