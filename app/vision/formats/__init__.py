"""Image files: detects the format, reads the size from the header, and decodes the pixels. One module per format.

Two libraries may read an odd file differently. So the same reader gives the size to check and the pixels, or the
decoder writes into memory of the size that was checked.
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
_DECODER_BYTES = 12  # per pixel: maximum over all decoders
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
    """Return the kind of file by its first bytes; None if it is unknown."""
    for offset, magic, kind in _MAGIC:
        if data.startswith(magic, offset):
            return kind
    return None


def announced_pixels(data: bytes) -> int | None:
    """Return the number of pixels by the header of an image, in a few microseconds. Raises nothing.

    None if the format has no fixed place for the size (TIFF, AVIF), or the bytes are no image.
    """
    try:
        width, height = _SIZES[sniff(data)](data)  # type: ignore[index]
    except (KeyError, IndexError, ValueError, struct.error):
        return None
    return max(width, 0) * height


def decode(data: bytes, limits: Limits, side: int | None = None) -> tuple[Pixels, tuple[int, int]]:
    """Return the upright pixels, and the height and width of the upright original.

    With `side`, a JPEG is scaled to 1/2, 1/4 or 1/8 if its longer side is still `side` px then.

    Raises EmptyBody, UnsupportedImage, TooManyPixels, UndecodableImage or OutOfMemory.
    """
    if not data:
        raise EmptyBody("the image is empty: send the bytes of an image")
    kind = sniff(data)
    if kind is None:
        raise UndecodableImage(f"not an image: its first bytes match no known format; send one of {', '.join(KINDS)}")
    if kind not in KINDS:
        raise UnsupportedImage(f"{kind} is not supported: send one of {', '.join(KINDS)}")
    try:
        if kind == "JPEG":
            return jpeg.decode(data, limits, side)
        pixels = _DECODERS[kind](data, limits)
        return pixels, pixels.shape[:2]
    except RequestError:
        raise
    except Exception as error:  # no complete list of the libraries' errors for damaged bytes exists
        if _is_memory_out(error, _DECODER_BYTES * min(announced_pixels(data) or limits.max_pixels, limits.max_pixels)):
            raise OutOfMemory(f"there is not enough memory to decode the {kind}: send it again later") from error
        raise UndecodableImage(f"the {kind} cannot be decoded: it is damaged, cut short or a rare variant") from error


def _is_memory_out(error: Exception, needed: int) -> bool:
    """Return True if a decoder failed because memory ran out.

    Not all decoders report it; for those, try to allocate `needed` bytes now that the decoder has freed its memory.
    """
    if isinstance(error, MemoryError) or "memory" in str(error).lower() or "allocat" in str(error).lower():
        return True
    try:
        np.empty(needed, np.uint8)
    except MemoryError:
        return True
    return False
