"""Generated detection scenes with exact ground truth: what the demo model was trained and is scored on.

A scene is a cluttered, photo-like background with shapes pasted on it. Ten classes, each one shape in one colour;
other shapes, and the same shapes in other colours, are distractors without a label. A box is the bounding box of the
pixels that stay visible; an object of which less than 40 % stays visible has no label.

    python models/demo/scenes.py 500 out/ --seed 1     # images/*.jpg and labels/*.txt in YOLO format
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

CLASSES: dict[str, tuple[str, float]] = {  # name: (shape, hue in degrees)
    "red circle": ("circle", 0),
    "blue circle": ("circle", 225),
    "green square": ("square", 125),
    "magenta square": ("square", 300),
    "orange triangle": ("triangle", 28),
    "cyan triangle": ("triangle", 185),
    "yellow star": ("star", 55),
    "violet star": ("star", 270),
    "red cross": ("cross", 0),
    "lime ring": ("ring", 90),
}
NAMES = list(CLASSES)
SHAPES = sorted({shape for shape, _ in CLASSES.values()})
MIN_PX, MAX_PX = 12.0, 400.0  # side of an object before it is turned, log-uniform
MIN_VISIBLE = 0.4
_SUBPIXEL = 4  # fractional bits of cv2's drawing coordinates

Image = NDArray[np.uint8]
Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Scene:
    """One labelled image."""

    image: Image  # uint8 [H, W, 3], RGB
    boxes: NDArray[np.float32]  # [N, 4] x1 y1 x2 y2 in pixels
    classes: NDArray[np.int64]  # [N]


def scene(seed: int, width: int = 640, height: int = 640) -> Scene:
    """The scene of this seed; the same seed and size give the same pixels and boxes."""
    rng = np.random.default_rng([seed, width, height])
    canvas = _background(rng, width, height)
    area = width * height / 640**2
    for _ in range(rng.poisson(5 * area)):
        _paste_distractor(rng, canvas)
    owner = np.zeros((height, width), np.uint8)  # 1 + index of the object seen at a pixel, 0 = none
    classes: list[int] = []
    drawn: list[int] = []  # pixels of the whole object
    for _ in range(max(1, rng.poisson(10 * area))):
        label = int(rng.integers(len(NAMES)))
        shape, hue = CLASSES[NAMES[label]]
        pixels = _paste(rng, canvas, owner, len(classes) + 1, shape, _class_colour(rng, hue))
        if pixels:
            classes.append(label)
            drawn.append(pixels)
    for _ in range(rng.poisson(2 * area)):
        _paste_occluder(rng, canvas, owner)
    boxes, kept = _visible_boxes(owner, drawn)
    labels = np.array([classes[i] for i in kept], np.int64)
    return Scene(_develop(rng, canvas), np.array(boxes, np.float32).reshape(-1, 4), labels)


def _visible_boxes(owner: Image, drawn: list[int]) -> tuple[list[tuple[int, int, int, int]], list[int]]:
    boxes, kept = [], []
    for i, pixels in enumerate(drawn):
        mask = (owner == i + 1).view(np.uint8)
        x, y, w, h = cv2.boundingRect(mask)
        if min(w, h) >= 6 and cv2.countNonZero(mask) >= MIN_VISIBLE * pixels:
            boxes.append((x, y, x + w, y + h))
            kept.append(i)
    return boxes, kept


def _outline(shape: str, rng: Rng) -> NDArray[np.float64]:
    """[N, 2] corners of the shape in the unit circle's square (-1..1)."""
    if shape == "square":
        return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float) * 0.9
    if shape == "triangle":
        return np.array([[0, -1], [0.95, 0.8], [-0.95, 0.8]], float)
    if shape == "cross":
        t = 0.34
        quarter = np.array([[-t, -1], [t, -1], [t, -t]], float)
        return np.concatenate([quarter @ _rotation(a) for a in (0, 90, 180, 270)])
    if shape == "star":
        radius = np.tile([1.0, 0.45], 5)
        angle = np.deg2rad(np.arange(10) * 36 - 90)
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)
    if shape == "blob":
        count = int(rng.integers(4, 9))
        angle = np.sort(rng.uniform(0, 2 * np.pi, count))
        return np.stack([np.cos(angle), np.sin(angle)], 1) * rng.uniform(0.3, 1, (count, 1))
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)  # circle, ring
    return np.stack([np.cos(angle), np.sin(angle)], 1) * 0.95


def _rotation(degrees: float) -> NDArray[np.float64]:
    a = np.deg2rad(degrees)
    return np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])


