"""Decoding every kind of file, and the letterbox compared with that of Ultralytics."""

import contextlib
import io
import itertools
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from app.errors import EmptyBody, TooManyPixels, UndecodableImage, UnsupportedImage
from app.vision.preprocess import (
    KINDS,
    LetterboxTransform,
    Preprocessor,
    center_crop_transform,
    crop,
    decode,
    decode_near,
    letterbox,
    place,
    points_to_image,
    rotated_to_image,
    sniff,
    to_image,
)

# app.vision.preprocess filters it too, but pytest resets the filters for every test
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")

MAX_PIXELS = 10_000_000

PIXELS = cv2.resize(
    np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8), (61, 47), interpolation=cv2.INTER_CUBIC
)
PHOTO = Image.fromarray(PIXELS)
GRAY = PHOTO.convert("L")
BILEVEL = PHOTO.convert("1")
PALETTE = PHOTO.quantize(64)
SHEER = PHOTO.copy()  # half of it transparent
SHEER.putalpha(Image.fromarray(np.repeat([[0, 255]], 47, 0).astype(np.uint8)).resize(PHOTO.size))
OTHER = PHOTO.rotate(180)


def rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def save(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def deep(image: Image.Image, suffix: str) -> bytes:
    """Encode with 16 bits per channel."""
    return cv2.imencode(suffix, np.asarray(image)[..., ::-1].astype(np.uint16) * 257)[1].tobytes()


def deep_gray(kind: str) -> bytes:
    return save(Image.fromarray(np.asarray(GRAY).astype(np.uint16) * 257), kind)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


ANIMATED = {"save_all": True, "append_images": [OTHER], "duration": 100}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

FILES = {  # name, starting with the kind: (bytes, expected image, maximum mean difference)
    "JPEG": (save(PHOTO, "JPEG", quality=95), PHOTO, 4),
    "JPEG gray": (save(GRAY, "JPEG", quality=95), GRAY, 2),
    "JPEG CMYK": (save(PHOTO.convert("CMYK"), "JPEG", quality=95), PHOTO, 2),
    "JPEG progressive": (save(PHOTO, "JPEG", quality=95, progressive=True), PHOTO, 4),
    "PNG": (save(PHOTO, "PNG"), PHOTO, 0),
    "PNG alpha": (save(SHEER, "PNG"), PHOTO, 0),
    "PNG palette": (save(PALETTE, "PNG"), PALETTE, 0),
    "PNG gray": (save(GRAY, "PNG"), GRAY, 0),
    "PNG gray alpha": (save(GRAY.convert("LA"), "PNG"), GRAY, 0),
    "PNG gray with an RGB profile": (save(GRAY, "PNG", icc_profile=SRGB), GRAY, 0),
    "PNG 1 bit": (save(BILEVEL, "PNG"), BILEVEL, 0),
    "PNG 16 bit": (deep(PHOTO, ".png"), PHOTO, 0),
    "PNG 16 bit gray": (deep_gray("PNG"), GRAY, 1),
    "WEBP lossy": (save(PHOTO, "WEBP", quality=95), PHOTO, 4),
    "WEBP lossless": (save(PHOTO, "WEBP", lossless=True), PHOTO, 0),
    "WEBP alpha": (save(SHEER, "WEBP", lossless=True, exact=True), PHOTO, 0),
    "WEBP animated": (save(PHOTO, "WEBP", lossless=True, **ANIMATED), PHOTO, 0),
    "BMP": (save(PHOTO, "BMP"), PHOTO, 0),
    "BMP alpha": (save(SHEER, "BMP"), PHOTO, 0),
    "BMP palette": (save(PALETTE, "BMP"), PALETTE, 0),
    "BMP 1 bit": (save(BILEVEL, "BMP"), BILEVEL, 0),
    "GIF": (save(PALETTE, "GIF"), PALETTE, 0),
    "GIF alpha": (save(PALETTE, "GIF", transparency=PALETTE.getpixel((0, 0))), PALETTE, 0),
    "GIF animated": (save(PALETTE, "GIF", **ANIMATED | {"append_images": [OTHER.quantize(64)]}), PALETTE, 0),
    "TIFF": (save(PHOTO, "TIFF"), PHOTO, 0),
    "TIFF LZW": (save(PHOTO, "TIFF", compression="tiff_lzw"), PHOTO, 0),
    "TIFF deflate": (save(PHOTO, "TIFF", compression="tiff_adobe_deflate"), PHOTO, 0),
    "TIFF pages": (save(PHOTO, "TIFF", save_all=True, append_images=[OTHER]), PHOTO, 0),
    "TIFF alpha": (save(SHEER, "TIFF"), PHOTO, 0),
    "TIFF CMYK": (save(PHOTO.convert("CMYK"), "TIFF"), PHOTO, 1),
    "TIFF palette": (save(PALETTE, "TIFF"), PALETTE, 0),
    "TIFF fax": (save(BILEVEL, "TIFF", compression="group4"), BILEVEL, 0),
    "TIFF 16 bit": (deep(PHOTO, ".tiff"), PHOTO, 0),
    "TIFF 16 bit gray": (deep_gray("TIFF"), GRAY, 1),
    "AVIF": (save(PHOTO, "AVIF", quality=95), PHOTO, 4),
    "AVIF alpha": (save(SHEER, "AVIF", quality=95), PHOTO, 4),
    "AVIF gray": (save(GRAY, "AVIF", quality=95), GRAY, 2),
    "AVIF animated": (save(PHOTO, "AVIF", quality=95, **ANIMATED), PHOTO, 4),
}
PLAIN = ("JPEG", "PNG", "WEBP lossless", "BMP", "GIF", "TIFF", "AVIF")  # one name of each kind


def test_the_test_files_cover_every_kind():
    assert {name.split()[0] for name in PLAIN} == {name.split()[0] for name in FILES} == set(KINDS)


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_is_decoded(name):
    data, expected, tolerance = FILES[name]
    pixels = decode(data, MAX_PIXELS)
    assert sniff(data) == name.split()[0]
    assert (pixels.shape, pixels.dtype) == (PIXELS.shape, np.uint8)
    assert np.abs(pixels.astype(int) - rgb(expected)).mean() <= tolerance


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}], ids=str)
def test_a_jpeg_is_decoded_bit_identically_to_opencv(mode, options):
    for quality, subsampling in itertools.product((10, 75, 100), ("4:4:4", "4:2:2", "4:2:0")):
        data = save(PHOTO.convert(mode), "JPEG", quality=quality, subsampling=subsampling, **options)
        expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        np.testing.assert_array_equal(decode(data, MAX_PIXELS), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_exif_orientation_is_applied_in_every_format_that_has_it(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"tiffinfo": exif} if kind == "TIFF" else {"exif": exif, "quality": 95}
    data = save(PHOTO, kind, **options)
    upright = rgb(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    pixels = decode(data, MAX_PIXELS)
    assert pixels.shape == upright.shape == (PIXELS.shape if orientation < 5 else PIXELS.transpose(1, 0, 2).shape)
    assert np.abs(pixels.astype(int) - upright).max() <= 3


@pytest.mark.parametrize(
    "before",
    [b"\xff\xfe\x00\x06\xff\xda\xff\xd9", b"\xff", b"\xff\xfe\x00\x02" * 1000],
    ids=["comment", "fill", "many"],
)
def test_exif_orientation_is_found_after_other_segments_of_a_jpeg(before):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = save(PHOTO, "JPEG", exif=exif, quality=95)
    rotated = decode(data[:2] + before + data[2:], MAX_PIXELS)
    np.testing.assert_array_equal(rotated, decode(data, MAX_PIXELS))


def test_the_bytes_of_exif_in_a_comment_are_not_exif():
    data = save(PHOTO, "JPEG", quality=95, comment=b"Exif\0\0")
    np.testing.assert_array_equal(decode(data, MAX_PIXELS), decode(save(PHOTO, "JPEG", quality=95), MAX_PIXELS))


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("name", [name for name in FILES if name.split()[-1] not in ("animated", "pages")])
def test_a_truncated_file_is_undecodable(name, ratio):
    data = FILES[name][0]
    with pytest.raises(UndecodableImage, match=name.split()[0]) as caught:
        decode(data[: int(len(data) * ratio)], MAX_PIXELS)
    assert caught.value.status == 422


@pytest.mark.parametrize("name", PLAIN)
def test_a_damaged_file_is_decoded_or_refused_without_another_error(name):
    data, rng = FILES[name][0], np.random.default_rng(0)
    for _ in range(200):
        damaged = np.frombuffer(data, np.uint8).copy()
        start = int(rng.integers(8, min(len(data), 10 ** int(rng.integers(1, 5)))))
        damaged[start : start + int(rng.integers(1, 30))] = rng.integers(256)
        with contextlib.suppress(UndecodableImage, UnsupportedImage, TooManyPixels):
            assert decode(damaged.tobytes(), MAX_PIXELS).ndim == 3


@pytest.mark.parametrize("data", [b"\0", b"\0" * 1000, b"hello", bytes(range(256)), b"RIFF....WAVE", PIXELS.tobytes()])
def test_a_file_of_no_known_kind_is_undecodable(data):
    with pytest.raises(UndecodableImage, match="JPEG, PNG"):
        decode(data, MAX_PIXELS)


@pytest.mark.parametrize("name", PLAIN)
def test_a_valid_signature_with_garbage_is_undecodable(name):
    with pytest.raises(UndecodableImage, match=name.split()[0]):
        decode(FILES[name][0][:12] + b"\0" * 100, MAX_PIXELS)


def test_no_bytes_are_an_empty_body():
    with pytest.raises(EmptyBody):
        decode(b"", MAX_PIXELS)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"%PDF-1.7\n", "PDF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0", "HEIC"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"<!doctype html>", "HTML"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "MP4"),
        (b"\x1aE\xdf\xa3", "Matroska"),
        (b"PK\x03\x04", "ZIP"),
        (b"\x1f\x8b\x08", "gzip"),
        (b'{"image": ""}', "JSON"),
        (b"\0\0\x01\0\x01\0", "ICO"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    ],
)
def test_unsupported_kinds_are_refused_with_their_name_and_the_supported_kinds(data, kind):
    with pytest.raises(UnsupportedImage, match=f"{kind}.*send one of JPEG, PNG") as caught:
        decode(data, MAX_PIXELS)
    assert caught.value.status == 415


