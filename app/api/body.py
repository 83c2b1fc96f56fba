"""The images in a request's body: the body itself, or multipart `file` parts, in memory and never beyond the limit."""

import sys
from collections.abc import AsyncGenerator

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from app.errors import BadParameter, BodyTooLarge, EmptyBody, MalformedBody, TooManyFiles


class _InMemory(MultiPartParser):
    """Starlette's parser without its temporary files: the body's limit bounds the memory already."""

    spool_max_size = sys.maxsize


async def read_images(request: Request, *, max_bytes: int, max_files: int) -> list[bytes]:
    """The bytes of each image, in order. Raises a RequestError; ClientDisconnect when the client goes away."""
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        return await _read_parts(request, max_bytes, max_files)
    body = b"".join([chunk async for chunk in _limited(request, max_bytes)])
    if not body:
        raise EmptyBody("the body is empty: send the bytes of an image")
    return [body]


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


async def _read_parts(request: Request, max_bytes: int, max_files: int) -> list[bytes]:
    parser = _InMemory(request.headers, _limited(request, max_bytes), max_files=max_files, max_fields=max_files)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise TooManyFiles(f"a request may have {max_files} files") from error
        raise MalformedBody(f"the multipart body cannot be read: {error.message}") from error
    images = []
    for name, part in form.multi_items():
        if name != "file" or not isinstance(part, UploadFile):
            raise BadParameter(f"part {name!r}: images go in file parts named 'file', parameters in the query")
        images.append(await part.read())
    if not images:
        raise EmptyBody("the multipart body has no 'file' part: send one for each image")
    return images
