"""/docs without internet access: Swagger UI from the fastapi-swagger package. FastAPI's page loads it from a CDN."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

_ERROR = {"error": {"code": "not_ready", "message": "the server is not ready yet (engine)", "request_id": "3f1c0a9e"}}

# Replaces FastAPI's description of a 422 body: app/api/errors.py returns a different one.
ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "Any error, with the HTTP status of its code",
        "content": {"application/json": {"example": _ERROR}},
    }
}


def add_docs(app: FastAPI) -> None:
    """Serve /docs. Its URLs are relative, so it also works under a proxy's path prefix."""
    # Uses only the package's files: its patch_fastapi reads them again for each request and replaces the route `/`.
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
