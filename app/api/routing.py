"""Request handling common to all protocols: key, admission, deadline, engine, and the times in the response."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import orjson
from fastapi import Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers, QueryParams
from starlette.types import Receive, Scope, Send

from app.api.auth import has_key, require_key
from app.api.context import RequestContext
from app.api.errors import Shape, native
from app.api.request.body import MAX_SMALL_BYTES, Limit
from app.api.request.disconnect import unless_gone
from app.api.request.eviction import Evictable
from app.api.response import server_timing
from app.errors import BadParameter, DeadlineExceeded, NotFound, Unsupported
from app.model import ModelInfo
from app.serving.prediction import Prediction
from app.serving.service import Service
from app.system.gather import together
from app.vision.formats import KINDS, announced_pixels, sniff
from app.vision.postprocess import Thresholds

T = TypeVar("T")

UNMEASURED_PIXELS = 12_000_000  # of an ordinary photo
SMALL_DEADLINE_S = 10.0  # deadline of a request without images

_MAX_DEADLINE_MS = 3_600_000


def protocol_route(protocol: str, shape: Shape) -> type[APIRoute]:
    """Return the route class for a protocol's requests without images."""

    class ProtocolRoute(APIRoute):
        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            context = RequestContext.of(scope)
            context.protocol, context.shape = protocol, shape
            context.deadline = asyncio.get_running_loop().time() + SMALL_DEADLINE_S
            await super().handle(scope, receive, send)

    return ProtocolRoute


class ImageRoute(APIRoute):
    """A route that FastAPI only describes in /docs. Its endpoint is called directly: FastAPI's call took more time than
    everything else except the image.
    """


def image_route(
    service: Service,
    protocol: str,
    shape: Shape = native,
    *,
    given: Callable[[Request], Mapping[str, Any]] = lambda request: request.path_params,
    key_inside: bool = False,
) -> type[ImageRoute]:
    """Return the route class for a protocol's requests with images. The predictor admits them when they have been read;
    they hold their slot until the response is written.

    `given` returns the endpoint's arguments besides the request. With `key_inside` the key may be in the body, and the
    endpoint must check it; few such bodies are read at a time.
    """

    class Admitted(ImageRoute):
        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            context = RequestContext.of(scope)
            context.protocol, context.shape = protocol, shape
            if scope["method"] not in (self.methods or ()):
                await super().handle(scope, receive, send)
                return
            require_key_in_front(service, scope, context, key_inside=key_inside)
            deadline_s = _deadline_s(scope, service.settings.deadline_ms)
            service.predictor.require_room(deadline_s)
            context.deadline = asyncio.get_running_loop().time() + deadline_s
            request = Request(scope, receive)
            try:
                async with asyncio.timeout_at(context.deadline):
                    response = await self.endpoint(request, **given(request))
            except TimeoutError:
                raise DeadlineExceeded("the deadline passed before the request was answered") from None
            context.share.hold_only(len(response.body))
            await response(scope, receive, send)

    return Admitted


def require_key_in_front(service: Service, scope: Scope, context: RequestContext, *, key_inside: bool) -> None:
    """Check the key in the headers and, with `key_inside`, in the query. With `key_inside` it may also be in the body:
    the request then takes one of few slots, and evicts the one that has been read the longest if none is free.

    Raises Unauthorized.
    """
    keys, headers = service.settings.api_keys, Headers(scope=scope)
    if not keys:
        return
    if not key_inside:
        require_key(keys, headers)
    elif not has_key(keys, headers, QueryParams(scope["query_string"]).get("api_key", "")):
        context.key_inside = True
        context.reading.enter_context(service.unauthenticated.place(context.share))


def small_limit(service: Service, request: Request) -> Limit:
    """Return the limit for a body without images."""
    return body_limit(service, request, min(MAX_SMALL_BYTES, service.settings.max_body_bytes))


def body_limit(service: Service, request: Request, max_bytes: int | None = None) -> Limit:
    """Return the limit for this request's body: `max_bytes`, by default MAX_BODY_BYTES."""
    settings, context = service.settings, RequestContext.of(request.scope)
    fits = partial(has_key, settings.api_keys, {}) if context.key_inside else None
    return Limit(max_bytes or settings.max_body_bytes, context.share, fits, settings.max_json_bytes, service.pacing)


