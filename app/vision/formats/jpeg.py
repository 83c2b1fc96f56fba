"""JPEG: the segments before the pixels, the scans, and the pixels by libjpeg-turbo, which simplejpeg wraps."""

import io
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from app.errors import TooManyPixels
from app.vision.formats import pillow
from app.vision.formats.limits import Limits
from app.vision.formats.orientation import Pixels, read_orientation, swaps_sides, turn_upright

MAX_SEGMENTS = 4096  # before the pixels, and between the scans; a colour profile may take 255
MAX_PADDING = 1 << 16  # bytes before a marker
_ARITHMETIC = 8  # times what a scan of a Huffman code takes

_EOI, _SOI, _SOS, _APP0, _APP1, _APP14 = 0xD9, 0xD8, 0xDA, 0xE0, 0xE1, 0xEE
_FRAMES = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # one that begins a segment, or ends the image
_EXIF = b"Exif\0\0"


@dataclass(slots=True)
class Header:
    """What stands before the pixels."""

    frame: int  # the marker of the frame, which tells how it is coded
    width: int
    height: int
    factors: bytes  # of each component, how often it is sampled across and down, in four bits each
    orientation: int
    scan: int  # where the first scan begins
    interleaved: bool  # the first scan holds all components

    @property
    def arithmetic(self) -> bool:
        return self.frame >= 0xC9

    @property
    def several_scans(self) -> bool:
        """Whether libjpeg keeps the coefficients of all blocks, and reads every scan there is."""
        return self.frame in _PROGRESSIVE or not self.interleaved

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width."""
        return (self.width, self.height) if swaps_sides(self.orientation) else (self.height, self.width)

    @property
    def bytes_per_pixel(self) -> float:
        """Memory that decoding takes: the pixels, the coefficients, CMYK before RGB, and a copy to turn."""
        coefficients = 2 * self._samples_per_pixel() if self.several_scans else 0
        return 3 + coefficients + 4 * (len(self.factors) == 4) + 3 * (self.orientation > 1)

    def _samples_per_pixel(self) -> float:
        across, down = [factor >> 4 for factor in self.factors], [factor & 15 for factor in self.factors]
        area = max(across, default=0) * max(down, default=0)
        if not area:
            raise ValueError("its frame has no components")
        return sum(h * v for h, v in zip(across, down, strict=True)) / area


def read_size(data: bytes) -> tuple[int, int]:
    """Width and height. Raises ValueError or IndexError where it has none, or too far behind."""
    for marker, at, _ in _segments(data):
        if marker in _FRAMES:
            return data[at + 7] << 8 | data[at + 8], data[at + 5] << 8 | data[at + 6]
    raise ValueError("it has no frame")


def read_header(data: bytes) -> Header:
    """Raises ValueError or IndexError where it is damaged, or has more segments or padding than MAX_SEGMENTS,
    MAX_PADDING.
    """
    frame_at, orientation = 0, 0
    for marker, at, end in _segments(data):
        if marker == _SOS:
            return _header(data, frame_at, orientation or 1, at)
        if marker in _FRAMES:
            if frame_at:
                raise ValueError("it has two frames")
            frame_at = at
        elif marker == _APP1 and not orientation and data.startswith(_EXIF, at + 4):
            orientation = read_orientation(data[at + 4 : end])
    raise ValueError(f"more than {MAX_SEGMENTS} segments stand before its pixels")


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, begin and end of each segment, up to the first scan."""
    at = 2
    for _ in range(MAX_SEGMENTS):
        marker = data[at + 1]
        if data[at] != 0xFF or marker == 0xFF:
            at = _next_marker(data, at, at + MAX_PADDING)
            marker = data[at + 1]
        length = data[at + 2] << 8 | data[at + 3]
        if length < 2 or marker in (_SOI, _EOI):
            raise ValueError("a segment is damaged")
        yield marker, at, at + 2 + length
        if marker == _SOS:
            return
        at += 2 + length


def _next_marker(data: bytes, start: int, end: int) -> int:
    found = _MARKER.search(data, start, end)
    if found is None:
        raise ValueError(f"more than {MAX_PADDING} bytes of padding stand before its pixels, or it ends there")
    return found.start()


def _header(data: bytes, at: int, orientation: int, scan: int) -> Header:
    """Of the segment of the frame and that of the first scan."""
    if not at:
        raise ValueError("it has no frame")
    components = data[at + 9]
    return Header(
        frame=data[at + 1],
        width=data[at + 7] << 8 | data[at + 8],
        height=data[at + 5] << 8 | data[at + 6],
        factors=data[at + 11 : at + 10 + 3 * components : 3],
        orientation=orientation,
        scan=scan,
        interleaved=data[scan + 4] >= components,
    )


