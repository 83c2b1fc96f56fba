"""Error responses for requests that the application has not seen, in the JSON of /v1's errors."""

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

_CODES = {400: "bad_http", 408: "too_slow", 414: "url_too_long", 431: "head_too_large", 503: "overloaded"}


class Refused(Exception):
    """The request is refused with `status`. Raised inside a callback of the parser."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def answer(status: int, message: str) -> bytes:
    """Return the whole error response, with `Connection: close`."""
    body = orjson.dumps({"error": {"code": _CODES[status], "message": message, "request_id": ""}})
    head = [
        STATUS_LINE[status],
        b"content-type: application/json\r\nconnection: close\r\n",
        b"retry-after: 1\r\n" if status == 503 else b"",
        b"content-length: %d\r\n\r\n" % len(body),
    ]
    return b"".join([*head, body])
