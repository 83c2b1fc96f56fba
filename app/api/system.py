"""How the server is: health, readiness, metrics, models, and the web page."""

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
    """Its Content-Security-Policy: the page's own script and style, by their hashes, and this server; nothing else."""
    own = {}
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        own[tag] = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{own['script']}'; style-src 'sha256-{own['style']}'; "
        "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )


_PAGE_HEADERS = {"Cache-Control": "no-cache", "Content-Security-Policy": _policy(PAGE.read_text())}


def routes(service: Service) -> APIRouter:
    """Open whatever state the engine is in; health and the page to everybody, the others to who shows a key."""

    def key(request: Request) -> None:
        require_key(service.settings.api_keys, request.headers)

    router = APIRouter(tags=["system"])
    keyed = [Depends(key), *described(service.settings.api_keys)]

    @router.get("/healthz", summary="The process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get(
        "/readyz",
        summary="Images are answered; until then how far the start has come",
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

    @router.get("/metrics", dependencies=keyed, summary="For Prometheus")
    async def metrics(request: Request) -> Response:
        body, content_type = service.metrics.render(request.headers.get("accept", ""))
        return Response(body, media_type=content_type)

    @router.get("/v1/models", dependencies=keyed, summary="What is served, and how its engine was checked")
    async def models() -> dict[str, Any]:
        return {"models": [_describe(service)] if service.built else []}

    if "v1" in service.settings.protocols:  # which it speaks

        @router.get("/", include_in_schema=False)
        async def page() -> FileResponse:
            return FileResponse(PAGE, headers=_PAGE_HEADERS)

    return router


def _describe(service: Service) -> dict[str, Any]:
    first, *others = service.loaded
    return {
        **first.built.manifest.model.to_json(),
        "ready": service.ready,
        "engine": first.to_json(),
        "compared_with": [other.to_json() for other in others],
        "fallback": service.fallback,
    }
