"""Image files: hostile ones are refused before they cost much, unusual but valid ones are decoded."""

import contextlib
import itertools
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_images import (
    XMP,
    after_header,
    chunk,
    many_scans,
    repeated_scans,
    resized,
    rgb_tags,
    save,
    segment,
    strips,
    tiff,
    two_sizes,
)
from PIL import Image

from app.errors import OutOfMemory, RequestError, TooManyPixels, UndecodableImage
from app.vision.formats import KINDS, announced_pixels, jpeg
from app.vision.preprocess import Preprocessor, decode, decode_near

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

MAX_PIXELS = 50_000_000
PIXELS = cv2.resize(
    np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8), (61, 47), interpolation=cv2.INTER_CUBIC
)
PHOTO = Image.fromarray(PIXELS)
LARGE = PHOTO.resize((800, 600), Image.Resampling.BICUBIC)
JPEG, PROGRESSIVE = save(PHOTO, "JPEG", quality=95), save(PHOTO, "JPEG", quality=95, progressive=True)
PNG, GIF = save(PHOTO, "PNG"), save(PHOTO.quantize(64), "GIF")
FILES = {
    "JPEG": JPEG,
    "JPEG progressive": PROGRESSIVE,
    "PNG": PNG,
    "WEBP": save(PHOTO, "WEBP"),
    "WEBP lossless": save(PHOTO, "WEBP", lossless=True),
    "WEBP animated": save(PHOTO, "WEBP", save_all=True, append_images=[PHOTO.rotate(180)], duration=10),
    "BMP": save(PHOTO, "BMP"),
    "GIF": GIF,
    "TIFF": save(PHOTO, "TIFF"),
    "TIFF LZW": save(PHOTO, "TIFF", compression="tiff_lzw"),
    "TIFF JPEG": save(PHOTO, "TIFF", compression="jpeg"),
    "TIFF alpha": save(PHOTO.convert("RGBA"), "TIFF", compression="tiff_adobe_deflate"),
    "TIFF big": save(PHOTO, "TIFF", big_tiff=True),
    "AVIF": save(PHOTO, "AVIF"),
}
GIF_HEAD = GIF.index(b",", 13 + (3 << (GIF[10] & 7) + 1))  # start of the first frame
LAST_SCAN = PROGRESSIVE.rindex(b"\xff\xda")


def with_second_size(png: bytes) -> bytes:
    return after_header(png, chunk(b"IHDR", struct.pack(">IIBBBBB", 7000, 7000, 8, 2, 0, 0, 0)))


def webp_frame(image: Image.Image) -> bytes:
    body = bytes(16) + save(image, "WEBP", lossless=True)[12:]
    return b"ANMF" + struct.pack("<I", len(body)) + body


