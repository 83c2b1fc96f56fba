"""What requests of every protocol pass through: key, admission, deadline, engine, and the times in the answer."""

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
from app.api.request.body import SMALL_BYTES, Limit
from app.api.request.disconnect import unless_gone
from app.api.request.eviction import Evictable
from app.api.response import server_timing
from app.errors import BadParameter, DeadlineExceeded, Unsupported
from app.model import ModelInfo
from app.serving.prediction import Prediction
from app.serving.service import Service
from app.system.gather import together
from app.vision.formats import KINDS, announced_pixels, sniff
from app.vision.postprocess import Thresholds

T = TypeVar("T")

UNMEASURED = 12_000_000  # pixels
SMALL_S = 10.0  # deadline of a request without images

_MAX_DEADLINE_MS = 3_600_000


def protocol_route(protocol: str, shape: Shape) -> type[APIRoute]:
    """Routes of a protocol that take no images."""

    class ProtocolRoute(APIRoute):
        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            context = RequestContext.of(scope)
            context.protocol, context.shape = protocol, shape
            context.deadline = asyncio.get_running_loop().time() + SMALL_S
            await super().handle(scope, receive, send)

    return ProtocolRoute


class ImageRoute(APIRoute):
    """FastAPI describes it; running it took FastAPI more time than all else here but the image."""


def image_route(
    service: Service,
    protocol: str,
    shape: Shape = native,
    *,
    given: Callable[[Request], Mapping[str, Any]] = lambda request: request.path_params,
    key_inside: bool = False,
) -> type[ImageRoute]:
    """Routes of a protocol whose requests are admitted by the predictor once they have been read, and hold their place
    until the answer is written.

    `given` is what the endpoint gets besides the request. With `key_inside` the body may bring the key, and the
    endpoint has to ask for it; few such bodies are read at a time.
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
    """Look for a key in the headers and, where a protocol has it there, in the query. Without one the body may bring it
    if it is `key_inside`; it then takes one of few places, from the one that is being read for longest.

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
    """What a body that holds no image may be."""
    return body_limit(service, request, min(SMALL_BYTES, service.settings.max_body_bytes))


def body_limit(service: Service, request: Request, most: int | None = None) -> Limit:
    """What this request's body may be: MAX_BODY_BYTES, unless `most` says otherwise."""
    settings, context = service.settings, RequestContext.of(request.scope)
    fits = partial(has_key, settings.api_keys, {}) if context.key_inside else None
    return Limit(most or settings.max_body_bytes, context.share, fits, settings.max_json_bytes, service.pacing)


def _deadline_s(scope: Scope, longest_ms: float) -> float:
    """The server's, or a shorter one that the client asks for. Raises BadParameter."""
    value = Headers(scope=scope).get("x-deadline-ms", str(longest_ms))
    try:
        milliseconds = float(value)
    except ValueError:
        milliseconds = 0
    if not 0 < milliseconds <= _MAX_DEADLINE_MS:
        raise BadParameter(f"X-Deadline-Ms: {value[:99]!r} is not a number of milliseconds up to {_MAX_DEADLINE_MS}")
    return min(milliseconds, longest_ms) / 1000


async def read_before_deadline(request: Request, reading: Coroutine[Any, Any, T]) -> T:
    """What is read, before the deadline.

    Raises DeadlineExceeded, Overloaded where the memory or the place of a slow body is needed, and whatever `reading`
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
    """Count the pixels of these images by their headers; an ordinary photo's where the header gives them late.

    An image of more than `max_pixels` counts as 0: it is refused before it is decoded.
    """
    counts = (_count_pixels(data) for data in files)
    return sum(count for count in counts if count <= max_pixels)


def _count_pixels(data: bytes) -> int:
    pixels = announced_pixels(data)
    return pixels if pixels is not None else UNMEASURED * (sniff(data) in KINDS)


def admit(service: Service, request: Request, pixels: int) -> None:
    """Take a place and count so many pixels, until the answer is written.

    Raises Overloaded, and TooManyPixels for what no server like this one could take.
    """
    context = RequestContext.of(request.scope)
    context.share.add_pixels(pixels)
    context.share.admitted = True
    left_s = context.deadline - asyncio.get_running_loop().time()
    context.held.enter_context(service.predictor.admission_slot(left_s))


async def predict(service: Service, request: Request, files: list[bytes], thresholds: Thresholds) -> list[Prediction]:
    """Each image by the engine that serves, in the order of the files."""
    engines = service.predictor.engines[:1]
    return [answers[0] for answers in await compare(service, request, files, thresholds, engines, shadowed=True)]


async def compare(
    service: Service,
    request: Request,
    files: list[bytes],
    thresholds: Thresholds,
    engines: Sequence[str],
    *,
    shadowed: bool,
) -> list[list[Prediction]]:
    """Each image by each of the engines, once there is room for them.

    Raises what `admit` and the predictor raise, and ClientDisconnect on a hang-up.
    """
    context = RequestContext.of(request.scope)
    context.engine = engines[0]
    admit(service, request, count_pixels(files, service.settings.max_pixels))
    one = partial(
        service.predictor.predict,
        thresholds=thresholds,
        deadline=context.deadline,
        engines=engines,
        turns=service.predictor.turns(len(files)),
        shadowed=shadowed,
    )
    async with unless_gone(request):
        if len(files) == 1:
            return [await one(files[0])]
        return await together(map(one, files), "file")


def require_boxes(model: ModelInfo) -> None:
    """For protocols that tell boxes and nothing else. Raises Unsupported."""
    if model.task == "classify":
        raise Unsupported(f"{model.name} is a classify model, which finds no boxes: ask POST /v1/predict")


@contextmanager
def encoding(service: Service, engine: str) -> Iterator[None]:
    """Counted as the stage "encode"."""
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    service.metrics.stage_seconds.labels(service.predictor.model.name, engine, "encode").observe(seconds)


async def respond(service: Service, predictions: list[Prediction], content: Callable[[], Any]) -> Response:
    """The JSON that `content` makes of the predictions; of masks on a thread, as their outlines take long."""

    def write() -> bytes:
        return orjson.dumps(content())

    predictor = service.predictor
    with encoding(service, predictions[0].engine):
        body = await predictor.finish(write) if predictor.model.task == "segment" else write()
    return Response(body, headers={"Server-Timing": server_timing(predictions)}, media_type="application/json")