def _coverage(rng: Rng, shape: str, side: float) -> NDArray[np.float32]:
    """Anti-aliased coverage 0..1 of a turned, slightly squeezed shape on a patch of its own."""
    points = _outline(shape, rng) * [1, rng.uniform(0.8, 1)] @ _rotation(rng.uniform(-25, 25)) * (side / 2)
    size = int(np.ceil(side * 1.25)) + 4
    mask = np.zeros((size, size), np.uint8)
    fixed = np.round((points + size / 2) * (1 << _SUBPIXEL)).astype(np.int32)
    cv2.fillPoly(mask, [fixed], 255, cv2.LINE_AA, _SUBPIXEL)
    if shape == "ring":
        hole = np.round((points * 0.52 + size / 2) * (1 << _SUBPIXEL)).astype(np.int32)
        cv2.fillPoly(mask, [hole], 0, cv2.LINE_AA, _SUBPIXEL)
    return mask.astype(np.float32) / 255


def _colour(hue: float, saturation: float, value: float) -> NDArray[np.float32]:
    pixel = np.array([[[hue % 360, saturation, value]]], np.float32)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0] * 255


def _class_colour(rng: Rng, hue: float) -> NDArray[np.float32]:
    return _colour(hue + rng.normal(0, 4), rng.uniform(0.7, 1), rng.uniform(0.6, 1))


def _any_colour(rng: Rng) -> NDArray[np.float32]:
    return _colour(rng.uniform(0, 360), rng.uniform(0, 0.6), rng.uniform(0.1, 1))


def _side(rng: Rng) -> float:
    return float(np.exp(rng.uniform(np.log(MIN_PX), np.log(MAX_PX))))


def _paste(rng: Rng, canvas: Image, owner: Image, mark: int, shape: str, colour: NDArray[np.float32]) -> int:
    """Draw one labelled object where it hides little of the others; 0 = no such place, else its pixels."""
    cover = _coverage(rng, shape, _side(rng))
    solid = cover > 0.5
    for _ in range(8):
        x, y = _corner(rng, canvas, cover)
        target, source = _clip(owner, x, y, solid)
        below, inside = owner[target], solid[source]
        if inside.sum() >= 0.5 * solid.sum() and np.count_nonzero(below[inside]) <= 0.25 * inside.sum():
            _blend(rng, canvas, x, y, cover, colour)
            below[inside] = mark
            return int(solid.sum())
    return 0


def _paste_distractor(rng: Rng, canvas: Image) -> None:
    """Something without a label: a blob, or a class's shape in a pale colour of no class."""
    shape = "blob" if rng.random() < 0.7 else str(rng.choice(SHAPES))
    cover = _coverage(rng, shape, _side(rng))
    _blend(rng, canvas, *_corner(rng, canvas, cover), cover, _any_colour(rng))


def _paste_occluder(rng: Rng, canvas: Image, owner: Image) -> None:
    """A pale blob in front of whatever is there."""
    cover = _coverage(rng, "blob", float(rng.uniform(15, 120)))
    x, y = _corner(rng, canvas, cover)
    _blend(rng, canvas, x, y, cover, _any_colour(rng))
    target, source = _clip(owner, x, y, cover)
    owner[target][cover[source] > 0.5] = 0


def _corner(rng: Rng, canvas: Image, patch: NDArray[np.float32]) -> tuple[int, int]:
    """Top left corner of a patch whose centre lies in the picture."""
    return (
        int(rng.integers(0, canvas.shape[1])) - patch.shape[1] // 2,
        int(rng.integers(0, canvas.shape[0])) - patch.shape[0] // 2,
    )


Window = tuple[slice, slice]


def _clip(canvas: NDArray, x: int, y: int, patch: NDArray) -> tuple[Window, Window]:
    """Where a patch at (x, y) meets the canvas, as windows of the canvas and of the patch."""
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = min(x + patch.shape[1], canvas.shape[1]), min(y + patch.shape[0], canvas.shape[0])
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))


