"""What a request's body holds, in memory and never beyond its limits: images, or a form with an image, or JSON."""

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

SMALL_BYTES = 64 << 10  # of a body that holds no image
KEYLESS_BYTES = 4 << 20  # of a body whose key is inside, before the key was seen
MIN_THREAD_BYTES = 256 << 10  # of text that is parsed on a thread
# In one JSON, as they take more memory than text: an empty list of two bytes takes 64, a text of four 60, a key 100.
MAX_CONTAINERS, MAX_STRINGS = 100_000, 100_000
# One, so that only one text at a time takes the memory of its lists and objects, ten times its own.
_PARSER = ThreadPoolExecutor(1, "parse")
_JSON_ADVICE = ": send images and tensors as bytes, or raise MAX_JSON_BYTES"
_FORM = "application/x-www-form-urlencoded"
_KEY = re.compile(rb'"api_key"\s*:\s*"([^"\\]{1,999})"')
_KEY_WITHIN = 64 << 10  # bytes of JSON in which its key has to come


@dataclass(slots=True)
class Limit:
    """Bounds one body. `share` counts what has arrived."""

    max_bytes: int
    share: Share
    fits: Callable[[str], bool] | None = None  # whether a key is the server's; None = no key has to come in the body
    max_json_bytes: int = SMALL_BYTES
    pacing: Pacing = field(default_factory=Pacing)
    advice: str = ""

    def require(self, size: int) -> None:
        """Raises BodyTooLarge, or Unauthorized where a key would have let more in."""
        if size > self.max_bytes:
            raise BodyTooLarge(f"the body is larger than {self.max_bytes} bytes{self.advice}")
        if self.fits is not None and size > KEYLESS_BYTES:
            raise Unauthorized(
                f"no key came in the first {KEYLESS_BYTES} bytes: send it before the image, or as 'X-API-Key: KEY'"
            )

    def as_text(self) -> None:
        """The body is JSON or an urlencoded form, which have a limit of their own."""
        if self.max_json_bytes < self.max_bytes:
            self.max_bytes, self.advice = self.max_json_bytes, _JSON_ADVICE

    def offer(self, key: str) -> None:
        """A key has arrived: if it is the server's, the body may have its full size."""
        if self.fits is not None and key and self.fits(key):
            self.fits = None


@dataclass(frozen=True, slots=True)
class Form:
    """A file at most, and fields by name; of those that are there twice the last."""

    file: bytes | None
    fields: dict[str, str]
    file_name: str = ""  # of its part


async def read_images(request: Request, limit: Limit, *, max_files: int) -> list[bytes]:
    """The bytes of each image, in order: the body itself, or multipart `file` parts.

    Raises a RequestError or Overloaded; ClientDisconnect when the client goes away.
    """
    if is_multipart(request):
        parts = await _read_parts(request, limit, max_files, fields=False)
        return [bytes(part.data) for part in parts]
    body = await read_body(request, limit)
    if not body:
        raise EmptyBody("the body is empty: send the bytes of an image")
    return [body]


async def read_form(request: Request, limit: Limit) -> Form:
    """Multipart or urlencoded; any other body is the file itself. Raises what `read_images` raises."""
    if is_multipart(request):
        return _form(await _read_parts(request, limit, 1, fields=True))
    if not request.headers.get("content-type", "").lower().startswith(_FORM):
        return Form(await read_body(request, limit), {})
    limit.as_text()
    body = await read_body(request, limit)
    if body.count(b"%") > len(body) // 8 + MAX_STRINGS:  # of base64 a twentieth; unquoted, each takes 60 bytes
        raise MalformedBody("the form has too many escapes")
    try:
        pairs = await parsed(lambda: parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS), body)
    except ValueError as error:
        raise MalformedBody(f"the form cannot be read: {error}") from error
    return Form(None, dict(pairs))


async def read_json(request: Request, limit: Limit) -> Any:
    """JSON of at most `limit.max_json_bytes`. Raises what `read_images` raises."""
    limit.as_text()
    body = await read_body(request, limit)
    return await parsed(lambda: load_json(body, limit.max_json_bytes), body)


def load_json(text: bytes | bytearray, max_bytes: int) -> Any:
    """Raises BodyTooLarge or MalformedBody."""
    if len(text) > max_bytes:
        raise BodyTooLarge(f"the JSON is larger than {max_bytes} bytes{_JSON_ADVICE}")
    if text.count(b"[") + text.count(b"{") > MAX_CONTAINERS or text.count(b'"') > 2 * MAX_STRINGS:
        raise MalformedBody(f"the JSON has more than {MAX_CONTAINERS} lists and objects, or {MAX_STRINGS} texts")
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise MalformedBody(f"the body is not JSON: {error}") from error


async def parsed(parse: Callable[[], T], text: bytes) -> T:
    """What `parse` returns, which of a long text runs on a thread."""
    return await on_parser(parse) if len(text) > MIN_THREAD_BYTES else parse()


async def on_parser(parse: Callable[[], T]) -> T:
    """What `parse` returns, on the thread for long texts."""
    return await asyncio.get_running_loop().run_in_executor(_PARSER, parse)


async def read_body(request: Request, limit: Limit) -> bytes:
    """Whole. Raises what `read_images` raises."""
    chunks: list[bytes] = []
    async for chunk in _limited(request, limit):
        chunks.append(chunk)
        if limit.fits is not None and sum(map(len, chunks)) <= _KEY_WITHIN + len(chunk):
            found = _KEY.search(b"".join(chunks), 0, _KEY_WITHIN)
            limit.offer(found[1].decode("utf-8", "replace") if found else "")
    return b"".join(chunks)


def is_multipart(request: Request) -> bool:
    """By the Content-Type."""
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


async def _read_parts(request: Request, limit: Limit, max_files: int, *, fields: bool) -> list[Part]:
    parts = Parts(request.headers["content-type"], max_files, fields=fields)
    async for chunk in _limited(request, limit):
        parts.feed(chunk)
        if limit.fits is not None:
            limit.offer(parts.field("api_key"))
    return parts.parts()


def _form(parts: list[Part]) -> Form:
    """Some clients leave out the name of their file: what is no text is a file too."""
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
    """The body's chunks. Raises as soon as they are known to be too many, by the announced length or by counting."""
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
