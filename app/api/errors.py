"""Errors over HTTP: {"error": {"code", "message", "request_id"}}, or what the clients of another protocol read."""

from collections.abc import Callable
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from app.errors import BadParameter, MethodNotAllowed, NotFound, RequestError, YolopardError

Shape = Callable[[YolopardError, str], tuple[int, dict[str, Any]]]  # of an error and the request's id: status, JSON


def native(error: YolopardError, request_id: str) -> tuple[int, dict[str, Any]]:
    """The shape of /v1, and of whatever belongs to no protocol."""
    return error.status, {"error": {"code": error.code, "message": str(error), "request_id": request_id}}


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
        name = str(problem["loc"][-1]) if problem["loc"] else "body"
        text = "no such parameter" if problem["type"] == "extra_forbidden" else problem["msg"]
        problems.append(f"{name}: {text.removeprefix('Value error, ')}")
    return BadParameter("; ".join(problems))