def _blend(rng: Rng, canvas: Image, x: int, y: int, cover: NDArray[np.float32], colour: NDArray[np.float32]) -> None:
    """Paint a patch in a colour, lit from one side and a little rough, with a soft shadow for depth."""
    if rng.random() < 0.5:
        shadow = cv2.blur(cover, (5, 5)) * np.float32(rng.uniform(0.2, 0.5))
        drop = int(rng.integers(1, 3 + cover.shape[0] // 20))
        _mix(canvas, x + drop, y + drop, shadow, np.zeros(3, np.float32))
    size = cover.shape[0]
    slope = rng.uniform(-0.25, 0.25, 2)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    light = 1 + slope[0] * axis[None, :] + slope[1] * axis[:, None]
    rough = cv2.resize(rng.normal(0, 0.06, (8, 8)).astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    _mix(canvas, x, y, cover, (light + rough).astype(np.float32)[..., None] * colour)


def _mix(canvas: Image, x: int, y: int, cover: NDArray[np.float32], paint: NDArray[np.float32]) -> None:
    target, source = _clip(canvas, x, y, cover)
    alpha = cover[source][..., None]
    if alpha.size:
        paint = paint[source] if paint.ndim == 3 else paint
        canvas[target] = np.clip(canvas[target] * (1 - alpha) + paint * alpha, 0, 255)


def _background(rng: Rng, width: int, height: int) -> Image:
    """Soft noise of several scales in muted colours, crossed by textured patches and lines."""
    half = (width // 2, height // 2)
    picture = np.zeros((half[1], half[0], 3), np.float32) + _any_colour(rng)
    for cells, strength in ((2, 50), (5, 35), (16, 22), (60, 12)):
        noise = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        noise = 0.6 * noise.mean(2, keepdims=True) + 0.4 * noise
        picture += cv2.resize(noise, half, interpolation=cv2.INTER_CUBIC)
    canvas = cv2.resize(np.clip(picture, 0, 255).astype(np.uint8), (width, height))
    for _ in range(rng.poisson(6)):
        centre = rng.uniform(0, 1, 2) * [width, height]
        box = (tuple(centre), tuple(rng.uniform(20, 300, 2)), float(rng.uniform(0, 180)))
        patch = np.round(cv2.boxPoints(box)).astype(np.int32)
        x, y, w, h = cv2.boundingRect(patch)
        if rng.random() < 0.5:
            cv2.fillPoly(canvas, [patch], _any_colour(rng).tolist(), cv2.LINE_AA)
        else:
            _stripe(rng, canvas, patch, x, y, w, h)
    for _ in range(rng.poisson(8)):
        ends = (rng.uniform(-0.2, 1.2, (2, 2)) * [width, height]).astype(int)
        thickness = int(rng.integers(1, 6))
        cv2.line(canvas, ends[0].tolist(), ends[1].tolist(), _any_colour(rng).tolist(), thickness, cv2.LINE_AA)
    return cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(0.4, 2.5)))


def _stripe(rng: Rng, canvas: Image, patch: NDArray[np.int32], x: int, y: int, w: int, h: int) -> None:
    """Fill a patch with parallel stripes of two colours."""
    mask = np.zeros((h, w), np.uint8)
    cv2.fillPoly(mask, [patch - [x, y]], 1)
    period, angle = rng.uniform(6, 40), rng.uniform(0, np.pi)
    phase = np.arange(w)[None, :] * np.cos(angle) + np.arange(h)[:, None] * np.sin(angle)
    stripes = np.where((np.sin(phase * 2 * np.pi / period) > 0)[..., None], _any_colour(rng), _any_colour(rng))
    target, source = _clip(canvas, x, y, mask)
    inside = mask[source].astype(bool)
    canvas[target][inside] = stripes[source][inside]


def _develop(rng: Rng, canvas: Image) -> Image:
    """What a camera adds: vignette, exposure, sensor noise, JPEG."""
    height, width = canvas.shape[:2]
    fx, fy = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    fall = 1 - np.float32(rng.uniform(0, 0.25)) * (fx[None, :] ** 2 + fy[:, None] ** 2) / 2
    picture = canvas * (fall * np.float32(rng.uniform(0.8, 1.15)))[..., None]
    grain = np.float32(rng.uniform(1, 7))
    picture += grain * rng.standard_normal((height, width, 1), np.float32)
    quality = int(rng.integers(70, 96))
    jpeg = cv2.imencode(".jpg", np.clip(picture, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(jpeg, cv2.IMREAD_COLOR)


def write_dataset(folder: Path, count: int, seed: int, width: int = 640, height: int = 640) -> None:
    """images/NNNNN.jpg and labels/NNNNN.txt (class cx cy w h, relative), as Ultralytics reads them."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "labels").mkdir(exist_ok=True)
    for i in range(count):
        item = scene(seed + i, width, height)
        cv2.imwrite(str(folder / f"images/{i:05}.jpg"), item.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        centre = (item.boxes[:, :2] + item.boxes[:, 2:]) / 2 / [width, height]
        sides = (item.boxes[:, 2:] - item.boxes[:, :2]) / [width, height]
        rows = np.concatenate([item.classes[:, None], centre, sides], 1)
        text = "".join(f"{int(r[0])} {r[1]:.6f} {r[2]:.6f} {r[3]:.6f} {r[4]:.6f}\n" for r in rows)
        (folder / f"labels/{i:05}.txt").write_text(text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=640)
    args = parser.parse_args()
    write_dataset(args.folder, args.count, args.seed, args.width, args.height)
