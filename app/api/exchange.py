"""What one HTTP exchange carries besides its request: an id, a protocol, its metrics and its line in the log."""

import logging
import re
import time
import uuid
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import respond
from app.api.service import Service
from app.errors import YolopardError

log = logging.getLogger("yolopard.access")
crash_log = logging.getLogger("yolopard.crash")

_KEY = "yolopard.exchange"
_ID = re.compile(rb"[\w.:-]{1,128}", re.ASCII)


@dataclass(slots=True)
class Exchange:
    """Lives in the ASGI scope from the first byte to the last."""

    request_id: str
    started: float = field(default_factory=time.perf_counter)
    protocol: str = ""  # set by a protocol's routes; others are not counted
    engine: str = ""  # set once it is known which one is asked
    status: int = 0

    @classmethod
    def of(cls, scope: Scope) -> "Exchange":
        exchange: Exchange = scope[_KEY]
        return exchange


class ExchangeMiddleware:
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
        exchange = scope[_KEY] = Exchange(_request_id(scope))

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", exchange.request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            crash_log.exception("a defect, please report it", extra={"request_id": exchange.request_id})
            if not exchange.status:
                failure = YolopardError("an internal error; the server's log has more under this request id")
                await respond(failure, exchange.request_id)(scope, receive, send_with_id)
        finally:
            self._count(scope, exchange)

    def _count(self, scope: Scope, exchange: Exchange) -> None:
        seconds = time.perf_counter() - exchange.started
        built, metrics = self._service.built, self._service.metrics
        if exchange.protocol:
            model = built.manifest.model.name if built else ""
            metrics.requests.labels(model, exchange.engine, exchange.protocol, str(exchange.status)).inc()
            metrics.request_seconds.labels(model, exchange.engine, exchange.protocol).observe(seconds)
        if self._service.settings.access_log:
            facts = {
                "request_id": exchange.request_id,
                "method": scope["method"],
                "path": scope["path"],
                "status": exchange.status,
                "ms": round(seconds * 1000, 2),
            }
            log.info("request", extra=facts)


def _request_id(scope: Scope) -> str:
    """The client's own X-Request-Id if it is a harmless one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ID.fullmatch(value):
            return str(value, "ascii")
    return uuid.uuid4().hex
