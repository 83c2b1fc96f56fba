"""Error responses: {"error": {"code", "message", "request_id"}}, or the format of another protocol."""

from collections.abc import Callable
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from app.errors import BadParameter, MethodNotAllowed, NotFound, RequestError, YolopardError

MAX_PROBLEMS = 5
MAX_ECHO = 200  # characters of a client's text repeated in a message

Shape = Callable[[YolopardError, str], tuple[int, dict[str, Any]]]  # (error, request id) -> (status, JSON)


def native(error: YolopardError, request_id: str) -> tuple[int, dict[str, Any]]:
    """Return status and JSON as /v1 has them; also used for paths that belong to no protocol."""
    return error.status, {"error": {"code": error.code, "message": str(error), "request_id": request_id}}


def explain_http(error: HTTPException, request: Request) -> YolopardError:
    """Convert an error of the router: 404 to NotFound, 405 to MethodNotAllowed, others to RequestError."""
    path = request.url.path[:MAX_ECHO]
    if error.status_code == 404:
        return NotFound(f"{path}: no such path; /docs lists them")
    if error.status_code == 405:
        not_allowed = MethodNotAllowed(f"{request.method} is not allowed on {path}")
        allowed = (error.headers or {}).get("Allow", "")
        not_allowed.allowed = allowed.replace("GET", "GET, HEAD") if "HEAD" not in allowed else allowed
        return not_allowed
    return RequestError(str(error.detail))


def explain_validation(error: ValidationError | RequestValidationError, *, whole_path: bool = False) -> BadParameter:
    """Return a BadParameter that lists at most MAX_PROBLEMS wrong parameters.

    It names each by its full path if `whole_path`, otherwise by the last part of the path.
    """
    errors = error.errors()
    problems = []
    for problem in errors[:MAX_PROBLEMS]:
        path = [str(step) for step in problem["loc"]] or ["body"]
        name = ".".join(path) if whole_path else path[-1]
        text = "no such parameter" if problem["type"] == "extra_forbidden" else problem["msg"]
        problems.append(f"{name[:MAX_ECHO]}: {text.removeprefix('Value error, ')[:MAX_ECHO]}")
    if len(errors) > MAX_PROBLEMS:
        problems.append(f"and {len(errors) - MAX_PROBLEMS} more")
    return BadParameter("; ".join(problems))
