"""An image that is told, not sent: base64 text, a data: URI, or, where ALLOW_URLS names its host, a URL."""

import binascii
from collections.abc import Iterator

from app.api.request.body import parsed
from app.api.request.urls import fetch
from app.errors import UndecodableImage
from app.serving.inflight import Share
from app.settings import ServerSettings

_URLSAFE, _SPACE = bytes.maketrans(b"-_", b"+/"), b" \t\r\n"
_PIECE = 256 << 10


async def load(text: str, settings: ServerSettings, share: Share) -> bytes:
    """The image, counted in `share`. Raises UndecodableImage for bad base64, Overloaded, and what `fetch` raises."""
    if text.startswith(("http://", "https://")):
        data = await fetch(text, settings.allow_urls, settings.max_body_bytes)
        share.add_bytes(len(data))
        return data
    return await from_text(text)


async def from_text(text: str) -> bytes:
    """The bytes of base64. Raises UndecodableImage."""
    data = text.encode()
    return await parsed(lambda: from_base64(data), data)


def from_base64(text: bytes) -> bytes:
    """Of either alphabet, in lines or not, padded or not, as a data: URI or not. Raises UndecodableImage."""
    if text[:5] == b"data:":
        text = text.partition(b",")[2]
    text = text.rstrip(b"=" + _SPACE)
    try:
        if b"=" in text:
            raise binascii.Error("there is padding in its middle")
        return b"".join(_decoded(text))
    except binascii.Error as error:
        raise UndecodableImage(f"the text is no image in base64: {error}") from error


def _decoded(text: bytes) -> Iterator[bytes]:
    """Piece by piece: decoding keeps the interpreter to itself, 19 MB of text for a tenth of a second."""
    left = b""
    for at in range(0, len(text), _PIECE):
        left += text[at : at + _PIECE].translate(_URLSAFE, _SPACE)
        whole = len(left) // 4 * 4
        yield binascii.a2b_base64(left[:whole], strict_mode=True)
        left = left[whole:]
    yield binascii.a2b_base64(left + b"=" * (-len(left) % 4), strict_mode=True)
