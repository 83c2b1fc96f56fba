"""Loads images that are given as text: base64, a data: URI, or a URL whose host is in ALLOW_URLS."""

import binascii
from collections.abc import Iterator

from app.api.request.body import parsed
from app.api.request.urls import fetch
from app.errors import UndecodableImage
from app.serving.inflight import Share
from app.settings import ServerSettings

_URLSAFE, _SPACE = bytes.maketrans(b"-_", b"+/"), b" \t\r\n"
_PIECE_BYTES = 256 << 10


async def load(text: str, settings: ServerSettings, share: Share) -> bytes:
    """Return the image's bytes; those of a URL are counted in `share`.

    Raises UndecodableImage if the base64 is invalid, Overloaded, and what `fetch` raises.
    """
    if text.startswith(("http://", "https://")):
        data = await fetch(text, settings.allow_urls, settings.max_body_bytes)
        share.add_bytes(len(data))
        return data
    return await from_text(text)


async def from_text(text: str) -> bytes:
    """Decode base64 text, on the parser thread if it is long. Raises UndecodableImage."""
    data = text.encode()
    return await parsed(lambda: from_base64(data), data)


def from_base64(text: bytes) -> bytes:
    """Decode base64 of either alphabet or a data: URI; line breaks, padding are optional. Raises UndecodableImage."""
    if text[:5] == b"data:":
        text = text.partition(b",")[2]
    text = text.rstrip(b"=" + _SPACE)
    try:
        if b"=" in text:
            raise binascii.Error("padding before the end")
        return b"".join(_decoded(text))
    except binascii.Error as error:
        raise UndecodableImage(f"the text is not an image in base64: {error}") from error


def _decoded(text: bytes) -> Iterator[bytes]:
    """Yield the decoded bytes in pieces, because decoding holds the GIL: 0.1 s for 19 MB of text."""
    rest = b""
    for start in range(0, len(text), _PIECE_BYTES):
        rest += text[start : start + _PIECE_BYTES].translate(_URLSAFE, _SPACE)
        whole = len(rest) // 4 * 4
        yield binascii.a2b_base64(rest[:whole], strict_mode=True)
        rest = rest[whole:]
    yield binascii.a2b_base64(rest + b"=" * (-len(rest) % 4), strict_mode=True)
