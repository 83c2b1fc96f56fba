"""Unusual image files: JPEGs and TIFFs built byte by byte, PNGs chunk by chunk."""

import io
import struct
import zlib

from PIL import Image

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/></rdf:RDF></x:xmpmeta>'
)


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def many_scans(width: int, height: int, scans: int, frame: int = 0xC2) -> bytes:
    """Return a grey progressive JPEG of flat blocks. Each scan has a few bytes, but is decoded over all blocks."""
    blocks = -(-width // 8) * -(-height // 8)
    bits, left = "", blocks
    for code, size in enumerate(range(14, -1, -1)):  # runs of 2^size empty blocks
        while left >= 1 << size:
            run = min(left, (1 << size + 1) - 1)
            bits += "1" * code + "0" + (f"{run - (1 << size):0{size}b}" if size else "")
            left -= run
    bits += "1" * (-len(bits) % 8)
    run = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)).replace(b"\xff", b"\xff\0")
    codes = bytes([1] * 15 + [0]) + bytes(size << 4 for size in range(14, -1, -1))
    parts = [
        b"\xff\xd8",
        segment(0xDB, b"\0" + bytes([16] * 64)),
        segment(frame, struct.pack(">BHHB", 8, height, width, 1) + bytes([1, 0x11, 0])),
        segment(0xC4, b"\0" + bytes([1] + [0] * 15) + b"\0"),
        segment(0xC4, b"\x10" + codes),
        segment(0xDA, bytes([1, 1, 0, 0, 0, 0])) + bytes(-(-blocks // 8)),
        segment(0xDA, bytes([1, 1, 0, 1, 63, 0x0D])) + run,
    ]
    for i in range(scans - 2):
        low = 12 - i % 13
        parts.append(segment(0xDA, bytes([1, 1, 0, 1, 63, (low + 1) << 4 | low])) + run)
    return b"".join(parts) + b"\xff\xd9"


def repeated_scans(side: int, scans: int) -> bytes:
    """Return a sequential JPEG of three components in which every scan has the first component only."""
    table = bytes([1] + [0] * 15) + b"\0"
    head = segment(0xDB, b"\0" + bytes([1] * 64)) + segment(0xC4, b"\0" + table) + segment(0xC4, b"\x10" + table)
    frame = segment(0xC0, struct.pack(">BHHB", 8, side, side, 3) + bytes([1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0]))
    return b"\xff\xd8" + head + frame + (segment(0xDA, bytes([1, 1, 0, 0, 63, 0])) + b"\0") * scans + b"\xff\xd9"


def resized(jpeg: bytes, width: int, height: int) -> bytes:
    """Return the baseline JPEG with another size in its header."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def after_header(png: bytes, chunks: bytes) -> bytes:
    return png[:33] + chunks + png[33:]


def tiff(tags: list[tuple[int, int, int, bytes]], pixels: bytes = b"") -> bytes:
    """Return a TIFF of these tags: number, type, count, value. An empty StripOffsets points to the end of the head."""

    def build(at: int) -> bytes:
        head, extra, first = b"", b"", 8 + 2 + 12 * len(tags) + 4
        for tag, kind, count, value in tags:
            body = struct.pack("<I", at) * count if tag in (273, 324) and not value else value
            if len(body) > 4:
                head += struct.pack("<HHII", tag, kind, count, first + len(extra))
                extra += body
            else:
                head += struct.pack("<HHI", tag, kind, count) + body.ljust(4, b"\0")
        return b"II*\0" + struct.pack("<IH", 8, len(tags)) + head + b"\0\0\0\0" + extra

    return build(len(build(0))) + pixels


def rgb_tags(width: int, height: int, compression: int = 8) -> list[tuple[int, int, int, bytes]]:
    long = struct.Struct("<I").pack
    return [
        (256, 4, 1, long(width)),
        (257, 4, 1, long(height)),
        (258, 3, 3, struct.pack("<3H", 8, 8, 8)),
        (259, 3, 1, struct.pack("<H", compression)),
        (262, 3, 1, b"\2\0"),
        (277, 3, 1, b"\3\0"),
    ]


def strips(count: int, rows: int, size: int) -> list[tuple[int, int, int, bytes]]:
    """Return the tags of strips that all have the same bytes."""
    return [
        (273, 4, count, b""),
        (278, 4, 1, struct.pack("<I", rows)),
        (279, 4, count, struct.pack("<I", size) * count),
    ]


def two_sizes(large: int, small: int, *, large_first: bool = True) -> bytes:
    """Return a TIFF that has its width and height twice, as SLONG8 and as LONG."""
    strip = zlib.compress(bytes(large * 64 * 3), 9)
    sizes = []
    for tag in (256, 257):
        both = [(tag, 17, 1, struct.pack("<q", large)), (tag, 4, 1, struct.pack("<I", small))]
        sizes += both if large_first else both[::-1]
    return tiff(sizes + rgb_tags(0, 0)[2:] + strips(-(-large // 64), 64, len(strip)), strip)
