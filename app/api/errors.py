"""Every error over HTTP has one shape: {"error": {"code", "message", "request_id"}}; under /v2 that of Triton."""

import orjson
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from app.errors import BadParameter, MethodNotAllowed, NotFound, RequestError, YolopardError

_TRITON = {415: 400, 422: 400}  # it calls whatever the client did wrong a bad request


def respond(error: YolopardError, path: str, request_id: str, headers: dict[str, str] | None = None) -> Response:
    """The error as a response, in the words of the path's protocol."""
    if path == "/v2" or path.startswith("/v2/"):
        status = _TRITON.get(error.status, error.status)
        return Response(orjson.dumps({"error": str(error)}), status, headers, "application/json")
    body = {"error": {"code": error.code, "message": str(error), "request_id": request_id}}
    return Response(orjson.dumps(body), error.status, headers, "application/json")


def explain_http(error: HTTPException, request: Request) -> YolopardError:
    """What the router refuses."""
    if error.status_code == 404:
        return NotFound(f"{request.url.path}: no such path; /docs lists them")
    if error.status_code == 405:
        return MethodNotAllowed(f"{request.method} is not allowed on {request.url.path}")
    return RequestError(str(error.detail))


def explain_validation(error: ValidationError | RequestValidationError) -> BadParameter:
    """One sentence for the parameters that are wrong."""
    problems = []
    for problem in error.errors():
        name = str(problem["loc"][-1])
        text = "no such parameter" if problem["type"] == "extra_forbidden" else problem["msg"]
        problems.append(f"{name}: {text.removeprefix('Value error, ')}")
    return BadParameter("; ".join(problems))
