"""What the images of every protocol go through: key, door, deadline, engine, and the clock on the answer."""

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
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from app.api.answer import server_timing
from app.api.disconnect import unless_gone
from app.api.errors import Shape, native
from app.api.exchange import Exchange
from app.api.keys import require_key
from app.api.service import Service
from app.errors import BadParameter, DeadlineExceeded, Unsupported, YolopardError
from app.model import ModelInfo
from app.predictor import Prediction
from app.results import Thresholds

T = TypeVar("T")

_MAX_DEADLINE_MS = 3_600_000


def spoken(protocol: str, shape: Shape) -> type[APIRoute]:
    """Routes of a protocol that take no images."""

    class Spoken(APIRoute):
        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            exchange = Exchange.of(scope)
            exchange.protocol, exchange.shape = protocol, shape
            await super().handle(scope, receive, send)

    return Spoken


class ImageRoute(APIRoute):
    """FastAPI describes it; running it took FastAPI more time than all else here but the image."""


def door(
    service: Service,
    protocol: str,
    shape: Shape = native,
    *,
    given: Callable[[Request], Mapping[str, Any]] = lambda request: request.path_params,
    key_inside: bool = False,
) -> type[ImageRoute]:
    """Routes of a protocol that pass the predictor's door before the body is read, and hold the place until the answer
    is written.

    `given` is what the endpoint gets besides the request. With `key_inside` the body may bring the key, and the
    endpoint has to ask for it.
    """

    class Admitted(ImageRoute):
        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            exchange = Exchange.of(scope)
            exchange.protocol, exchange.shape = protocol, shape
            if not key_inside:
                require_key(service.settings.api_keys, Headers(scope=scope))
            deadline_s = _deadline_s(scope, service.settings.deadline_ms)
            with service.predictor.admitted(deadline_s):
                if scope["method"] not in (self.methods or ()):
                    await super().handle(scope, receive, send)
                    return
                exchange.deadline = asyncio.get_running_loop().time() + deadline_s
                request = Request(scope, receive)
                response = await self.endpoint(request, **given(request))
                await response(scope, receive, send)

    return Admitted


def _deadline_s(scope: Scope, default_ms: float) -> float:
    value = Headers(scope=scope).get("x-deadline-ms", str(default_ms))
    try:
        milliseconds = float(value)
    except ValueError:
        milliseconds = 0
    if not 0 < milliseconds <= _MAX_DEADLINE_MS:
        raise BadParameter(f"X-Deadline-Ms: {value!r} is not a number of milliseconds up to {_MAX_DEADLINE_MS}")
    return milliseconds / 1000


async def arrival(request: Request, reading: Coroutine[Any, Any, T]) -> T:
    """What is read, before the deadline. Raises DeadlineExceeded, and whatever `reading` raises."""
    try:
        async with asyncio.timeout_at(Exchange.of(request.scope).deadline):
            return await reading
    except TimeoutError:
        raise DeadlineExceeded("the deadline passed before the body had arrived") from None


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
    """Each image by each of the engines. Raises what the predictor raises, and ClientDisconnect on a hang-up."""
    exchange = Exchange.of(request.scope)
    exchange.engine = engines[0]
    one = partial(
        service.predictor.predict,
        thresholds=thresholds,
        deadline=exchange.deadline,
        engines=engines,
        shadowed=shadowed,
    )
    async with unless_gone(request):
        return await _all(files, one)


async def _all(
    files: list[bytes], one: Callable[[bytes], Coroutine[Any, Any, list[Prediction]]]
) -> list[list[Prediction]]:
    """All at once, in the order of the files. The first error ends the request and takes its other images along."""
    if len(files) == 1:
        return [await one(files[0])]
    tasks = [asyncio.create_task(one(data)) for data in files]
    try:
        return await asyncio.gather(*tasks)
    except YolopardError as error:
        failed = next(i for i, task in enumerate(tasks, 1) if task.done() and task.exception() is error)
        raise type(error)(f"file {failed} of {len(files)}: {error}") from error
    finally:
        for task in tasks:
            task.cancel()


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
