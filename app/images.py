"""Bytes -> upright RGB pixels -> letterboxed frame, and boxes the way back.

The letterbox is Ultralytics' own (`ultralytics/data/augment.py`, LetterBox): as large as the frame allows, bilinear,
centred on 114 grey, each rounding as there; the way back is `ultralytics/utils/ops.py`, scale_boxes. That one guesses
the resized size from the frame, here it is known: of odd sizes some come back 0.2 % apart, and here to the right place.
"""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from app.errors import EmptyBody, TooManyPixels, UndecodableImage, UnsupportedImage

Pixels = NDArray[np.uint8]  # [H, W, 3], RGB
Boxes = NDArray[np.float32]  # [N, 4], x1 y1 x2 y2

KINDS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
GREY = 114
LONG = 16
SEGMENTS = 300  # of a JPEG in front of its pixels; a profile may take 255

_MAGIC: tuple[tuple[int, bytes, str], ...] = (  # offset, bytes, kind
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (8, b"WEBP", "WEBP"),
    (0, b"BM", "BMP"),
    (0, b"GIF8", "GIF"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
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

_EXIF = b"Exif\0\0"

# One image is one thread's work here, and bad images are the client's news, not the log's.
cv2.setNumThreads(1)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
Image.MAX_IMAGE_PIXELS = None  # the limit is ours, read from the header in `decode`


@dataclass(frozen=True, slots=True)
class Placement:
    """Where an image lies in its frame. `frame` and `image` are (height, width) in px; `top` and `left` are negative
    where the frame shows only the middle of the resized image.
    """

    image: tuple[int, int]
    frame: tuple[int, int]
    resized: tuple[int, int]
    top: int
    left: int


def sniff(data: bytes) -> str | None:
    """The kind of file by its first bytes; None when they are no kind known here."""
    for offset, magic, kind in _MAGIC:
        if data.startswith(magic, offset):
            return kind
    return None


def measure(data: bytes) -> int | None:
    """Pixels that a header announces, if that is told quickly."""
    return None


def decode(data: bytes, max_pixels: int) -> Pixels:
    """The upright image: EXIF orientation applied, alpha dropped, 16 bit scaled to 8, first frame of several.

    Raises EmptyBody, UnsupportedImage, TooManyPixels (from the header, before any pixel) or UndecodableImage.
    """
    return _decode(data, max_pixels, None)[0]


def decode_near(data: bytes, max_pixels: int, side: int) -> tuple[Pixels, tuple[int, int]]:
    """As `decode`, but a JPEG comes at 1/2, 1/4 or 1/8 if its longer side is then still `side` px; libjpeg leaves out
    most of the work. Returns the height and width of the upright original too.
    """
    return _decode(data, max_pixels, side)


def _decode(data: bytes, max_pixels: int, side: int | None) -> tuple[Pixels, tuple[int, int]]:
    if not data:
        raise EmptyBody("the image is empty: send the bytes of an image")
    kind = sniff(data)
    if kind is None:
        raise UndecodableImage(f"not an image: no known kind begins like this; send one of {', '.join(KINDS)}")
    if kind not in KINDS:
        raise UnsupportedImage(f"{kind} is not supported: send one of {', '.join(KINDS)}")
    if kind == "JPEG" and (plain := _plain_jpeg(data, max_pixels, side)) is not None:
        return plain, plain.shape[:2]
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            _require_size(*image.size, max_pixels)
            if side is not None and kind == "JPEG" and (fraction := _fraction(max(image.size), side)) > 1:
                return _by_opencv(data, fraction), _upright_size(image)
            pixels = _by_pillow(image) if _needs_pillow(image, kind) else _by_opencv(data)
            return pixels, pixels.shape[:2]
    except TooManyPixels:
        raise
    except Exception as error:  # what the libraries raise on damaged bytes is no closed list
        raise UndecodableImage(f"the {kind} cannot be decoded: it is damaged, cut short or of a rare sort") from error


def _plain_jpeg(data: bytes, max_pixels: int, side: int | None) -> Pixels | None:
    """To the bit what OpenCV makes of it, by the same libjpeg-turbo without a copy of each line. None: one that is
    turned, to be shrunk, damaged or of a rare sort, which the others know better.
    """
    try:
        if _has_exif(data):
            return None
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        _require_size(width, height, max_pixels)
        if side is not None and _fraction(max(height, width), side) > 1:
            return None
        return np.asarray(simplejpeg.decode_jpeg(data, "RGB"), np.uint8)
    except (ValueError, IndexError):
        return None


def _has_exif(data: bytes) -> bool:
    """Whether a JPEG has it among the segments before its pixels. Raises IndexError or ValueError at rare ones."""
    at, app1, start_of_scan = 2, 0xE1, 0xDA
    for _ in range(SEGMENTS):
        prefix, marker = data[at], data[at + 1]
        if prefix != 0xFF or marker == 0xFF:
            break
        if marker == start_of_scan:
            return False
        if marker == app1 and data.startswith(_EXIF, at + 4):
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    raise ValueError("padded, damaged or of very many segments")


def _require_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise TooManyPixels(f"the image is {width}x{height}; at most {max_pixels} pixels are accepted")


def _needs_pillow(image: Image.Image, kind: str) -> bool:
    """OpenCV 5.0 is the faster one, but prints what ails a PNG even if it is sound (its colour profile, say), decodes
    a GIF slowly, leaves an AVIF unturned, and multiplies a TIFF's colours by its alpha.
    """
    return kind in ("PNG", "GIF", "AVIF") or (kind == "TIFF" and image.mode in ("RGBA", "LA"))


def _fraction(longer: int, side: int) -> int:
    return next((fraction for fraction in (8, 4, 2) if longer >= fraction * side), 1)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width once it is turned as its EXIF orientation says."""
    width, height = image.size
    return (width, height) if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5 else (height, width)


def _by_opencv(data: bytes, fraction: int = 1) -> Pixels:
    flags = cv2.IMREAD_COLOR_RGB | {1: 0, 2: 16, 4: 32, 8: 64}[fraction]  # IMREAD_REDUCED_*, which name no colours
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise ValueError("OpenCV gives no pixels")
    return np.asarray(pixels, np.uint8)


def _by_pillow(image: Image.Image) -> Pixels:
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16"):  # which `convert` would clip
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def place(height: int, width: int, imgsz: int, stride: int, shapes: Sequence[tuple[int, int]] | None) -> Placement:
    """Fit an image in a frame of at most imgsz x imgsz px.

    It becomes that of the shapes (height, width) in which the image is largest, and of equals the one of least area;
    without shapes the smallest multiples of `stride` around the image.
    """
    frame_h, frame_w = max(
        shapes or [(imgsz, imgsz)], key=lambda shape: (min(shape[0] / height, shape[1] / width), -shape[0] * shape[1])
    )
    gain = min(frame_h / height, frame_w / width)
    resized_h, resized_w = max(round(height * gain), 1), max(round(width * gain), 1)
    pad_h, pad_w = frame_h - resized_h, frame_w - resized_w
    if not shapes:
        pad_h, pad_w = pad_h % stride, pad_w % stride
    return Placement(
        image=(height, width),
        frame=(resized_h + pad_h, resized_w + pad_w),
        resized=(resized_h, resized_w),
        top=round(pad_h / 2 - 0.1),
        left=round(pad_w / 2 - 0.1),
    )


def whole(frame: Pixels) -> Placement:
    """That of an image which fills its frame."""
    size = frame.shape[:2]
    return Placement(image=size, frame=size, resized=size, top=0, left=0)


def place_middle(height: int, width: int, side: int) -> Placement:
    """For classify: the shorter side of an image becomes `side`, and of the longer one the middle is seen.

    Rounded as torchvision's Resize and CenterCrop, which Ultralytics' classify_transforms are made of.
    """
    longer = int(side * max(height, width) / min(height, width))
    resized_h, resized_w = (side, longer) if height <= width else (longer, side)
    top, left = -round((resized_h - side) / 2), -round((resized_w - side) / 2)
    return Placement((height, width), (side, side), (resized_h, resized_w), top, left)


@dataclass(frozen=True, slots=True)
class Preparation:
    """How a model wants its images."""

    imgsz: int  # longest side of a frame, px
    stride: int
    shapes: tuple[tuple[int, int], ...] | None  # height, width of the frames there are; None = the smallest rectangle
    fast: bool  # large JPEGs are shrunk by their decoder
    max_pixels: int
    middle: bool = False  # imgsz x imgsz px from the middle of the image: for classify, which is never `fast`

    def __call__(self, data: bytes) -> tuple[Placement, Pixels]:
        """The bytes of an image -> its frame, and where it lies in it. Raises what `decode` raises."""
        if self.middle:
            pixels = decode(data, self.max_pixels)
            placement = place_middle(pixels.shape[0], pixels.shape[1], self.imgsz)
            return placement, crop(pixels, placement)
        if self.fast:
            pixels, (height, width) = decode_near(data, self.max_pixels, self.imgsz)
        else:
            pixels = decode(data, self.max_pixels)
            height, width = pixels.shape[:2]
        placement = place(height, width, self.imgsz, self.stride, self.shapes)
        return placement, letterbox(pixels, placement)


def letterbox(image: Pixels, placement: Placement) -> Pixels:
    """The frame, uint8 [H, W, 3]: the image resized into its place, grey around it."""
    frame = np.empty((*placement.frame, 3), np.uint8)
    (height, width), top, left = placement.resized, placement.top, placement.left
    frame[:top], frame[top + height :], frame[:, :left], frame[:, left + width :] = (GREY,) * 4
    target = frame[top : top + height, left : left + width]
    if image.shape[:2] == placement.resized:
        target[:] = image
    else:
        cv2.resize(image, (width, height), dst=target, interpolation=cv2.INTER_LINEAR)
    return frame


def crop(image: Pixels, placement: Placement) -> Pixels:
    """The frame, uint8 [side, side, 3], of a `place_middle`, to the bit what torchvision makes of a Pillow image; of an
    image longer than LONG squares only the middle is resized, which differs by one level here and there.
    """
    (height, width), (resized_h, resized_w) = placement.image, placement.resized
    left, top, side = -placement.left, -placement.top, placement.frame[0]
    whole, method = Image.fromarray(image), Image.Resampling.BILINEAR
    if max(placement.resized) <= LONG * side:
        resized = whole.resize((resized_w, resized_h), method)
        return np.asarray(resized.crop((left, top, left + side, top + side)))
    x, y = width / resized_w, height / resized_h
    box = (left * x, top * y, min((left + side) * x, width), min((top + side) * y, height))
    return np.asarray(whole.resize((side, side), method, box))


def to_image(boxes: Boxes, placement: Placement) -> Boxes:
    """Frame px -> px of the original image, clipped to it. Each side is undone with its own gain."""
    return points_to_image(boxes.reshape(-1, 2), placement).reshape(-1, 4)


def points_to_image(points: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
    """As `to_image`, of points [..., 2 or more] whose first two values are x y."""
    moved = points.copy()
    moved[..., :2] = (points[..., :2] - _offset(placement)) / _gains(placement)
    height, width = placement.image
    moved[..., :2] = np.clip(moved[..., :2], 0, np.array([width, height], np.float32))
    return moved


def turned_to_image(boxes: NDArray[np.float32], placement: Placement) -> NDArray[np.float32]:
    """As `to_image`, of boxes [N, 5] cx cy w h angle, which are not clipped."""
    centre = (boxes[:, :2] - _offset(placement)) / _gains(placement)
    return np.concatenate([centre, boxes[:, 2:4] / _gains(placement), boxes[:, 4:]], 1)


def _offset(placement: Placement) -> NDArray[np.float32]:
    return np.array([placement.left, placement.top], np.float32)


def _gains(placement: Placement) -> NDArray[np.float32]:
    (height, width), (resized_h, resized_w) = placement.image, placement.resized
    return np.array([resized_w / width, resized_h / height], np.float32)