def _deadline_s(scope: Scope, max_ms: float) -> float:
    """Return the deadline in seconds: X-Deadline-Ms, but at most `max_ms`. Raises BadParameter if it is not valid."""
    value = Headers(scope=scope).get("x-deadline-ms", str(max_ms))
    try:
        milliseconds = float(value)
    except ValueError:
        milliseconds = 0
    if not 0 < milliseconds <= _MAX_DEADLINE_MS:
        raise BadParameter(f"X-Deadline-Ms: {value[:99]!r} is not a number of milliseconds up to {_MAX_DEADLINE_MS}")
    return min(milliseconds, max_ms) / 1000


async def read_before_deadline(request: Request, reading: Coroutine[Any, Any, T]) -> T:
    """Return the result of `reading`.

    Raises DeadlineExceeded, Overloaded if the memory or slot of a slow body is needed, and everything that `reading`
    raises.
    """
    context = RequestContext.of(request.scope)
    try:
        async with Evictable(context.share, context.deadline):
            return await reading
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed before the body had arrived") from None
    finally:
        context.reading.close()


def count_pixels(files: Sequence[bytes], max_pixels: int) -> int:
    """Return the total number of pixels by the images' headers; UNMEASURED_PIXELS if a header gives the size too late.

    An image of more than `max_pixels` counts as 0: it is refused before it is decoded.
    """
    counts = (_count_pixels(data) for data in files)
    return sum(count for count in counts if count <= max_pixels)


def _count_pixels(data: bytes) -> int:
    pixels = announced_pixels(data)
    return pixels if pixels is not None else UNMEASURED_PIXELS * (sniff(data) in KINDS)


def admit(service: Service, request: Request, pixels: int) -> None:
    """Take an admission slot and count `pixels`, until the response is written.

    Raises Overloaded, and TooManyPixels if the request alone is over MAX_INFLIGHT_PIXELS.
    """
    context = RequestContext.of(request.scope)
    context.share.add_pixels(pixels)
    context.share.admitted = True
    left_s = context.deadline - asyncio.get_running_loop().time()
    context.held.enter_context(service.predictor.admission_slot(left_s))


async def predict(service: Service, request: Request, files: list[bytes], thresholds: Thresholds) -> list[Prediction]:
    """Return one prediction of the serving engine per image, in the order of the files."""
    engines = service.predictor.engines[:1]
    return [found[0] for found in await compare(service, request, files, thresholds, engines, shadowed=True)]


async def compare(
    service: Service,
    request: Request,
    files: list[bytes],
    thresholds: Thresholds,
    engines: Sequence[str],
    *,
    shadowed: bool,
) -> list[list[Prediction]]:
    """Admit the request, and return a list per image with one prediction per engine.

    Raises everything that `admit` and the predictor raise, and ClientDisconnect if the client disconnects.
    """
    context = RequestContext.of(request.scope)
    context.engine = engines[0]
    admit(service, request, count_pixels(files, service.settings.max_pixels))
    predict_one = partial(
        service.predictor.predict,
        thresholds=thresholds,
        deadline=context.deadline,
        engines=engines,
        turns=service.predictor.turns(len(files)),
        shadowed=shadowed,
    )
    async with unless_gone(request):
        if len(files) == 1:
            return [await predict_one(files[0])]
        return await together(map(predict_one, files), "file")


def require_boxes(model: ModelInfo) -> None:
    """Raises Unsupported if the model returns no boxes; for protocols that have only boxes."""
    if model.task == "classify":
        raise Unsupported(f"{model.name} is a classify model and returns no boxes: use POST /v1/predict")


def require_model(name: str, *known: str) -> None:
    """Raises NotFound unless the requested name is one of `known`, which are the names of the served model."""
    if name not in known:
        names = " or ".join(each for each in known if each)
        raise NotFound(f"there is no model {name!r} here; the model is {names}")


@contextmanager
def encoding(service: Service, engine: str) -> Iterator[None]:
    """Record the time inside this context in the metrics as stage "encode"."""
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    service.metrics.stage_seconds.labels(service.predictor.model.name, engine, "encode").observe(seconds)


async def respond(service: Service, predictions: list[Prediction], content: Callable[[], Any]) -> Response:
    """Return `content()` as JSON; for masks it runs in the thread pool, because their outlines take long."""

    def write() -> bytes:
        return orjson.dumps(content())

    predictor = service.predictor
    with encoding(service, predictions[0].engine):
        body = await predictor.finish(write) if predictor.model.task == "segment" else write()
    return Response(body, headers={"Server-Timing": server_timing(predictions)}, media_type="application/json")
