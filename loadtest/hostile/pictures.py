"""Small image files that cost much: many scans, two sizes, padded headers, one pixel wide, or one colour and huge."""

import io
import math
import struct
import zlib
from functools import cache

import numpy as np
from PIL import Image

from loadtest.hostile.good import SAMPLE


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


@cache
def many_scans(side: int, scans: int) -> bytes:
    """Return a valid grey progressive JPEG; each scan has about 80 bytes and costs a pass over all blocks."""
    blocks = math.ceil(side / 8) ** 2
    ends = [14, *range(13, -1, -1)]  # end-of-band runs of 2^k blocks; the code of the i-th is i ones and a zero

    def table(kind: int, symbols: list[int]) -> bytes:
        counts = bytes([1] * len(symbols) + [0] * (16 - len(symbols)))
        return segment(0xC4, bytes([kind << 4]) + counts + bytes(symbols))

    bits, left = "", blocks
    for i, k in enumerate(ends):
        while left >= 1 << k:
            run = min(left, (1 << (k + 1)) - 1)
            bits += "1" * i + "0" + (f"{run - (1 << k):0{k}b}" if k else "")
            left -= run
    bits += "1" * (-len(bits) % 8)
    band = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")
    flat = bytes(blocks // 8) + (bytes([0xFF >> blocks % 8]) if blocks % 8 else b"")
    parts = [
        b"\xff\xd8",
        segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"),
        segment(0xDB, b"\0" + bytes([16] * 64)),
        segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + bytes([1, 0x11, 0])),
        table(0, [0]),
        table(1, [k << 4 for k in ends]),
        segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + flat,
        segment(0xDA, bytes([1, 1, 0, 1, 63, 0x0D])) + band,
    ]
    low = 13
    for _ in range(scans):
        low = low - 1 if low else 12
        parts.append(segment(0xDA, bytes([1, 1, 0, 1, 63, (low + 1) << 4 | low])) + band)
    return b"".join(parts) + b"\xff\xd9"


@cache
def two_sizes(big: int, small: int, *, big_first: bool = True, kind: int = 17, rows: int = 64) -> bytes:
    """Return a TIFF with two sizes: `big` with type `kind` (17 = SLONG8, which Pillow skips), `small` as LONG."""
    strip = zlib.compress(bytes(big * rows * 3), 9)
    strips = math.ceil(big / rows)
    tags: list[tuple[int, int, int, bytes]] = []
    for tag in (256, 257):
        value = struct.pack("<q", big) if kind in (16, 17) else struct.pack("<i", big)
        pair = [(tag, kind, 1, value), (tag, 4, 1, struct.pack("<I", small))]
        tags += pair if big_first else pair[::-1]
    tags += [(258, 3, 3, struct.pack("<3H", 8, 8, 8)), (259, 3, 1, b"\x08\0"), (262, 3, 1, b"\2\0")]

    def build(at: int) -> tuple[bytes, int]:
        every = [
            *tags,
            (273, 4, strips, struct.pack("<I", at) * strips),
            (277, 3, 1, b"\3\0"),
            (278, 4, 1, struct.pack("<I", rows)),
            (279, 4, strips, struct.pack("<I", len(strip)) * strips),
        ]
        offset, entries, extra = 8 + 2 + 12 * len(every) + 4, b"", b""
        for tag, sort, count, value in every:
            entries += struct.pack("<HHI", tag, sort, count)
            if len(value) <= 4:
                entries += value.ljust(4, b"\0")
            else:
                entries += struct.pack("<I", offset + len(extra))
                extra += value
        made = b"II*\0" + struct.pack("<IH", 8, len(every)) + entries + struct.pack("<I", 0) + extra
        return made, len(made)

    return build(build(0)[1])[0] + strip


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)  # type: ignore[arg-type]
    return file.getvalue()


@cache
def flat(kind: str, width: int, height: int) -> bytes:
    """Return an image of one colour, the smallest file for its number of pixels."""
    options = {"TIFF": {"compression": "tiff_adobe_deflate"}, "JPEG": {"progressive": True}, "WEBP": {"lossless": True}}
    return encoded(Image.new("L" if kind == "GIF" else "RGB", (width, height)), kind, **options.get(kind, {}))


@cache
def noise(side: int) -> bytes:
    """Return a JPEG that takes about 3 bytes a pixel as PNG."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    return encoded(Image.fromarray(pixels), "JPEG", quality=30)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def padded(size: int) -> dict[str, bytes]:
    """Return valid small images with `size` bytes of padding before the pixels, by kind of padding."""
    png, webp, gif = (encoded(Image.new("RGB", (64, 64)), kind) for kind in ("PNG", "WEBP", "GIF"))
    empty, riff = chunk(b"tEXt", b"a\0"), b"JUNK\0\0\0\0"
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(min(size, 1 << 20) * 40), 9))
    rows = size // len(riff)
    return {
        "JPEG, 0xff": SAMPLE[:2] + b"\xff" * size + SAMPLE[2:],
        "JPEG, empty comments": SAMPLE[:2] + b"\xff\xfe\0\2" * (size // 4) + SAMPLE[2:],
        "JPEG, empty APP1": SAMPLE[:2] + b"\xff\xe1\0\2" * (size // 4) + SAMPLE[2:],
        "JPEG, EXIF heads": SAMPLE[:2] + segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0") * (size // 20) + SAMPLE[2:],
        "JPEG, tables": SAMPLE[:2] + segment(0xDB, b"\0" + bytes([1] * 64)) * (size // 69) + SAMPLE[2:],
        "JPEG, stray bytes": SAMPLE[:2] + b"\0" * size + SAMPLE[2:],
        "PNG, empty texts": png[:33] + empty * (size // len(empty)) + png[33:],
        "PNG, packed texts": png[:33] + text * min(size // len(text), 60) + png[33:],
        "PNG, empty data": png[:33] + chunk(b"IDAT", b"") * (size // 12) + png[33:],
        "WebP, empty chunks": b"RIFF" + struct.pack("<I", len(webp) - 8 + rows * 8) + b"WEBP" + riff * rows + webp[12:],
        "GIF, comments": gif[:-1] + b"\x21\xfe\0" * (size // 3) + b";",
        "GIF, comments first": gif[:13] + b"\x21\xfe\1x\0" * (size // 5) + gif[13:],
        "TIFF, a long directory": b"II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 256, 4, 1, 64) * 65_535 + bytes(4),
        "TIFF, a loop": b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 256, 4, 1, 64) + struct.pack("<I", 8),
    }
