"""Answers of the server itself, in the JSON of /v1's errors: the application has not seen the request."""

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

_CODES = {400: "bad_http", 408: "too_slow", 414: "url_too_long", 431: "head_too_large", 503: "overloaded"}


class Refused(Exception):
    """Raised inside a callback of the parser."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def answer(status: int, message: str) -> bytes:
    """The whole answer, after which the connection ends."""
    body = orjson.dumps({"error": {"code": _CODES[status], "message": message, "request_id": ""}})
    head = [
        STATUS_LINE[status],
        b"content-type: application/json\r\nconnection: close\r\n",
        b"retry-after: 1\r\n" if status == 503 else b"",
        b"content-length: %d\r\n\r\n" % len(body),
    ]
    return b"".join([*head, body])
