"""The context of one HTTP request (id, protocol, deadline, resources held), its metrics and its access log line."""

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

PIECE_BYTES = 128 << 10  # maximum size of a response chunk passed to the connection at once

_KEY = "yolopard.request_context"
_START, _COUNT = secrets.token_hex(6), itertools.count()  # random bytes from the system for each id would take 50 us
# uvloop's error message if uvicorn has closed the connection because the bytes after this request were not HTTP.
_CLOSED = "the handler is closed"
_ID = re.compile(rb"[\w.:-]{1,128}", re.ASCII)


@dataclass(slots=True)
class RequestContext:
    """Stored in the ASGI scope from the first byte of the request to the last byte of the response."""

    request_id: str
    share: Share  # bytes and pixels this request holds of the in-flight budget
    held: ExitStack = field(default_factory=ExitStack)  # slots, released when the response is written
    reading: ExitStack = field(default_factory=ExitStack)  # slots, released when the request has been read
    key_inside: bool = False  # no key in headers or query: the body must contain it
    started: float = field(default_factory=time.perf_counter)
    protocol: str = ""  # set by a protocol's routes; requests without one are not in the metrics
    shape: Shape = native  # format of error responses
    engine: str = ""  # name, set once it is known which engine serves the request
    deadline: float = math.inf  # loop time
    status: int = 0
    defect: bool = False

    @classmethod
    def of(cls, scope: Scope) -> "RequestContext":
        context: RequestContext = scope[_KEY]
        return context

    def respond(self, error: YolopardError, headers: dict[str, str] | None = None) -> Response:
        """Return the error in the response format of the protocol."""
        forget(error)
        status, content = self.shape(error, self.request_id)
        return Response(orjson.dumps(content), status, headers, "application/json")

    def explain_defect(self, error: Exception) -> Response:
        """Log the traceback with the request id, and return a 500 without details."""
        self.defect = True
        crash_log.error("a defect, please report it", exc_info=error, extra={"request_id": self.request_id})
        forget(error)
        return self.respond(YolopardError("internal error: the server's log has the details under this request id"))


class RequestContextMiddleware:
    """Creates the context and adds X-Request-Id. Pure ASGI, since BaseHTTPMiddleware breaks streamed bodies and the
    detection of a disconnect: https://github.com/encode/starlette/issues/1438.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # handled as GET; uvicorn keeps the original method and omits the body
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
            scope.pop("yolopard.cut_off", None)  # it references the connection, which references the scope
            self._count(scope, context)

    def _count(self, scope: Scope, context: RequestContext) -> None:
        seconds = time.perf_counter() - context.started
        stored, metrics = self._service.stored, self._service.metrics
        if context.protocol:
            model = stored.manifest.model.name if stored else ""
            metrics.requests.labels(model, context.engine, context.protocol, str(context.status)).inc()
            metrics.request_seconds.labels(model, context.engine, context.protocol).observe(seconds)
        if self._service.settings.access_log:
            fields = {
                "request_id": context.request_id,
                "method": scope["method"],
                "path": scope["path"],
                "status": context.status,
                "ms": round(seconds * 1000, 2),
            }
            log.info("request", extra=fields)


async def _send(message: Message, send: Send, share: Share) -> None:
    """Send a long body in chunks, each after the client has received most of the previous one.

    Raises Overloaded if the client reads too slowly and its memory is needed for other requests.
    """
    body = message.get("body", b"")
    if len(body) <= PIECE_BYTES:
        await send(message)
        return
    async with Evictable(share):
        for start in range(0, len(body), PIECE_BYTES):
            last = start + PIECE_BYTES >= len(body) and not message.get("more_body", False)
            await send({"type": message["type"], "body": body[start : start + PIECE_BYTES], "more_body": not last})


def _request_id(scope: Scope) -> str:
    """Return the client's X-Request-Id if it matches `_ID`, otherwise a new id."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ID.fullmatch(value):
            return str(value, "ascii")
    return f"{_START}{next(_COUNT):08x}"