HOSTILE = {  # files that would cost a naive reader much time or memory
    "JPEG 60 scans of 49 MP": many_scans(7000, 7000, 60),
    "JPEG 400 scans of 49 MP": many_scans(7000, 7000, 400),
    "JPEG 60 scans of 36 MP": many_scans(6000, 6000, 60),
    "JPEG 40 scans of 49 MP in 2 MB": many_scans(7000, 7000, 40) + bytes(2_000_000),
    "JPEG 20,000 scans of 64 px": many_scans(8, 8, 20_000),
    "JPEG 1000 scans of one component": repeated_scans(4000, 1000),
    "JPEG arithmetic": many_scans(6000, 6000, 9, frame=0xCA),
    "JPEG padded head": JPEG[:2] + b"\xff" * 19_000_000 + JPEG[2:],
    "JPEG zeros in the head": JPEG[:2] + bytes(19_000_000) + JPEG[2:],
    "JPEG empty comments": JPEG[:2] + b"\xff\xfe\0\2" * 4_750_000 + JPEG[2:],
    "JPEG comments between scans": PROGRESSIVE[:LAST_SCAN] + b"\xff\xfe\0\2" * 4_000_000 + PROGRESSIVE[LAST_SCAN:],
    "JPEG of no height": resized(JPEG, 61, 0),
    "JPEG 12 bit": JPEG.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
    "JPEG of differences": JPEG.replace(b"\xff\xc0", b"\xff\xc5", 1),
    "JPEG two frames": JPEG[: JPEG.index(b"\xff\xc0")] + segment(0xC0, bytes(15)) + JPEG[JPEG.index(b"\xff\xc0") :],
    "JPEG long side": resized(JPEG, 65_535, 65_535),
    "PNG empty chunks": after_header(PNG, chunk(b"teXt", b"") * 1_600_000),
    "PNG empty chunks behind": PNG[:-12] + chunk(b"teXt", b"") * 1_600_000 + PNG[-12:],
    "PNG empty pixels": after_header(PNG, chunk(b"IDAT", b"") * 1_000_000),
    "PNG one px wide": PNG[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 50_000_000, 8, 2, 0, 0, 0)) + PNG[33:],
    "PNG two sizes": with_second_size(PNG),
    "GIF comments": GIF[:GIF_HEAD] + b"!\xfe" + b"\1x" * 9_000_000 + b"\0" + GIF[GIF_HEAD:],
    "GIF extensions": GIF[:GIF_HEAD] + b"!\xfe\0" * 6_000_000 + GIF[GIF_HEAD:],
    "GIF frame": GIF[:GIF_HEAD] + struct.pack("<BHHHH", 0x2C, 0, 0, 60_000, 60_000) + GIF[GIF_HEAD + 9 :],
    "WEBP chunks": FILES["WEBP animated"][:30] + b"XXXX\0\0\0\0" * 2_000_000 + FILES["WEBP animated"][30:],
    "WEBP canvas": FILES["WEBP animated"][:24] + b"\xff\xff\xff" * 2 + FILES["WEBP animated"][30:],
    "BMP height": FILES["BMP"][:22] + struct.pack("<i", -(2**31)) + FILES["BMP"][26:],
    "BMP size": FILES["BMP"][:18] + struct.pack("<ii", 60_000, 60_000) + FILES["BMP"][26:],
    "TIFF two sizes": two_sizes(18_000, 100),
    "TIFF two sizes, the other way round": two_sizes(18_000, 100, large_first=False),
    "TIFF tags": tiff([(tag, 1, 4, b"abcd") for tag in range(300, 60_000)]),
    "TIFF strips": tiff([*rgb_tags(1, 65_000, 1), *strips(65_000, 1, 3)], bytes(3)),
    "TIFF tile": tiff(
        [
            *rgb_tags(100, 100),
            (322, 4, 1, struct.pack("<I", 60_000)),
            (323, 4, 1, struct.pack("<I", 60_000)),
            (324, 4, 1, b""),
            (325, 4, 1, struct.pack("<I", 100)),
        ],
        zlib.compress(bytes(100)),
    ),
    "TIFF JPEG of many scans": tiff(
        [
            (256, 4, 1, struct.pack("<I", 3500)),
            (257, 4, 1, struct.pack("<I", 3500)),
            (258, 3, 1, b"\x08\0"),
            (259, 3, 1, b"\7\0"),
            (262, 3, 1, b"\1\0"),
            (277, 3, 1, b"\1\0"),
            *strips(1, 3500, len(many_scans(3500, 3500, 60))),
        ],
        many_scans(3500, 3500, 60),
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_before_the_work(name):
    data = HOSTILE[name]
    for decoder in (decode, lambda data, max_pixels: decode_near(data, max_pixels, 640)):
        started = time.thread_time()
        with pytest.raises((TooManyPixels, UndecodableImage)):
            decoder(data, MAX_PIXELS)
        assert time.thread_time() - started < 0.3


@pytest.mark.parametrize(
    "data",
    [
        many_scans(2000, 1500, 30),
        many_scans(1000, 1000, 95),
        PROGRESSIVE + b"\xff\xda" * 1_000_000,
        JPEG[:2] + segment(0xE2, bytes(60_000)) * 255 + JPEG[2:],
        JPEG[:2] + segment(0xFE, b"\xff\xda\xff\xd9") + JPEG[2:],
        PROGRESSIVE[:LAST_SCAN] + segment(0xFE, b"\xff\xda\xff\xd9" * 1000) + PROGRESSIVE[LAST_SCAN:],
        after_header(PNG, chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(10_000_000)))),
        PNG + bytes(1_000_000),
        GIF[:GIF_HEAD] + b"!\xfe" + b"\x20" + b"x" * 32 + b"\0" + GIF[GIF_HEAD:],
        save(PHOTO, "TIFF", save_all=True, append_images=[PHOTO] * 300),
        save(PHOTO.quantize(64), "GIF", save_all=True, append_images=[PHOTO.rotate(i).quantize(64) for i in range(50)]),
        FILES["WEBP animated"] + webp_frame(Image.new("RGB", (2, 2))) * 5000,
        tiff([*rgb_tags(1, 5000, 1), *strips(5000, 1, 3)], bytes(3)),
    ],
    ids=itertools.count(),
)
def test_a_valid_file_with_much_data_besides_its_pixels_is_decoded(data):
    started = time.thread_time()
    assert decode(data, MAX_PIXELS).ndim == 3
    assert time.thread_time() - started < 0.5


