"""What one HTTP exchange carries besides its request: an id, a protocol, its metrics and its line in the log."""

import itertools
import logging
import math
import re
import secrets
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

import orjson
from fastapi.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import Shape, native
from app.api.request.eviction import Evictable
from app.errors import Overloaded, YolopardError, forget
from app.serving.inflight import Share
from app.serving.service import Service

log = logging.getLogger("yolopard.access")
crash_log = logging.getLogger("yolopard.crash")

PIECE_BYTES = 128 << 10  # of an answer that are handed to the connection at a time

_KEY = "yolopard.exchange"
_START, _COUNT = secrets.token_hex(6), itertools.count()  # asking the system for each id takes 50 us
# uvloop's, where uvicorn has closed the connection over what came behind this request and was no HTTP.
_CLOSED = "the handler is closed"
_ID = re.compile(rb"[\w.:-]{1,128}", re.ASCII)


@dataclass(slots=True)
class RequestContext:
    """Lives in the ASGI scope from the first byte to the last."""

    request_id: str
    share: Share  # of all that is in flight
    held: ExitStack = field(default_factory=ExitStack)  # places, given back when the answer is written
    reading: ExitStack = field(default_factory=ExitStack)  # places, given back when the request has been read
    key_inside: bool = False  # no key was seen yet: the body has to bring it
    started: float = field(default_factory=time.perf_counter)
    protocol: str = ""  # set by a protocol's routes; others are not counted
    shape: Shape = native  # of its errors
    engine: str = ""  # set once it is known which one is asked
    deadline: float = math.inf  # loop time
    status: int = 0
    defect: bool = False

    @classmethod
    def of(cls, scope: Scope) -> "RequestContext":
        context: RequestContext = scope[_KEY]
        return context

    def respond(self, error: YolopardError, headers: dict[str, str] | None = None) -> Response:
        """The error, in the shape that the protocol's clients read."""
        forget(error)
        status, content = self.shape(error, self.request_id)
        return Response(orjson.dumps(content), status, headers, "application/json")

    def explain_defect(self, error: Exception) -> Response:
        """What the client is told; the log has the rest under the same id."""
        self.defect = True
        crash_log.error("a defect, please report it", exc_info=error, extra={"request_id": self.request_id})
        forget(error)
        return self.respond(YolopardError("an internal error; the server's log has more under this request id"))


class RequestContextMiddleware:
    """Pure ASGI: it hides neither the body nor the client's disconnect from the routes.

    https://github.com/encode/starlette/issues/1438 tells what BaseHTTPMiddleware does to both.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # as GET; uvicorn leaves out the body, by its own copy of the method
            scope = {**scope, "method": "GET"}
        context = scope[_KEY] = RequestContext(_request_id(scope), self._service.inflight.share())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", context.request_id.encode())]
            try:
                await _send(message, send, context.share)
            except Overloaded as error:
                self._service.count_refusal(error.code)
                scope["yolopard.cut_off"]()
            except RuntimeError as error:
                if _CLOSED not in str(error):
                    raise

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if not context.defect:
                response, answered = context.explain_defect(error), context.status
                if not answered:
                    await response(scope, receive, send_with_id)
        finally:
            context.reading.close()
            context.held.close()
            context.share.close()
            scope.pop("yolopard.cut_off", None)  # it holds the connection, which holds the scope
            self._count(scope, context)

    def _count(self, scope: Scope, context: RequestContext) -> None:
        seconds = time.perf_counter() - context.started
        built, metrics = self._service.built, self._service.metrics
        if context.protocol:
            model = built.manifest.model.name if built else ""
            metrics.requests.labels(model, context.engine, context.protocol, str(context.status)).inc()
            metrics.request_seconds.labels(model, context.engine, context.protocol).observe(seconds)
        if self._service.settings.access_log:
            facts = {
                "request_id": context.request_id,
                "method": scope["method"],
                "path": scope["path"],
                "status": context.status,
                "ms": round(seconds * 1000, 2),
            }
            log.info("request", extra=facts)


async def _send(message: Message, send: Send, share: Share) -> None:
    """A long answer goes out piece by piece, each when the client has taken most of the one before.

    Raises Overloaded where a client takes it too slowly, and its memory is needed.
    """
    body = message.get("body", b"")
    if len(body) <= PIECE_BYTES:
        await send(message)
        return
    async with Evictable(share):
        for at in range(0, len(body), PIECE_BYTES):
            last = at + PIECE_BYTES >= len(body) and not message.get("more_body", False)
            await send({"type": message["type"], "body": body[at : at + PIECE_BYTES], "more_body": not last})


def _request_id(scope: Scope) -> str:
    """The client's own X-Request-Id if it is a harmless one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ID.fullmatch(value):
            return str(value, "ascii")
    return f"{_START}{next(_COUNT):08x}"
