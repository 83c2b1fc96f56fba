"""What a request's body holds, in memory and never beyond the limit: images, or a form with an image."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from urllib.parse import parse_qsl

from fastapi import Request

from app.api.multipart import MAX_FIELDS, Part, Parts
from app.errors import BodyTooLarge, EmptyBody, MalformedBody

_FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class Form:
    """A file at most, and fields by name; of those that are there twice the last."""

    file: bytes | None
    fields: dict[str, str]
    file_name: str = ""  # of its part


async def read_images(request: Request, *, max_bytes: int, max_files: int) -> list[bytes]:
    """The bytes of each image, in order: the body itself, or multipart `file` parts.

    Raises a RequestError; ClientDisconnect when the client goes away.
    """
    if _is_multipart(request):
        parts = await _read_parts(request, max_bytes, max_files, fields=False)
        return [bytes(part.data) for part in parts]
    body = await read_body(request, max_bytes)
    if not body:
        raise EmptyBody("the body is empty: send the bytes of an image")
    return [body]


async def read_form(request: Request, max_bytes: int) -> Form:
    """Multipart or urlencoded; any other body is the file itself. Raises what `read_images` raises."""
    if _is_multipart(request):
        return _form(await _read_parts(request, max_bytes, 1, fields=True))
    body = await read_body(request, max_bytes)
    if not request.headers.get("content-type", "").lower().startswith(_FORM):
        return Form(body, {})
    try:
        return Form(None, dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)))
    except ValueError as error:
        raise MalformedBody(f"the form cannot be read: {error}") from error


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Whole. Raises BodyTooLarge; ClientDisconnect when the client goes away."""
    return b"".join([chunk async for chunk in _limited(request, max_bytes)])


def _is_multipart(request: Request) -> bool:
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


async def _read_parts(request: Request, max_bytes: int, max_files: int, *, fields: bool) -> list[Part]:
    parts = Parts(request.headers["content-type"], max_files, fields=fields)
    async for chunk in _limited(request, max_bytes):
        parts.feed(chunk)
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


async def _limited(request: Request, max_bytes: int) -> AsyncGenerator[bytes, None]:
    """The body's chunks; BodyTooLarge as soon as it is known, by its announced length or by counting."""
    too_large = BodyTooLarge(f"the body is larger than {max_bytes} bytes")
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise too_large
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise too_large
        yield chunk