def test_fifty_million_pixels_in_ten_scans_are_decoded():
    noise = np.random.default_rng(0).integers(0, 256, (782, 1000), np.uint8)
    data = save(Image.fromarray(np.tile(noise, (8, 8))[:6250]), "JPEG", quality=10, progressive=True)
    assert len(data) > 1 << 20
    assert decode(data, MAX_PIXELS).shape == (6250, 8000, 3)


def test_scans_are_counted_only_up_to_the_end_of_the_image():
    data = many_scans(1000, 1000, 20)
    assert jpeg._count_scans(data + data, jpeg.read_header(data), 100) == 20


@pytest.mark.parametrize("side", ["61x65536", "65536x61"])
def test_a_side_that_is_too_long_is_refused_with_the_limit(side):
    width, height = map(int, side.split("x"))
    data = PNG[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) + PNG[33:]
    with pytest.raises(TooManyPixels, match=f"{side}; a side of at most 65535 pixels"):
        decode(data, MAX_PIXELS)
    with pytest.raises(TooManyPixels, match="61x47; a side of at most 60 pixels"):
        decode(PNG, MAX_PIXELS, 60)


@pytest.mark.parametrize("middle", [False, True])
def test_an_extremely_thin_image_is_preprocessed_quickly(middle):
    prepare = Preprocessor(640, 32, ((640, 640),), fast=False, max_pixels=MAX_PIXELS, middle=middle)
    for size in ((1, 65_535), (65_535, 1)):
        started = time.thread_time()
        assert prepare(save(Image.new("RGB", size), "PNG"))[1].shape == (640, 640, 3)
        assert time.thread_time() - started < 0.3


@pytest.mark.parametrize("name", FILES)
def test_decoded_pixels_are_writable(name):
    assert decode(FILES[name], MAX_PIXELS).flags.writeable


# The number of pixels in the header


@pytest.mark.parametrize("name", FILES)
def test_announced_pixels_are_those_decoded_or_none(name):
    expected = None if name.split()[0] in ("TIFF", "AVIF") else 61 * 47
    assert announced_pixels(FILES[name]) == expected


@settings(deadline=None)
@given(st.sampled_from(sorted(FILES)), st.binary(max_size=60), st.integers(0, 400), st.integers(0, 60))
def test_announced_pixels_of_damaged_files_are_at_most_those_decoded(name, noise, at, gap):
    data = FILES[name][:at] + noise + FILES[name][at + gap :]
    pixels = announced_pixels(data)
    assert pixels is None or pixels >= 0
    with contextlib.suppress(RequestError):
        decoded = decode(data, 100_000)
        assert pixels is None or decoded.size // 3 >= pixels or name.startswith("GIF")


