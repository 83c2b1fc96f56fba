"""An image that is told, not sent: base64 text, a data: URI, or, where ALLOW_URLS names its host, a URL."""

import base64
import binascii

from app.api.body import parsed
from app.api.urls import fetch
from app.errors import UndecodableImage
from app.inflight import Share
from app.settings import Settings

_URLSAFE = bytes.maketrans(b"-_", b"+/")


async def load(text: str, settings: Settings, share: Share) -> bytes:
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
    text = text.translate(_URLSAFE, b" \t\r\n").rstrip(b"=")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise UndecodableImage(f"the text is no image in base64: {error}") from error
