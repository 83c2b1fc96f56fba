"""PNG: only the chunks that matter go to Pillow, so that no others cost anything."""

import contextlib
import io
import struct
import zlib

from PIL import Image

from app.vision.formats import pillow
from app.vision.formats.limits import Limits
from app.vision.formats.orientation import Pixels, read_orientation

MAX_PROFILE = 1 << 20  # bytes of EXIF, unpacked
_DEEP = 4  # bytes for each pixel that 16 bits a colour are reckoned to take more: they take as much longer
_NEEDED = frozenset((b"IHDR", b"PLTE", b"IDAT"))
_RAW_PROFILE = b"Raw profile type exif\0"  # where ImageMagick put EXIF before PNG had a chunk for it
_END = b"\0\0\0\0IEND\xaeB\x60\x82"


def read_size(data: bytes) -> tuple[int, int]:
    """Width and height. Raises ValueError where it does not begin with them."""
    if not data.startswith(b"IHDR", 12) or len(data) < 33:
        raise ValueError("it does not begin with IHDR")
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


def decode(data: bytes, limits: Limits) -> Pixels:
    """The upright pixels. Raises TooManyPixels from the header; else whatever Pillow raises where it is damaged."""
    limits.check_size(*read_size(data))
    needed, exif = _needed(data)
    orientation = read_orientation(exif)
    with Image.open(io.BytesIO(needed), formats=["PNG"]) as image:
        deep = data[24] == 16 and image.mode not in pillow.STORED_BYTES
        pillow.check_size(image, limits, len(data), rotated=orientation > 1, extra=_DEEP * deep)
        image.load()
        return pillow.read_pixels(image, orientation)


def _needed(data: bytes) -> tuple[bytes, bytes]:
    """The file of only the chunks that pixels need, and its EXIF. Raises ValueError at absurdly many chunks."""
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
            exif = _exif(kind, data[at + 8 : min(end - 4, at + 8 + MAX_PROFILE)])
        at = end
    else:
        raise ValueError("it has too many chunks")
    return b"".join((*kept, _END)), exif


def _exif(kind: bytes, body: bytes) -> bytes:
    """What the chunk holds of EXIF."""
    if kind == b"eXIf":
        return body
    if kind not in (b"tEXt", b"zTXt") or not body.startswith(_RAW_PROFILE):
        return b""
    text = body[len(_RAW_PROFILE) :]
    with contextlib.suppress(ValueError, zlib.error):
        if kind == b"zTXt":
            text = zlib.decompressobj().decompress(text[1:], MAX_PROFILE)
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    return b""