@given(st.binary(max_size=400))
def test_announced_pixels_accepts_any_bytes(data):
    for start in (b"", *(file[:20] for file in FILES.values())):
        announced_pixels(start + data)


@pytest.mark.parametrize("name", HOSTILE)
def test_announced_pixels_of_hostile_files_return_at_once(name):
    started = time.thread_time()
    announced_pixels(HOSTILE[name])
    assert time.thread_time() - started < 0.02


# Orientation


def oriented(kind: str, exif: int | None, xmp: int | None) -> bytes:
    options: dict[str, object] = {"quality": 95}
    if exif is not None:
        tags = Image.Exif()
        tags[0x0112] = exif
        options |= {"tiffinfo": tags} if kind == "TIFF" else {"exif": tags}
    if xmp is not None and kind != "TIFF":
        options["xmp"] = XMP % xmp
    return save(LARGE, kind, **options)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF"]),
    st.none() | st.integers(0, 12) | st.just(65_535),
    st.none() | st.integers(0, 9),
    st.sampled_from([64, 200, 640]),
)
def test_only_a_valid_exif_orientation_is_applied_by_decode_and_decode_near(kind, exif, xmp, side):
    data = oriented(kind, exif, xmp)
    rotated = exif is not None and 5 <= exif <= 8
    expected = (800, 600) if rotated else (600, 800)
    small, size = decode_near(data, MAX_PIXELS, side)
    assert decode(data, MAX_PIXELS).shape[:2] == size == expected
    assert (small.shape[0] > small.shape[1]) == rotated


