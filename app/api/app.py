"""create_app: assembles the routes, the error handlers and the lifespan."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from functools import partial

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app import __version__
from app.api import system
from app.api.context import RequestContext, RequestContextMiddleware
from app.api.docs import add_docs
from app.api.errors import explain_http, explain_validation
from app.api.protocols import deepstack, platform, predict, roboflow
from app.api.protocols.kserve import http as kserve
from app.api.protocols.kserve.repository import Repository
from app.api.routing import ImageRoute
from app.errors import MethodNotAllowed, ServiceError, Unauthorized, YolopardError, forget
from app.serving.service import Service

_CLIENT_GONE = 499  # nginx's code; only the metrics use it, the client has disconnected


def create_app(service: Service) -> ASGIApp:
    """Return the ASGI application for `service`. Its lifespan starts and stops the service."""
    models = Repository(service)
    protocols: dict[str, Callable[[Service], APIRouter]] = {
        "v1": predict.routes,
        "kserve": partial(kserve.routes, models=models),
        "platform": platform.routes,
        "deepstack": deepstack.routes,
        "roboflow": roboflow.routes,  # last: its POST /{project}/{version} also matches paths of others
    }

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
    app.include_router(system.routes(service))
    routers = [routes(service) for name, routes in protocols.items() if name in service.settings.protocols]
    for router in routers:
        app.include_router(router)
    _handle_errors(app, service)
    inner: ASGIApp = _Shortcut(app, [route for router in routers for route in router.routes], service)
    if origins := service.settings.cors_origins:
        inner = CORSMiddleware(
            inner, origins, allow_methods=["*"], allow_headers=["*"], expose_headers=["Server-Timing", "X-Request-Id"]
        )
    return RequestContextMiddleware(inner, service)


def _grpc(service: Service, models: Repository) -> AbstractAsyncContextManager[None]:
    """Return a context that serves gRPC, or one that does nothing if GRPC_PORT or KServe is off."""
    if service.settings.grpc_port is None or "kserve" not in service.settings.protocols:
        return nullcontext()
    from app.api.protocols.kserve import grpc  # noqa: PLC0415  # grpcio is optional

    return grpc.serving(service, models, service.settings.grpc_port)


class _Shortcut:
    """Sends image requests directly to their route: FastAPI's routing took longer in the event loop than the route."""

    def __init__(self, app: FastAPI, routes: Sequence[BaseRoute], service: Service) -> None:
        self._app = app
        self._routes = {
            (method, route.path): route
            for route in routes
            if isinstance(route, ImageRoute) and not route.param_convertors
            for method in route.methods or ()
        }
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
        except ClientDisconnect as error:
            await _hang_up(self._service, error)(scope, receive, send)


def _handle_errors(app: FastAPI, service: Service) -> None:
    @app.exception_handler(YolopardError)
    async def handle_own(request: Request, error: YolopardError) -> Response:
        return _explain(service, request.scope, error)

    @app.exception_handler(Exception)
    async def handle_defect(request: Request, error: Exception) -> Response:
        return RequestContext.of(request.scope).explain_defect(error)

    @app.exception_handler(ClientDisconnect)
    async def handle_disconnect(request: Request, error: ClientDisconnect) -> Response:
        return _hang_up(service, error)

    @app.exception_handler(HTTPException)
    async def handle_http(request: Request, error: HTTPException) -> Response:
        if request.url.path.startswith("/v2/"):  # also for paths without a route
            RequestContext.of(request.scope).shape = kserve.shape
        return _explain(service, request.scope, explain_http(error, request))

    @app.exception_handler(RequestValidationError)
    async def handle_validation(request: Request, error: RequestValidationError) -> Response:
        return _explain(service, request.scope, explain_validation(error))


def _explain(service: Service, scope: Scope, error: YolopardError) -> Response:
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorized) else {}
    if isinstance(error, ServiceError):
        service.count_refusal(error.code)
        headers = {"Retry-After": str(service.retry_after_s(error))} if error.status == 503 else {}
    if isinstance(error, MethodNotAllowed):
        headers = {"Allow": error.allowed}
    return RequestContext.of(scope).respond(error, headers)


def _hang_up(service: Service, error: ClientDisconnect) -> Response:
    forget(error)
    service.count_refusal("client_gone")
    return Response(status_code=_CLIENT_GONE)
