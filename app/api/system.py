"""Routes for health, readiness, metrics, models, and the web page."""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse, JSONResponse, Response

from app.api.auth import described, require_key
from app.serving.service import Service

PAGE = Path(__file__).with_name("page.html")


def _policy(page: str) -> str:
    """Return the page's Content-Security-Policy: it allows the page's script and style by their hashes, and requests to
    this server; nothing else.
    """
    hashes = {}
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        hashes[tag] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{hashes['script']}'; style-src 'sha256-{hashes['style']}'; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )


_PAGE_HEADERS = {"Cache-Control": "no-cache", "Content-Security-Policy": _policy(PAGE.read_text())}


def routes(service: Service) -> APIRouter:
    """Return the routes that respond in every state of the engine. Health and the page need no key, the others do."""

    def key(request: Request) -> None:
        require_key(service.settings.api_keys, request.headers)

    router = APIRouter(tags=["system"])
    keyed = [Depends(key), *described(service.settings.api_keys)]

    @router.get("/healthz", summary="200 while the process runs")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get(
        "/readyz",
        summary="200 if the server is ready for images; until then 503 with the start-up progress",
        responses={
            503: {
                "content": {
                    "application/json": {"example": {"phase": "engine", "step": 3, "of": 6, "model": "yolov8n-demo"}}
                }
            }
        },
    )
    async def readyz() -> JSONResponse:
        return JSONResponse(service.readiness(), 200 if service.ready else 503)

    @router.get("/metrics", dependencies=keyed, summary="Metrics for Prometheus")
    async def metrics(request: Request) -> Response:
        body, content_type = service.metrics.render(request.headers.get("accept", ""))
        return Response(body, media_type=content_type)

    @router.get("/v1/models", dependencies=keyed, summary="The served model, and how its engine was checked")
    async def models() -> dict[str, Any]:
        return {"models": [_describe(service)] if service.stored else []}

    if "v1" in service.settings.protocols:  # the page uses it

        @router.get("/", include_in_schema=False)
        async def page() -> FileResponse:
            return FileResponse(PAGE, headers=_PAGE_HEADERS)

    return router


def _describe(service: Service) -> dict[str, Any]:
    first, *others = service.loaded
    return {
        **first.stored.manifest.model.to_json(),
        "ready": service.ready,
        "engine": first.to_json(),
        "compared_with": [other.to_json() for other in others],
        "fallback": service.fallback,
    }