@pytest.mark.parametrize("xmp", range(2, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_an_orientation_in_xmp_is_ignored(kind, xmp):
    expected = decode(save(PHOTO, kind, quality=95), MAX_PIXELS)
    np.testing.assert_array_equal(decode(save(PHOTO, kind, quality=95, xmp=XMP % xmp), MAX_PIXELS), expected)


def test_exif_orientation_in_a_text_chunk_of_imagemagick_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    text = b"Raw profile type exif\0\nexif\n    1\n" + exif.tobytes().hex().encode() + b"\n"
    for data in (
        after_header(PNG, chunk(b"tEXt", text)),
        after_header(PNG, chunk(b"zTXt", text[:22] + b"\0" + zlib.compress(text[22:]))),
    ):
        np.testing.assert_array_equal(decode(data, MAX_PIXELS), np.rot90(PIXELS, -1))


@pytest.mark.parametrize("tail", [b"", b"II*\0", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff" + bytes(100)])
def test_truncated_exif_is_ignored(tail):
    data = JPEG[:2] + segment(0xE1, b"Exif\0\0" + tail) + JPEG[2:]
    np.testing.assert_array_equal(decode(data, MAX_PIXELS), decode(JPEG, MAX_PIXELS))


# Valid files that few programs write


def big_endian_bigtiff(orientation: int) -> bytes:
    sizes = [(256, 61), (257, 47), (258, 8), (259, 1), (262, 1), (273, 24 + 10 * 20 + 8), (274, orientation)]
    tags = [struct.pack(">HHQQ", tag, 16, 1, value) for tag, value in [*sizes, (277, 1), (278, 47), (279, 61 * 47)]]
    return b"MM\0+\0\x08\0\0" + struct.pack(">QQ", 16, len(tags)) + b"".join(tags) + bytes(8) + PIXELS[..., 0].tobytes()


def test_a_bigtiff_is_decoded_in_either_byte_order():
    np.testing.assert_array_equal(decode(save(PHOTO, "TIFF", big_tiff=True), MAX_PIXELS), PIXELS)
    grey = np.repeat(PIXELS[..., :1], 3, 2)
    np.testing.assert_array_equal(decode(big_endian_bigtiff(1), MAX_PIXELS), grey)
    np.testing.assert_array_equal(decode(big_endian_bigtiff(6), MAX_PIXELS), np.rot90(grey, -1))


@pytest.mark.parametrize(
    "whole", [JPEG, PROGRESSIVE, save(PHOTO, "JPEG", restart_marker_blocks=2)], ids=itertools.count()
)
def test_a_jpeg_without_its_end_marker_is_decoded_if_no_pixels_are_missing(whole):
    np.testing.assert_array_equal(decode(whole[:-2], MAX_PIXELS), decode(whole, MAX_PIXELS))
    for missing in (4, 40, len(whole) // 3):
        with pytest.raises(UndecodableImage):
            decode(whole[:-missing], MAX_PIXELS)


def test_a_stray_byte_before_a_jpeg_marker_is_accepted(capfd):
    for data in (JPEG[:-2] + b"\xab" + JPEG[-2:], PROGRESSIVE[:LAST_SCAN] + b"\xab" + PROGRESSIVE[LAST_SCAN:]):
        for fast in (False, True):
            assert decode_near(data, MAX_PIXELS, 30 if fast else 640)[1] == (47, 61)
    assert capfd.readouterr().err == ""


def test_a_progressive_jpeg_that_ends_between_two_scans_is_undecodable():
    scans = [at for marker, at in jpeg._scan_segments(PROGRESSIVE, jpeg.read_header(PROGRESSIVE)) if marker == 0xDA]
    assert len(scans) == 10
    for at in scans[1:]:
        for end in (b"", PROGRESSIVE[at : at + 2]):
            with pytest.raises(UndecodableImage):
                decode(PROGRESSIVE[:at] + end, MAX_PIXELS)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:2:2"])
def test_a_jpeg_with_subsampling_unknown_to_turbojpeg_keeps_orientation_and_size(mode, subsampling):
    """For example CMYK with all components but the first subsampled."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = save(LARGE.convert(mode), "JPEG", quality=95, subsampling=subsampling, exif=exif, comment=b"x" * 100)
    upright = np.rot90(np.asarray(LARGE.convert(mode).convert("RGB")), -1)
    assert np.abs(decode(data, MAX_PIXELS).astype(int) - upright).mean() < 3
    assert decode_near(data, MAX_PIXELS, 100)[1] == (800, 600)


def test_a_frame_smaller_than_its_canvas_is_decoded_at_its_position():
    animated = FILES["WEBP animated"]
    first = animated.index(b"ANMF")
    frame = bytearray(webp_frame(Image.new("RGB", (4, 2), (9, 99, 199))))
    frame[8], frame[11] = 5, 7  # left and top, halved
    pixels = decode(animated[:first] + bytes(frame) + animated[first:], MAX_PIXELS)
    assert pixels.shape == PIXELS.shape
    assert (pixels[14:16, 10:14] == (9, 99, 199)).all()
    assert np.count_nonzero(pixels.any(2)) == 8


# Nothing on standard error


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    broken = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(4, min(len(broken), 10 ** int(rng.integers(1, 5)))))
        broken[at : at + int(rng.integers(0, 9))] = rng.integers(0, 256, int(rng.integers(1, 9)), np.uint8).tobytes()
    return bytes(broken if rng.random() < 0.7 else broken[: int(rng.integers(len(broken) // 2, len(broken)))])


@pytest.mark.parametrize("name", FILES)
def test_no_library_prints_anything_about_a_damaged_file(name, capfd):
    rng = np.random.default_rng(1)
    for _ in range(150):
        data = damaged(FILES[name], rng)
        for decoder in (decode, lambda data, max_pixels: decode_near(data, max_pixels, 20)):
            with contextlib.suppress(RequestError):
                decoder(data, 10_000_000)
    assert capfd.readouterr() == ("", "")


def test_no_library_prints_anything_about_a_hostile_file(capfd):
    for data in HOSTILE.values():
        with contextlib.suppress(RequestError):
            decode(data, MAX_PIXELS)
    assert capfd.readouterr() == ("", "")


# Memory, measured in separate processes

LIMITED = """
import resource, sys
from app import errors
from app.vision import preprocess
data = sys.stdin.buffer.read()
preprocess.decode(images_small := open(sys.argv[2], "rb").read(), 10**9)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]), -1))
try:
    print(preprocess.decode(data, 10**9).shape)
except errors.YolopardError as error:
    print(error.status, error.code)
"""


def run_python(code: str, *arguments: str, data: bytes) -> str:
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], input=data, capture_output=True, check=True, env=environment
    )
    assert done.stderr == b""
    return done.stdout.decode().strip()


@pytest.mark.parametrize("kind", KINDS)
def test_a_valid_image_without_enough_memory_is_a_server_error(kind, tmp_path):
    image = Image.new("RGB", (4000, 3000), (9, 70, 200))
    options = {"TIFF": {"compression": "tiff_lzw"}, "WEBP": {"method": 0}, "AVIF": {"speed": 10}}.get(kind, {})
    data = save(image, kind, **options)
    small = tmp_path / "small"
    small.write_bytes(save(image.resize((20, 20)), kind))
    assert run_python(LIMITED, "1000000000", str(small), data=data) == "(3000, 4000, 3)"
    for spare in (10_000_000, 30_000_000):
        assert run_python(LIMITED, str(spare), str(small), data=data) == f"{OutOfMemory.status} {OutOfMemory.code}"


MEASURED = """
import io, resource, sys, time
from app import errors
from app.vision import preprocess
data, small = sys.stdin.buffer.read(), open(sys.argv[1], "rb").read()
preprocess.decode(small, 10**9)
before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    preprocess.decode(data, 50_000_000)
    what = "decoded"
except errors.TooManyPixels:
    what = "refused"
print(what, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, time.process_time() - began)
"""
FLAT = {  # kind and mode: millions of pixels just below the limit for a small file
    ("JPEG", "RGB"): 50,
    ("PNG", "RGB"): 26,
    ("PNG", "P"): 46,
    ("WEBP", "RGB"): 31,
    ("GIF", "P"): 46,
    ("TIFF", "RGB"): 26,
    ("AVIF", "RGB"): 15,
}


@pytest.mark.parametrize(("kind", "mode"), FLAT)
def test_a_small_file_costs_at_most_200_mb_and_a_second(kind, mode, tmp_path):
    options = {
        "PNG": {"compress_level": 1},
        "TIFF": {"compression": "tiff_adobe_deflate"},
        "WEBP": {"method": 0},
        "AVIF": {"speed": 10},
    }.get(kind, {})
    small = tmp_path / "small"
    small.write_bytes(save(Image.new(mode, (20, 20)), kind))
    for height, expected in ({6250: None} | {FLAT[kind, mode] * 125: "decoded"}).items():
        data = save(Image.new(mode, (8000, height), 7 if mode == "P" else (90, 20, 200)), kind, **options)
        assert len(data) <= 1 << 20
        what, memory, seconds = run_python(MEASURED, str(small), data=data).split()
        assert what == (expected or what)
        assert int(memory) <= 200_000_000
        assert float(seconds) < 1


def test_a_small_file_may_have_max_pixels_if_that_is_small():
    assert decode(PNG, 61 * 47).shape == PIXELS.shape


def test_the_pixel_limit_of_a_small_file_is_reported_with_a_remedy():
    data = many_scans(6900, 6900, 3)
    with pytest.raises(
        TooManyPixels, match=r"6900x6900; at most 37500000 pixels of this kind.*1048576 bytes.*baseline"
    ):
        decode(data, MAX_PIXELS)
