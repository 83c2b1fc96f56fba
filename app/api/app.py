"""create_app: the routes, the errors and the lifespan, put together."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from app import __version__
from app.api import detect, system
from app.api.docs import add_docs
from app.api.errors import explain_http, explain_validation, respond
from app.api.exchange import Exchange, ExchangeMiddleware
from app.api.service import Service
from app.errors import Overloaded, ServiceError, YolopardError

_CLIENT_GONE = 499  # nginx's; nobody reads it, the metrics count it


def create_app(service: Service) -> FastAPI:
    """The ASGI application around a service that it starts and stops."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="Yolopard",
        version=__version__,
        summary="YOLOv8 at engine speed",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    add_docs(app)
    app.include_router(detect.routes(service))
    app.include_router(system.routes(service))
    app.add_middleware(ExchangeMiddleware, service=service)
    _handle_errors(app, service)
    return app


def _handle_errors(app: FastAPI, service: Service) -> None:
    def answer(request: Request, error: YolopardError) -> Response:
        headers = {}
        if isinstance(error, ServiceError):
            _count_refusal(service, error.code)
            retry_s = service.predictor.retry_after_s if isinstance(error, Overloaded) else 1
            headers = {"Retry-After": str(retry_s)} if error.status == 503 else {}
        return respond(error, Exchange.of(request.scope).request_id, headers)

    @app.exception_handler(YolopardError)
    async def ours(request: Request, error: YolopardError) -> Response:
        return answer(request, error)

    @app.exception_handler(HTTPException)
    async def routers(request: Request, error: HTTPException) -> Response:
        return answer(request, explain_http(error, request))

    @app.exception_handler(RequestValidationError)
    async def parameters(request: Request, error: RequestValidationError) -> Response:
        return answer(request, explain_validation(error))

    @app.exception_handler(ClientDisconnect)
    async def hang_up(request: Request, error: ClientDisconnect) -> Response:
        _count_refusal(service, "client_gone")
        return Response(status_code=_CLIENT_GONE)


def _count_refusal(service: Service, reason: str) -> None:
    model = service.built.manifest.model.name if service.built else ""
    service.metrics.rejected.labels(model, reason).inc()
