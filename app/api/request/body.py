"""Reads a request's body into memory, within limits: images, a form with an image, or JSON."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import orjson
from fastapi import Request

from app.api.request.multipart import MAX_FIELDS, Part, Parts
from app.errors import BodyTooLarge, EmptyBody, MalformedBody, Unauthorized
from app.serving.inflight import Share
from app.serving.pacing import FREE_BYTES, Pacing

T = TypeVar("T")

MAX_SMALL_BYTES = 64 << 10  # of a body without images
MAX_KEYLESS_BYTES = 4 << 20  # of a body that contains the key, before the key has arrived
MIN_THREAD_BYTES = 256 << 10  # longer text is parsed on a thread
# In one JSON. Each takes more memory than its text: an empty list (2 bytes) 64 bytes, a string (4 bytes) 60, a key 100.
MAX_CONTAINERS, MAX_STRINGS = 100_000, 100_000
# One thread, so that only one text at a time is parsed: its lists and objects take ten times the memory of the text.
_PARSER = ThreadPoolExecutor(1, "parse")
_JSON_ADVICE = ": send images and tensors as bytes, or raise MAX_JSON_BYTES"
_FORM = "application/x-www-form-urlencoded"
_KEY = re.compile(rb'"api_key"\s*:\s*"([^"\\]{1,999})"')
_MAX_KEY_BYTES = 64 << 10  # at the start of a JSON, which must contain the key


@dataclass(slots=True)
class Limit:
    """Limits of one body. `share` counts the bytes received."""

    max_bytes: int
    share: Share
    fits: Callable[[str], bool] | None = None  # returns True if a key is valid; None = the body needs no key
    max_json_bytes: int = MAX_SMALL_BYTES
    pacing: Pacing = field(default_factory=Pacing)
    advice: str = ""

    def require(self, size: int) -> None:
        """Raises BodyTooLarge, or Unauthorized if the size is only allowed with a key."""
        if size > self.max_bytes:
            raise BodyTooLarge(f"the body is larger than {self.max_bytes} bytes{self.advice}")
        if self.fits is not None and size > MAX_KEYLESS_BYTES:
            raise Unauthorized(
                f"no valid API key in the first {MAX_KEYLESS_BYTES} bytes of the body: send it before the image, or as "
                "'X-API-Key: KEY'"
            )

    def as_text(self) -> None:
        """Lower the limit to `max_json_bytes`, for JSON and urlencoded forms."""
        if self.max_json_bytes < self.max_bytes:
            self.max_bytes, self.advice = self.max_json_bytes, _JSON_ADVICE

    def offer(self, key: str) -> None:
        """Check a key that has arrived: if it is valid, the body may have its full size."""
        if self.fits is not None and key and self.fits(key):
            self.fits = None


@dataclass(frozen=True, slots=True)
class Form:
    """At most one file, and fields by name. If a name occurs twice, the last value is kept."""

    file: bytes | None
    fields: dict[str, str]
    file_name: str = ""  # of its part


async def read_images(request: Request, limit: Limit, *, max_files: int) -> list[bytes]:
    """Return the bytes of each image, in order: the body itself, or multipart `file` parts.

    Raises a RequestError, Overloaded, or ClientDisconnect if the client disconnects.
    """
    if is_multipart(request):
        parts = await _read_parts(request, limit, max_files, fields=False)
        return [bytes(part.data) for part in parts]
    body = await read_body(request, limit)
    if not body:
        raise EmptyBody("the body is empty: send the bytes of an image")
    return [body]


async def read_form(request: Request, limit: Limit) -> Form:
    """Read a multipart or urlencoded form; any other body is the file itself. Raises what `read_images` raises."""
    if is_multipart(request):
        return _form(await _read_parts(request, limit, 1, fields=True))
    if not request.headers.get("content-type", "").lower().startswith(_FORM):
        return Form(await read_body(request, limit), {})
    limit.as_text()
    body = await read_body(request, limit)
    if body.count(b"%") > len(body) // 8 + MAX_STRINGS:  # base64 has 1 in 20; each takes 60 bytes when unquoted
        raise MalformedBody("the form has too many percent escapes")
    try:
        pairs = await parsed(lambda: parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS), body)
    except ValueError as error:
        raise MalformedBody(f"the form cannot be read: {error}") from error
    return Form(None, dict(pairs))


async def read_json(request: Request, limit: Limit) -> Any:
    """Parse a JSON body of at most `limit.max_json_bytes`. Raises what `read_images` raises."""
    limit.as_text()
    body = await read_body(request, limit)
    return await parsed(lambda: load_json(body, limit.max_json_bytes), body)


def load_json(text: bytes | bytearray, max_bytes: int) -> Any:
    """Parse JSON. Raises BodyTooLarge, or MalformedBody if it is invalid or has too many lists, objects or strings."""
    if len(text) > max_bytes:
        raise BodyTooLarge(f"the JSON is larger than {max_bytes} bytes{_JSON_ADVICE}")
    if text.count(b"[") + text.count(b"{") > MAX_CONTAINERS or text.count(b'"') > 2 * MAX_STRINGS:
        raise MalformedBody(f"the JSON has more than {MAX_CONTAINERS} lists and objects, or {MAX_STRINGS} strings")
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise MalformedBody(f"the body is not JSON: {error}") from error


async def parsed(parse: Callable[[], T], text: bytes) -> T:
    """Return `parse()`; it runs on the parser thread if `text` is longer than MIN_THREAD_BYTES."""
    return await on_parser(parse) if len(text) > MIN_THREAD_BYTES else parse()


async def on_parser(parse: Callable[[], T]) -> T:
    """Return `parse()`, run on the parser thread."""
    return await asyncio.get_running_loop().run_in_executor(_PARSER, parse)


async def read_body(request: Request, limit: Limit) -> bytes:
    """Return the whole body. Raises what `read_images` raises."""
    chunks: list[bytes] = []
    async for chunk in _limited(request, limit):
        chunks.append(chunk)
        if limit.fits is not None and sum(map(len, chunks)) <= _MAX_KEY_BYTES + len(chunk):
            found = _KEY.search(b"".join(chunks), 0, _MAX_KEY_BYTES)
            limit.offer(found[1].decode("utf-8", "replace") if found else "")
    return b"".join(chunks)


def is_multipart(request: Request) -> bool:
    """Return True if the Content-Type is multipart/form-data."""
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


async def _read_parts(request: Request, limit: Limit, max_files: int, *, fields: bool) -> list[Part]:
    parts = Parts(request.headers["content-type"], max_files, fields=fields)
    async for chunk in _limited(request, limit):
        parts.feed(chunk)
        if limit.fits is not None:
            limit.offer(parts.field("api_key"))
    return parts.parts()


def _form(parts: list[Part]) -> Form:
    """Convert parts to a Form. A part that is not UTF-8 is a file too, because some clients omit the file name."""
    fields, file, name = {}, None, ""
    for part in parts:
        text = None if part.is_file else _text(part)
        if text is None:
            file, name = bytes(part.data), part.name
        else:
            fields[part.name] = text
    return Form(file, fields, name)


def _text(part: Part) -> str | None:
    try:
        return part.data.decode()
    except UnicodeDecodeError:
        return None


async def _limited(request: Request, limit: Limit) -> AsyncGenerator[bytes, None]:
    """Yield the body's chunks. Raises what `limit.require` (before reading, by Content-Length) or `share` raises."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit.max_bytes:
        limit.require(int(announced))
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        limit.require(received)
        limit.share.add_bytes(len(chunk))
        yield chunk
        if received > FREE_BYTES:
            await limit.pacing.piece()
