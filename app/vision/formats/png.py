"""Decodes PNG with Pillow, which gets only the chunks that it needs: others would take time and memory."""

import contextlib
import io
import struct
import zlib

from PIL import Image

from app.vision.formats import pillow
from app.vision.formats.limits import Limits
from app.vision.formats.orientation import Pixels, read_orientation

MAX_EXIF_BYTES = 1 << 20  # uncompressed
_EXTRA_BYTES_16_BIT = 4  # per pixel, added to the memory of 16-bit colours: they take that much longer
_NEEDED = frozenset((b"IHDR", b"PLTE", b"IDAT"))
_RAW_PROFILE = b"Raw profile type exif\0"  # ImageMagick wrote EXIF here before PNG had a chunk for it
_END = b"\0\0\0\0IEND\xaeB\x60\x82"


def read_size(data: bytes) -> tuple[int, int]:
    """Return width and height in px. Raises ValueError if the file does not begin with IHDR."""
    if not data.startswith(b"IHDR", 12) or len(data) < 33:
        raise ValueError("it does not begin with IHDR")
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def decode(data: bytes, limits: Limits) -> Pixels:
    """Return the upright pixels. Raises TooManyPixels from the header, or Pillow's errors if the file is damaged."""
    limits.check_size(*read_size(data))
    needed, exif = _needed(data)
    orientation = read_orientation(exif)
    with Image.open(io.BytesIO(needed), formats=["PNG"]) as image:
        deep = data[24] == 16 and image.mode not in pillow.STORED_BYTES
        pillow.check_size(image, limits, len(data), rotated=orientation > 1, extra=_EXTRA_BYTES_16_BIT * deep)
        image.load()
        return pillow.read_pixels(image, orientation)


def _needed(data: bytes) -> tuple[bytes, bytes]:
    """Return the file with only the chunks that the pixels need, and its EXIF. Raises ValueError at too many chunks."""
    exif, at = b"", 8
    kept: list[bytes | memoryview] = [data[:8]]
    for _ in range(4096 + len(data) // 256):
        if at + 12 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if kind == b"IHDR" and len(kept) > 1:
            raise ValueError("it has two headers")
        if kind in _NEEDED and (length or kind != b"IDAT"):
            kept.append(memoryview(data)[at:end])
        elif kind == b"IEND":
            break
        elif not exif:
            exif = _exif(kind, data[at + 8 : min(end - 4, at + 8 + MAX_EXIF_BYTES)])
        at = end
    else:
        raise ValueError("it has too many chunks")
    return b"".join((*kept, _END)), exif


def _exif(kind: bytes, body: bytes) -> bytes:
    """Return the EXIF in this chunk; empty if there is none."""
    if kind == b"eXIf":
        return body
    if kind not in (b"tEXt", b"zTXt") or not body.startswith(_RAW_PROFILE):
        return b""
    text = body[len(_RAW_PROFILE) :]
    with contextlib.suppress(ValueError, zlib.error):
        if kind == b"zTXt":
            text = zlib.decompressobj().decompress(text[1:], MAX_EXIF_BYTES)
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    return b""
