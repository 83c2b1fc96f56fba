"""The images in a request's body: the body itself, or multipart `file` parts, in memory and never beyond the limit."""

from collections.abc import AsyncGenerator

from fastapi import Request

from app.api.multipart import FileParts
from app.errors import BodyTooLarge, EmptyBody


async def read_images(request: Request, *, max_bytes: int, max_files: int) -> list[bytes]:
    """The bytes of each image, in order. Raises a RequestError; ClientDisconnect when the client goes away."""
    content_type = request.headers.get("content-type", "")
    if content_type.lower().startswith("multipart/form-data"):
        parts = FileParts(content_type, max_files)
        async for chunk in _limited(request, max_bytes):
            parts.feed(chunk)
        return parts.files()
    body = await read_body(request, max_bytes)
    if not body:
        raise EmptyBody("the body is empty: send the bytes of an image")
    return [body]


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Whole. Raises BodyTooLarge; ClientDisconnect when the client goes away."""
    return b"".join([chunk async for chunk in _limited(request, max_bytes)])


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
