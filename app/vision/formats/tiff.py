"""TIFF: the first directory, and its pixels by Pillow, which knows the size that libtiff has to agree with."""

import ctypes
import io
import os
import struct
from pathlib import Path

import PIL
from PIL import Image

from app.errors import TooManyPixels
from app.vision.formats import opencv, pillow
from app.vision.formats.limits import SMALL_SCANS, Limits
from app.vision.formats.orientation import Pixels, swaps_sides

MAX_ENTRIES = 1000  # of a directory
MAX_BLOCKS = 32_768  # strips or tiles
_BLOCK_BYTES = 8  # for each pixel of a strip or tile
_WIDTH, _HEIGHT, _ORIENTATION, _STRIPS, _TILES = 256, 257, 274, 273, 324
_TILE_WIDTH, _TILE_HEIGHT, _ROWS = 322, 323, 278
_NESTED = (34665, 34853, 40965)  # where Pillow reads directories of EXIF
_BIG_ENDIAN_BIGTIFF = b"MM\0+"  # which Pillow 13 takes for a classic TIFF: it looks for the 43 in the wrong byte
_LAYOUTS = {3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}  # of the types of a size, an offset

# Read by libtiff at each JPEG within a TIFF, which may be a progressive one and taller than its strip.
os.environ.setdefault("LIBTIFF_JPEG_MAX_ALLOWED_SCAN_NUMBER", str(SMALL_SCANS))

# Pillow silences libtiff's warnings, not its errors, which would be printed: the library is the one in Pillow's wheel.
for _path in (Path(PIL.__file__).parents[1] / "pillow.libs").glob("libtiff-*"):
    ctypes.CDLL(str(_path)).TIFFSetErrorHandler(None)

Entries = dict[int, tuple[int, int]]  # tag: how many values, and the first one, or the offset of them all


def decode(data: bytes, limits: Limits) -> Pixels:
    """The upright pixels. Raises TooManyPixels from the header; else whatever Pillow raises where it is damaged."""
    entries = _read_entries(data)
    width, height = entries[_WIDTH][1], entries[_HEIGHT][1]
    orientation = entries.get(_ORIENTATION, (1, 1))[1]
    orientation = orientation if 1 <= orientation <= 8 else 1
    limits.check_size(width, height)
    extra = _block_bytes(entries, width, height, limits) / (width * height) + 4 * (orientation > 1)
    if data.startswith(_BIG_ENDIAN_BIGTIFF):
        limits.check_memory(width, height, len(data), opencv.BYTES_PER_PIXEL + extra)
        size = (height, width) if swaps_sides(orientation) else (width, height)
        return opencv.decode(data, *size)  # which turns it
    with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
        if sorted(image.size) != sorted((width, height)):
            raise ValueError("it gives two sizes")
        pillow.check_size(image, limits, len(data), rotated=orientation > 1, extra=extra)
        image.info.pop("xmp", None)  # only EXIF turns an image
        image.load()  # which turns it too
        return pillow.read_pixels(image, 1)


def _block_bytes(entries: Entries, width: int, height: int, limits: Limits) -> int:
    """Memory for a strip or a tile, which may be larger than the image. Raises TooManyPixels."""
    if _TILES in entries or _TILE_WIDTH in entries:
        pixels = entries.get(_TILE_WIDTH, (1, 0))[1] * entries.get(_TILE_HEIGHT, (1, 0))[1]
    else:
        pixels = width * min(entries.get(_ROWS, (1, height))[1], height)
    if pixels > limits.max_pixels:
        raise TooManyPixels(f"a tile of the TIFF has {pixels} pixels; at most {limits.max_pixels} are accepted")
    return _BLOCK_BYTES * pixels


def _read_entries(data: bytes) -> Entries:
    """Of the first directory, the first of each tag. Raises ValueError where there are too many, or one size twice;
    struct.error where it ends too early.
    """
    order = "<" if data.startswith(b"II") else ">"
    big = 43 in data[2:4]
    at, count, entry = (8, f"{order}Q", f"{order}HHQ") if big else (4, f"{order}H", f"{order}HHI")
    (at,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, at)
    found: Entries = {}
    for tag, values, first in _directory(data, at, count, entry, order):
        if tag in found and tag in (_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT, _ROWS):
            raise ValueError("it gives a size twice")
        found.setdefault(tag, (values, first))
        if tag in (_STRIPS, _TILES) and values > MAX_BLOCKS:
            raise ValueError(f"it has more than {MAX_BLOCKS} strips or tiles")
    for tag in _NESTED:
        if tag in found and found[tag][1] + struct.calcsize(count) <= len(data):
            _count_entries(data, found[tag][1], count)
    return found


def _count_entries(data: bytes, at: int, count: str) -> int:
    """Raises ValueError at too many."""
    (entries,) = struct.unpack_from(count, data, at)
    if entries > MAX_ENTRIES:
        raise ValueError(f"it has more than {MAX_ENTRIES} tags")
    return int(entries)


def _directory(data: bytes, at: int, count: str, entry: str, order: str) -> list[tuple[int, int, int]]:
    """Tag, how many values, and the first value or the offset, of each entry."""
    entries = _count_entries(data, at, count)
    at, head = at + struct.calcsize(count), struct.calcsize(entry)
    step = head + (8 if head > 8 else 4)
    found = []
    for start in range(at, at + entries * step, step):
        tag, kind, values = struct.unpack_from(entry, data, start)
        (first,) = struct.unpack_from(f"{order}{_LAYOUTS.get(kind, 'I')}", data, start + head)
        found.append((tag, values, first))
    return found