def huge(kind: str) -> bytes:
    """Return a small file with 40000x40000 in its header."""
    data = FILES[kind][0]
    if kind == "PNG":
        return data[:8] + chunk(b"IHDR", struct.pack(">II", 40000, 40000) + data[24:29]) + data[33:]
    if kind == "JPEG":
        frame = data.index(b"\xff\xc0") + 5
        return data[:frame] + struct.pack(">HH", 40000, 40000) + data[frame + 4 :]
    if kind == "GIF":
        return data[:6] + struct.pack("<HH", 40000, 40000) + data[10:]
    return data[:18] + struct.pack("<ii", 40000, 40000) + data[26:]  # BMP


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
def test_too_many_pixels_are_refused_from_the_header(kind):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(TooManyPixels, match="40000x40000"):
        decode(huge(kind), 50_000_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB; the pixels would be 4.8 GB


def test_exactly_max_pixels_are_accepted():
    data = FILES["PNG"][0]
    assert decode(data, 61 * 47).shape == PIXELS.shape
    with pytest.raises(TooManyPixels):
        decode(data, 61 * 47 - 1)


def test_bad_images_print_nothing(tmp_path):
    """In a child process: the C libraries bypass sys.stderr, and pytest catches warnings."""
    for name, (data, *_) in FILES.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / f"{name} cut").write_bytes(data[: len(data) * 6 // 10])
    code = (
        "import pathlib, sys\nfrom app import errors\nfrom app.vision import preprocess\n"
        "for path in pathlib.Path(sys.argv[1]).iterdir():\n"
        "    try: preprocess.decode(path.read_bytes(), 10_000_000)\n"
        "    except errors.UndecodableImage: pass\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


SIZES = [  # (height, width)
    *[(640, 640), (1080, 1920), (1920, 1080), (480, 640), (427, 640), (333, 500), (720, 1281), (641, 639), (100, 75)],
    *[(31, 33), (1, 1), (1, 3000), (3000, 1), (2, 999), (1237, 7), (320, 320), (320, 319), (2160, 3841)],
    *((int(h), int(w)) for h, w in np.random.default_rng(5).integers(1, 1500, (30, 2))),
]
each_frame = pytest.mark.parametrize(
    ("imgsz", "shape"),
    [
        (640, None),
        (640, (640, 640)),
        (320, None),
        (320, (320, 320)),
        (640, (384, 640)),
        (640, (640, 384)),
        (96, (32, 96)),
    ],
)


def letterbox_of(imgsz: int, shape: tuple[int, int] | None) -> Callable[..., np.ndarray]:
    from ultralytics.data.augment import LetterBox

    return LetterBox(shape or (imgsz, imgsz), auto=shape is None, stride=32)


def placed(height: int, width: int, imgsz: int, shape: tuple[int, int] | None) -> LetterboxTransform:
    return place(height, width, imgsz, 32, shape and [shape])


@each_frame
def test_the_letterbox_is_bit_identical_to_that_of_ultralytics(imgsz, shape):
    ultralytics_letterbox, rng = letterbox_of(imgsz, shape), np.random.default_rng(1)
    for height, width in SIZES:
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        frame = letterbox(image, placed(height, width, imgsz, shape))
        assert np.array_equal(frame, ultralytics_letterbox(image=image)), (height, width)


LISTED = [(640, 640), (384, 640), (640, 384), (320, 320)]


@pytest.mark.parametrize(
    ("size", "frame"),
    [
        ((1080, 1920), (384, 640)),
        ((1920, 1080), (640, 384)),
        ((480, 640), (640, 640)),
        ((640, 640), (640, 640)),
        ((100, 100), (640, 640)),  # the frame that enlarges it most, not the nearest size
        ((1, 3000), (384, 640)),
        ((3000, 1), (640, 384)),
        ((384, 640), (384, 640)),
        ((385, 640), (640, 640)),
        ((383, 640), (384, 640)),
        *(((3 * k, 5 * k), (384, 640)) for k in range(1, 400, 7)),  # 384:640
    ],
)
def test_the_shape_that_keeps_the_image_largest_is_chosen_and_the_smallest_of_equals(size, frame):
    for listed in (LISTED, LISTED[::-1]):
        assert place(*size, 640, 32, listed).frame == frame


def test_the_transform_for_several_shapes_is_that_of_the_chosen_shape():
    for height, width in SIZES:
        transform = place(height, width, 640, 32, LISTED)
        assert transform == place(height, width, 640, 32, [transform.frame])
        gains = [min(h / height, w / width) for h, w in LISTED]
        frame_h, frame_w = transform.frame
        assert min(frame_h / height, frame_w / width) == pytest.approx(max(gains), rel=1e-12)


def resized_by_scale_boxes(transform: LetterboxTransform) -> tuple[int, ...]:
    """Return the resized image shape that scale_boxes computes."""
    gain = min(frame / side for frame, side in zip(transform.frame, transform.image, strict=True))
    return tuple(max(round(side * gain), 1) for side in transform.image)


@each_frame
def test_boxes_are_scaled_back_as_by_ultralytics(imgsz, shape):
    from ultralytics.utils.ops import scale_boxes

    rng, compared = np.random.default_rng(2), 0
    for height, width in SIZES:
        transform = placed(height, width, imgsz, shape)
        if resized_by_scale_boxes(transform) == transform.resized:  # the next test covers the others
            boxes = rng.uniform(-20, imgsz + 20, (50, 4)).astype(np.float32)
            expected = scale_boxes(transform.frame, boxes.copy(), (height, width))
            assert np.abs(to_image(boxes, transform) - expected).max() < 1e-3, (height, width)
            compared += 1
    assert compared >= len(SIZES) - 2


def test_the_letterbox_is_inverted_exactly_even_if_ultralytics_is_not():
    """407 px become 192.24, rounded to 192: from that frame scale_boxes computes a height of 639 instead of 640."""
    transform = place(1355, 407, 640, 32, None)
    assert (
        transform.frame
        == transform.resized
        == letterbox_of(640, None)(image=np.zeros((1355, 407, 3), np.uint8)).shape[:2]
        == (640, 192)
    )
    assert to_image(np.array([[0, 0, 192, 640]], np.float32), transform).tolist() == [[0, 0, 407, 1355]]


@each_frame
def test_the_corners_of_the_image_are_mapped_back_exactly(imgsz, shape):
    for height, width in SIZES:
        transform = placed(height, width, imgsz, shape)
        top, left, (resized_h, resized_w) = transform.top, transform.left, transform.resized
        corners = np.array([[left, top, left + resized_w, top + resized_h]], np.float32)
        assert to_image(corners, transform) == pytest.approx(np.array([[0, 0, width, height]]), abs=1e-3)


@each_frame
@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_extremely_thin_images_fit_their_frame(size, imgsz, shape):
    image = np.full((*size, 3), 7, np.uint8)
    transform = placed(*size, imgsz, shape)
    frame = letterbox(image, transform)
    assert all(side % 32 == 0 and 0 < side <= imgsz for side in frame.shape[:2])
    assert np.count_nonzero((frame == 7).all(2)) == transform.resized[0] * transform.resized[1] > 0


@pytest.mark.parametrize("name", PLAIN)
def test_decoded_images_of_every_kind_can_be_letterboxed(name):
    transform = place(*PIXELS.shape[:2], 64, 32, None)
    assert letterbox(decode(FILES[name][0], MAX_PIXELS), transform).shape == (64, 64, 3)


def test_an_empty_array_of_boxes_stays_empty():
    assert to_image(np.zeros((0, 4), np.float32), place(47, 61, 640, 32, None)).shape == (0, 4)


# Decoding at a fraction of the size

LARGE = PHOTO.resize((1001, 753), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("side", "fraction"), [(1002, 1), (501, 1), (500, 2), (251, 2), (250, 4), (126, 4), (125, 8), (10, 8)]
)
def test_fast_decoding_shrinks_while_the_longer_side_is_at_least_the_requested_side(side, fraction):
    pixels, size = decode_near(save(LARGE, "JPEG"), MAX_PIXELS, side)
    assert size == (753, 1001)
    assert pixels.shape == (-(-753 // fraction), -(-1001 // fraction), 3)
    if fraction > 1:
        assert max(pixels.shape) >= side


def test_fast_decoding_gives_the_same_image_at_a_smaller_size():
    data = save(LARGE, "JPEG", quality=95)
    small = decode_near(data, MAX_PIXELS, 125)[0]
    shrunk = cv2.resize(decode(data, MAX_PIXELS), (126, 95), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - shrunk).mean() < 2.5
    assert np.abs(small.astype(int) - shrunk[:, ::-1]).mean() > 25


@pytest.mark.parametrize("orientation", range(1, 9))
def test_fast_decoding_returns_the_upright_size_of_the_original(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = save(LARGE, "JPEG", exif=exif, quality=95)
    pixels, size = decode_near(data, MAX_PIXELS, 100)
    assert size == decode(data, MAX_PIXELS).shape[:2]
    assert (pixels.shape[0] > pixels.shape[1]) == (size[0] > size[1])


@pytest.mark.parametrize("name", PLAIN)
def test_fast_decoding_shrinks_only_jpeg(name):
    pixels, size = decode_near(FILES[name][0], MAX_PIXELS, 10)
    assert size == PIXELS.shape[:2]
    assert (pixels.shape == PIXELS.shape) == (name != "JPEG")


@pytest.mark.parametrize("fast", [False, True])
def test_boxes_are_mapped_to_the_original_with_and_without_fast_decoding(fast):
    prepare = Preprocessor(imgsz=64, stride=32, shapes=None, fast=fast, max_pixels=MAX_PIXELS)
    transform, frame = prepare(save(LARGE, "JPEG"))
    assert transform.image == (753, 1001)
    assert frame.shape == (*transform.frame, 3) == (64, 64, 3)
    corners = np.array([[0, transform.top, 64, transform.top + transform.resized[0]]], np.float32)
    assert to_image(corners, transform).tolist() == [[0, 0, 1001, 753]]


@pytest.mark.parametrize("fast", [False, True])
def test_a_jpeg_is_letterboxed_into_the_best_of_several_shapes(fast):
    prepare = Preprocessor(96, 32, ((64, 96), (96, 96), (96, 64)), fast, MAX_PIXELS)
    transform, frame = prepare(save(LARGE.resize((900, 300)), "JPEG"))
    assert frame.shape == (*transform.frame, 3) == (64, 96, 3)
    assert transform.resized == (32, 96)


def test_fast_decoding_applies_max_pixels_to_the_original():
    with pytest.raises(TooManyPixels, match="1001x753"):
        decode_near(save(LARGE, "JPEG"), 1001 * 753 - 1, 10)


# Classify: the centre crop


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (333, 517), (224, 224), (100, 90), (223, 225), (1355, 407)])
@pytest.mark.parametrize("side", [64, 224])
def test_the_centre_crop_equals_torchvision_s_resize_and_center_crop_of_a_pil_image(size, side):
    image = np.random.default_rng(1).integers(0, 255, (*size, 3), np.uint8)
    height, width = size
    whole = (int(side * width / height), side) if height <= width else (side, int(side * height / width))
    left, top = (round((each - side) / 2) for each in whole)
    resized = Image.fromarray(image).resize(whole, Image.Resampling.BILINEAR)
    transform = center_crop_transform(height, width, side)
    assert (transform.image, transform.frame) == (size, (side, side))
    assert transform.resized == whole[::-1]
    np.testing.assert_array_equal(crop(image, transform), resized.crop((left, top, left + side, top + side)))


def test_the_centre_crop_of_a_large_image_is_the_same_channel_by_channel(monkeypatch):
    image = np.random.default_rng(3).integers(0, 255, (300, 200, 3), np.uint8)
    expected = crop(image, center_crop_transform(300, 200, 64))
    monkeypatch.setattr("app.vision.preprocess.MAX_PIXELS_AT_ONCE", 1000)
    np.testing.assert_array_equal(crop(image, center_crop_transform(300, 200, 64)), expected)


def test_the_centre_crop_of_a_long_image_is_off_by_at_most_one_level():
    image = np.random.default_rng(2).integers(0, 255, (40, 2000, 3), np.uint8)
    resized = Image.fromarray(image).resize((3200, 64), Image.Resampling.BILINEAR).crop((1568, 0, 1632, 64))
    found = crop(image, center_crop_transform(40, 2000, 64))
    assert np.abs(found.astype(int) - np.asarray(resized)).max() <= 1


def test_the_centre_crop_of_an_extremely_thin_image_resizes_only_the_crop():
    """The whole resized image would have 224 x 224 million px."""
    image = np.full((1, 1_000_000, 3), 7, np.uint8)
    frame = crop(image, center_crop_transform(1, 1_000_000, 224))
    assert frame.shape == (224, 224, 3)
    assert (frame == 7).all()


def test_a_preprocessor_for_the_middle_gives_the_centre_crop():
    prepare = Preprocessor(64, 32, ((64, 64),), fast=True, max_pixels=10**6, middle=True)
    transform, frame = prepare(cv2.imencode(".png", PIXELS[..., ::-1])[1].tobytes())
    assert transform == center_crop_transform(*PIXELS.shape[:2], 64)
    np.testing.assert_array_equal(frame, crop(PIXELS, transform))


HALVED = LetterboxTransform(image=(480, 640), frame=(320, 320), resized=(240, 320), top=40, left=0)


def test_points_are_moved_and_their_visibility_is_kept():
    points = np.array([[[0, 40, 0.9], [320, 280, 0.1], [100, 60, 0.5]]], np.float32)
    assert points_to_image(points, HALVED)[..., :2].tolist() == [[[0, 0], [640, 480], [200, 40]]]
    np.testing.assert_array_equal(points_to_image(points, HALVED)[..., 2], points[..., 2])
    assert points_to_image(np.array([[-5, 500]], np.float32), HALVED).tolist() == [[0, 480]]


def test_rotated_boxes_are_moved_and_their_angle_is_kept():
    boxes = np.array([[100, 60, 30, 10, 0.5], [0, 40, 1, 2, -0.25]], np.float32)
    assert rotated_to_image(boxes, HALVED).tolist() == [[200, 40, 60, 20, 0.5], [0, 0, 2, 4, -0.25]]