def decode(data: bytes, limits: Limits, side: int | None) -> tuple[Pixels, tuple[int, int]]:
    """The upright pixels, and the height and width of the upright original. With `side` they come at 1/2, 1/4 or 1/8,
    as long as the longer side is still `side` px.

    Raises TooManyPixels, before any pixel is decoded; ValueError or IndexError where it is damaged.
    """
    header = read_header(data)
    _check(data, header, limits)
    fraction = 1 if side is None else _fraction(max(header.width, header.height), side)
    width, height = -(-header.width // fraction), -(-header.height // fraction)
    if not width or not height:
        raise ValueError("it has no pixels")
    try:
        pixels = _decode(data, height, width, fraction, strict=True)
    except ValueError:
        pixels = _decode_odd(data, header, height, width, fraction, limits)
    return turn_upright(pixels, header.orientation), header.upright_size


def _decode_odd(data: bytes, header: Header, height: int, width: int, fraction: int, limits: Limits) -> Pixels:
    """One of which libjpeg has something to say. An end marker that lacks is no harm where no pixel does."""
    if not _is_ended(data, header):
        if not _has_all_scans(data, header):
            raise ValueError("it ends before its last scan")
        return _decode(data + b"\xff\xd9", height, width, fraction, strict=True)
    try:
        return _decode(data, height, width, fraction, strict=False)
    except ValueError:  # samples in a ratio that TurboJPEG has no name for
        limits.check_memory(header.width, header.height, len(data), header.bytes_per_pixel + 4)
        return _decode_by_pillow(data)


def _check(data: bytes, header: Header, limits: Limits) -> None:
    width, height = header.width, header.height
    limits.check_size(width, height)
    limits.check_memory(width, height, len(data), header.bytes_per_pixel)
    if not header.several_scans:
        return
    most = limits.most_scans(width, height, len(data))
    if header.arithmetic:
        most = max(most // _ARITHMETIC, 1)
    if _count_scans(data, header, most) > most:
        raise TooManyPixels(
            f"the JPEG has more than {most} scans of {width}x{height} pixels: send it with fewer, or as a baseline JPEG"
        )


def _scan_segments(data: bytes, header: Header) -> Iterator[tuple[int, int]]:
    """Marker and begin of each segment from the first scan on, the end marker included if there is one. Raises
    ValueError at more than MAX_SEGMENTS.
    """
    at = header.scan
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None:
            return
        at = found.start()
        yield data[at + 1], at
        if data[at + 1] == _EOI:
            return
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    raise ValueError(f"more than {MAX_SEGMENTS} segments stand between its scans")


def _count_scans(data: bytes, header: Header, most: int) -> int:
    """At most one more than `most`."""
    scans = (at for marker, at in _scan_segments(data, header) if marker == _SOS)
    return sum(1 for _ in itertools.islice(scans, most + 1))


def _is_ended(data: bytes, header: Header) -> bool:
    """Whether an end marker stands behind the scans."""
    return any(marker == _EOI for marker, _ in _scan_segments(data, header))


def _has_all_scans(data: bytes, header: Header) -> bool:
    """Whether every coefficient of every component is sent down to its last bit, which each is once."""
    sent = 0
    for marker, at in _scan_segments(data, header):
        if marker == _SOS:
            components = data[at + 4]
            first, last, bits = data[at + 5 + 2 * components : at + 8 + 2 * components]
            sent += components * (last - first + 1) if not bits & 15 else 0
    return sent >= 64 * len(header.factors)


def _fraction(longer: int, side: int) -> int:
    return next((fraction for fraction in (8, 4, 2) if longer >= fraction * side), 1)


def _decode(data: bytes, height: int, width: int, fraction: int, *, strict: bool) -> Pixels:
    """Into memory of this size: libjpeg cannot decode more than was checked."""
    pixels = np.empty((height, width, 3), np.uint8)
    if fraction == 1:
        decoded = simplejpeg.decode_jpeg(data, "RGB", buffer=pixels, strict=strict)
    else:
        decoded = simplejpeg.decode_jpeg(
            data, "RGB", min_height=height, min_width=width, min_factor=fraction, buffer=pixels, strict=strict
        )
    if decoded.shape != pixels.shape:
        raise ValueError("its pixels are of another size than its header says")
    return np.asarray(decoded, np.uint8)


def _decode_by_pillow(data: bytes) -> Pixels:
    """Whole, as it is stored; CMYK to RGB as OpenCV does it."""
    kept = [data[:2]]
    for marker, at, end in _segments(data):
        if marker == _SOS:
            kept.append(data[at:])
        elif marker in (_APP0, _APP14) or marker < _APP0:  # what colours depend on, and no other remark
            kept.append(data[at:end])
    with Image.open(io.BytesIO(b"".join(kept)), formats=["JPEG"]) as image:
        image.load()
        return pillow.read_pixels(image, 1)
