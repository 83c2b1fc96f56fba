"""Errors over HTTP: {"error": {"code", "message", "request_id"}}, or what the clients of another protocol read."""

from collections.abc import Callable
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from app.errors import BadParameter, MethodNotAllowed, NotFound, RequestError, YolopardError

MAX_PROBLEMS = 5
MAX_ECHO = 200  # characters of a client's own words

Shape = Callable[[YolopardError, str], tuple[int, dict[str, Any]]]  # of an error and the request's id: status, JSON


def native(error: YolopardError, request_id: str) -> tuple[int, dict[str, Any]]:
    """The shape of /v1, and of whatever belongs to no protocol."""
    return error.status, {"error": {"code": error.code, "message": str(error), "request_id": request_id}}


def explain_http(error: HTTPException, request: Request) -> YolopardError:
    """What the router refuses."""
    path = request.url.path[:MAX_ECHO]
    if error.status_code == 404:
        return NotFound(f"{path}: no such path; /docs lists them")
    if error.status_code == 405:
        refusal = MethodNotAllowed(f"{request.method} is not allowed on {path}")
        allowed = (error.headers or {}).get("Allow", "")
        refusal.allowed = allowed.replace("GET", "GET, HEAD") if "HEAD" not in allowed else allowed
        return refusal
    return RequestError(str(error.detail))


def explain_validation(error: ValidationError | RequestValidationError, *, whole_path: bool = False) -> BadParameter:
    """One sentence for the parameters that are wrong, of which at most five are told."""
    every = error.errors()
    problems = []
    for problem in every[:MAX_PROBLEMS]:
        path = [str(step) for step in problem["loc"]] or ["body"]
        name = ".".join(path) if whole_path else path[-1]
        text = "no such parameter" if problem["type"] == "extra_forbidden" else problem["msg"]
        problems.append(f"{name[:MAX_ECHO]}: {text.removeprefix('Value error, ')[:MAX_ECHO]}")
    if len(every) > MAX_PROBLEMS:
        problems.append(f"and {len(every) - MAX_PROBLEMS} more")
    return BadParameter("; ".join(problems))
