"""Files of images: which kind one is, what its header announces, and its pixels. One module a kind.

In every kind the same reader gives the size that is checked and the pixels that are decoded, or the decoder writes into
memory of the size that was checked: two libraries read odd files differently.
"""

import struct

import numpy as np

from app.errors import EmptyBody, OutOfMemory, RequestError, UndecodableImage, UnsupportedImage
from app.vision.formats import avif, bmp, gif, jpeg, png, tiff, webp
from app.vision.formats.limits import Limits
from app.vision.formats.orientation import Pixels

__all__ = ["KINDS", "Limits", "Pixels", "announced_pixels", "decode", "sniff"]

_DECODERS = {
    "PNG": png.decode,
    "WEBP": webp.decode,
    "BMP": bmp.decode,
    "GIF": gif.decode,
    "TIFF": tiff.decode,
    "AVIF": avif.decode,
}
_SIZES = {
    "JPEG": jpeg.read_size,
    "PNG": png.read_size,
    "WEBP": webp.read_size,
    "BMP": bmp.read_size,
    "GIF": gif.read_size,
}
_PROBE = 12  # bytes for each pixel: what the hungriest decoder takes
KINDS = ("JPEG", *_DECODERS)

_MAGIC: tuple[tuple[int, bytes, str], ...] = (  # offset, bytes, kind
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (8, b"WEBP", "WEBP"),
    (0, b"BM", "BMP"),
    (0, b"GIF8", "GIF"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (0, b"II+\x00", "TIFF"),  # BigTIFF
    (0, b"MM\x00+", "TIFF"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftyphev", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"),
    (4, b"ftyp", "MP4 video"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"8BPS", "Photoshop"),
    (0, b"\x00\x00\x01\x00", "ICO"),
    (0, b"\x1aE\xdf\xa3", "Matroska video"),
    (0, b"%PDF", "PDF"),
    (0, b"PK\x03\x04", "ZIP"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"<", "SVG, XML or HTML"),
    (0, b"{", "JSON"),
)


def sniff(data: bytes) -> str | None:
    """The kind of file by its first bytes; None when they are no kind known here."""
    for offset, magic, kind in _MAGIC:
        if data.startswith(magic, offset):
            return kind
    return None


def announced_pixels(data: bytes) -> int | None:
    """The pixels that the header of an image announces, in a few microseconds; None where it is not told at a known
    place (TIFF, AVIF), or the bytes are no image. Raises nothing.
    """
    try:
        width, height = _SIZES[sniff(data)](data)  # type: ignore[index]
    except (KeyError, IndexError, ValueError, struct.error):
        return None
    return max(width, 0) * height


def decode(data: bytes, limits: Limits, side: int | None = None) -> tuple[Pixels, tuple[int, int]]:
    """The upright pixels, and the height and width of the upright original. They differ only of a JPEG, with `side`:
    it comes at 1/2, 1/4 or 1/8 if its longer side is then still `side` px.

    Raises EmptyBody, UnsupportedImage, TooManyPixels, UndecodableImage or OutOfMemory.
    """
    if not data:
        raise EmptyBody("the image is empty: send the bytes of an image")
    kind = sniff(data)
    if kind is None:
        raise UndecodableImage(f"not an image: no known kind begins like this; send one of {', '.join(KINDS)}")
    if kind not in KINDS:
        raise UnsupportedImage(f"{kind} is not supported: send one of {', '.join(KINDS)}")
    try:
        if kind == "JPEG":
            return jpeg.decode(data, limits, side)
        pixels = _DECODERS[kind](data, limits)
        return pixels, pixels.shape[:2]
    except RequestError:
        raise
    except Exception as error:  # what the libraries raise on damaged bytes is no closed list
        if _is_memory_out(error, _PROBE * min(announced_pixels(data) or limits.max_pixels, limits.max_pixels)):
            raise OutOfMemory(f"there is no memory left to decode the {kind}: send it again later") from error
        raise UndecodableImage(f"the {kind} cannot be decoded: it is damaged, cut short or of a rare sort") from error


def _is_memory_out(error: Exception, needed: int) -> bool:
    """Whether a decoder failed for want of memory. Not all of them say so, but then there is none for the pixels either
    once theirs is freed.
    """
    if isinstance(error, MemoryError) or "memory" in str(error).lower() or "allocat" in str(error).lower():
        return True
    try:
        np.empty(needed, np.uint8)
    except MemoryError:
        return True
    return False
