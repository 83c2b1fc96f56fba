"""create_app: the routes, the errors and the lifespan, put together."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from app import __version__
from app.api import detect, system
from app.api.docs import add_docs
from app.api.errors import explain_http, explain_validation
from app.api.exchange import Exchange, ExchangeMiddleware
from app.api.kserve import http as kserve
from app.api.kserve.repository import Repository
from app.api.service import Service
from app.errors import Overloaded, ServiceError, YolopardError

_CLIENT_GONE = 499  # nginx's; nobody reads it, the metrics count it


def create_app(service: Service) -> ASGIApp:
    """The ASGI application around a service that it starts and stops."""
    models = Repository(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        async with _grpc(service, models):
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
    images = detect.routes(service)
    app.include_router(images)
    app.include_router(kserve.routes(service, models))
    app.include_router(system.routes(service))
    _handle_errors(app, service)
    routes = [route for route in images.routes if isinstance(route, APIRoute)]
    return ExchangeMiddleware(_Shortcut(app, routes, service), service)


def _grpc(service: Service, models: Repository) -> AbstractAsyncContextManager[None]:
    """The second door, where GRPC_PORT opens one."""
    if service.settings.grpc_port is None:
        return nullcontext()
    from app.api.kserve import grpc  # noqa: PLC0415  # without the package only this door is missing

    return grpc.serving(service, models, service.settings.grpc_port)


class _Shortcut:
    """Images go straight to their route: FastAPI's way there took longer than all that the route does in the loop."""

    def __init__(self, app: FastAPI, routes: list[APIRoute], service: Service) -> None:
        self._app = app
        self._routes = {(method, route.path): route for route in routes for method in route.methods or ()}
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        try:
            await route.handle(scope, receive, send)
        except YolopardError as error:
            await _explain(self._service, scope, error)(scope, receive, send)
        except ClientDisconnect:
            await _hang_up(self._service)(scope, receive, send)


def _handle_errors(app: FastAPI, service: Service) -> None:
    @app.exception_handler(YolopardError)
    async def ours(request: Request, error: YolopardError) -> Response:
        return _explain(service, request.scope, error)

    @app.exception_handler(Exception)
    async def defects(request: Request, error: Exception) -> Response:
        return Exchange.of(request.scope).explain_defect(error)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return _hang_up(service)

    @app.exception_handler(HTTPException)
    async def routers(request: Request, error: HTTPException) -> Response:
        return _explain(service, request.scope, explain_http(error, request))

    @app.exception_handler(RequestValidationError)
    async def parameters(request: Request, error: RequestValidationError) -> Response:
        return _explain(service, request.scope, explain_validation(error))


def _explain(service: Service, scope: Scope, error: YolopardError) -> Response:
    headers = {}
    if isinstance(error, ServiceError):
        service.count_refusal(error.code)
        retry_s = service.predictor.retry_after_s if isinstance(error, Overloaded) else 1
        headers = {"Retry-After": str(retry_s)} if error.status == 503 else {}
    return Exchange.of(scope).respond(error, headers)


def _hang_up(service: Service) -> Response:
    service.count_refusal("client_gone")
    return Response(status_code=_CLIENT_GONE)
