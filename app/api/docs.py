"""/docs without the internet: Swagger UI from the fastapi-swagger package, where FastAPI's own page asks a CDN."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

_ERROR = {"error": {"code": "not_ready", "message": "the server is not ready yet (engine)", "request_id": "3f1c0a9e"}}

# Replaces the body that FastAPI describes for a 422: app/api/errors.py answers another one.
ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "Any error, with the HTTP status of its code",
        "content": {"application/json": {"example": _ERROR}},
    }
}


def add_docs(app: FastAPI) -> None:
    """Serve /docs; the addresses on it are relative, so it works under a proxy's prefix too."""
    # Only the files: the package's own patch_fastapi reads them anew for each request, and takes over `/`.
    assets = StaticFiles(packages=[("fastapi_swagger", "resources")])
    app.mount("/docs/assets", assets)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return get_swagger_ui_html(
            title=f"{app.title} API",
            openapi_url="openapi.json",
            swagger_js_url="docs/assets/swagger-ui-bundle.js",
            swagger_css_url="docs/assets/swagger-ui.css",
            swagger_favicon_url="docs/assets/favicon-32x32.png",
            swagger_ui_parameters={"tryItOutEnabled": True, "displayRequestDuration": True},
        )
