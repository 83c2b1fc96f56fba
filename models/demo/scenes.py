"""Generate scenes with exact ground truth, for training and evaluating the demo models.

A scene is a cluttered, photo-like background with shapes pasted on it. A class is one shape in one colour; other
shapes, and the same shapes in other colours, are distractors without a label. A box is the bounding box of the
visible pixels; an object that is less than 40 % visible has no label. Every task has its own kind of objects, and every
scene has all labels: boxes, masks, oriented boxes and keypoints.

    python models/demo/scenes.py 500 out/ --seed 1     # images/*.jpg and labels/*.txt in YOLO format
    python models/demo/scenes.py 500 out/ --task obb
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import yaml
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
MIN_VISIBLE = 0.4
_SUBPIXEL = 4  # fractional bits of cv2's drawing coordinates

Image = NDArray[np.uint8]
Points = NDArray[np.float64]  # [N, 2] x y
Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Kind:
    """The properties of the objects in the scenes of a task."""

    classes: dict[str, tuple[str, float]]  # name: (shape, hue in degrees)
    density: float = 10  # objects on 640x640 px, on average
    sides: tuple[float, float] = (12.0, 400.0)  # of an object before rotation, px, log-uniform
    squeeze: tuple[float, float] = (0.8, 1.0)  # height over width
    turn: float = 25.0  # maximum rotation in degrees, either way
    inside: float = 0.5  # minimum share of an object inside the image
    keypoints: tuple[int, ...] = ()  # indices of the labelled corners of the shape
    flip: tuple[int, ...] = ()  # index of each keypoint in the mirrored image


KINDS = {
    "detect": Kind(CLASSES),
    "segment": Kind(CLASSES, density=45, sides=(20, 110)),
    "pose": Kind(
        {"red arrow": ("arrow", 0), "blue arrow": ("arrow", 225)},
        density=45,
        sides=(30, 110),
        turn=180,
        inside=0.7,
        keypoints=(0, 6, 1, 4, 3),  # tip, left and right barb, left and right end
        flip=(0, 2, 1, 4, 3),
    ),
    "obb": Kind(
        {
            "red bar": ("square", 0),
            "blue ellipse": ("circle", 225),
            "green wedge": ("triangle", 125),
            "yellow arrow": ("arrow", 55),
        },
        density=45,
        sides=(30, 110),
        squeeze=(0.3, 0.55),
        turn=180,
        inside=1.0,
    ),
    "classify": Kind(dict(sorted(CLASSES.items())), sides=(20, 110)),  # Ultralytics numbers folders by name
}


@dataclass(frozen=True, slots=True)
class Scene:
    """One labelled image."""

    image: Image  # uint8 [H, W, 3], RGB
    boxes: NDArray[np.float32]  # [N, 4] x1 y1 x2 y2 in pixels
    classes: NDArray[np.int64]  # [N]
    masks: Image  # uint8 [H, W]: 1 + index of the visible object, 0 = none
    corners: NDArray[np.float32]  # [N, 4, 2] x y in pixels: the oriented box of the whole object
    keypoints: NDArray[np.float32]  # [N, K, 3] x y in pixels; 2 = visible, 1 = hidden, 0 = outside the image


@dataclass(frozen=True, slots=True)
class _Patch:
    """A rotated, squeezed shape on its own square."""

    cover: NDArray[np.float32]  # [S, S] anti-aliased coverage 0..1
    outline: Points  # its corners
    frame: Points  # the four corners of the box along its own axes


@dataclass(frozen=True, slots=True)
class _Drawn:
    """An object in the image."""

    label: int
    pixels: int  # of the whole object
    outline: Points
    frame: Points


def scene(seed: int, width: int = 640, height: int = 640, task: str = "detect") -> Scene:
    """Return the scene of this seed; the same seed, size and task give the same pixels and labels."""
    kind = KINDS[task]
    rng = np.random.default_rng([seed, width, height])
    canvas = _background(rng, width, height)
    area = width * height / 640**2
    for _ in range(rng.poisson(5 * area)):
        _paste_distractor(rng, canvas, kind)
    owner = np.zeros((height, width), np.uint8)  # 1 + index of the visible object, 0 = none
    drawn: list[_Drawn] = []
    for _ in range(max(1, rng.poisson(kind.density * area))):
        if drawn_object := _paste(rng, canvas, owner, len(drawn) + 1, kind):
            drawn.append(drawn_object)
    for _ in range(rng.poisson(2 * area)):
        _paste_occluder(rng, canvas, owner, kind)
    boxes, kept = _visible_boxes(owner, drawn)
    renumber = np.zeros(1 + len(drawn), np.uint8)
    renumber[[i + 1 for i in kept]] = np.arange(1, 1 + len(kept))
    count = len(kept)
    return Scene(
        _develop(rng, canvas),
        np.array(boxes, np.float32).reshape(count, 4),
        np.array([drawn[i].label for i in kept], np.int64),
        renumber[owner],
        np.array([drawn[i].frame for i in kept], np.float32).reshape(count, 4, 2),
        np.array([_keypoints(drawn[i], kind, owner == i + 1) for i in kept], np.float32).reshape(
            count, len(kind.keypoints), 3
        ),
    )


def crop(seed: int, side: int = 96) -> tuple[Image, int]:
    """Return a square image with one object in the middle, and its class, for the classify model."""
    kind = KINDS["classify"]
    rng = np.random.default_rng([seed, side])
    canvas = _background(rng, side, side)
    for _ in range(rng.poisson(1)):
        _paste_distractor(rng, canvas, kind)
    label, shape, colour = _pick(rng, kind)
    cover = _coverage(rng, kind, shape, side * rng.uniform(0.4, 0.8)).cover
    x, y = (side - len(cover)) // 2 + rng.integers(-side // 10, side // 10 + 1, 2)
    _blend(rng, canvas, int(x), int(y), cover, colour)
    return _develop(rng, canvas), label


def _visible_boxes(owner: Image, drawn: list[_Drawn]) -> tuple[list[tuple[int, int, int, int]], list[int]]:
    boxes, kept = [], []
    for i, drawn_object in enumerate(drawn):
        mask = (owner == i + 1).view(np.uint8)
        x, y, w, h = cv2.boundingRect(mask)
        if min(w, h) >= 6 and cv2.countNonZero(mask) >= MIN_VISIBLE * drawn_object.pixels:
            boxes.append((x, y, x + w, y + h))
            kept.append(i)
    return boxes, kept


def _keypoints(drawn_object: _Drawn, kind: Kind, seen: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return [K, 3]: x y and 2, 1 or 0; all are 0 outside the image, as in COCO."""
    height, width = seen.shape
    rows = np.zeros((len(kind.keypoints), 3), np.float32)
    for row, (x, y) in zip(rows, drawn_object.outline[list(kind.keypoints)], strict=True):
        if 0 <= x < width and 0 <= y < height:
            near = seen[max(int(y) - 1, 0) : int(y) + 2, max(int(x) - 1, 0) : int(x) + 2]
            row[:] = x, y, 1 + near.any()
    return rows


_POLYGONS = {
    "square": np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float) * 0.9,
    "triangle": np.array([[0, -1], [0.95, 0.8], [-0.95, 0.8]], float),
    "arrow": np.array([[1, 0], [0.1, 0.9], [0.1, 0.4], [-1, 0.4], [-1, -0.4], [0.1, -0.4], [0.1, -0.9]], float),
}


def _outline(shape: str, rng: Rng) -> Points:
    """Return the corners of the shape in the square -1..1."""
    if shape in _POLYGONS:
        return _POLYGONS[shape]
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


def _coverage(rng: Rng, kind: Kind, shape: str, side: float) -> _Patch:
    """Return the shape, rotated and squeezed as an object of this kind, with its corners."""
    outline = _outline(shape, rng)
    squeeze, turn = [1, rng.uniform(*kind.squeeze)], _rotation(rng.uniform(-kind.turn, kind.turn))
    points = outline * squeeze @ turn * (side / 2)
    (left, top), (right, bottom) = outline.min(0), outline.max(0)
    frame = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    size = int(np.ceil(side * 1.25)) + 4
    mask = np.zeros((size, size), np.uint8)
    fixed = np.round((points + size / 2) * (1 << _SUBPIXEL)).astype(np.int32)
    cv2.fillPoly(mask, [fixed], 255, cv2.LINE_AA, _SUBPIXEL)
    if shape == "ring":
        hole = np.round((points * 0.52 + size / 2) * (1 << _SUBPIXEL)).astype(np.int32)
        cv2.fillPoly(mask, [hole], 0, cv2.LINE_AA, _SUBPIXEL)
    middle = size / 2 + 0.5  # cv2 counts from the centre of the first pixel, labels count from its edge
    return _Patch(mask.astype(np.float32) / 255, points + middle, frame * squeeze @ turn * (side / 2) + middle)


def _colour(hue: float, saturation: float, value: float) -> NDArray[np.float32]:
    pixel = np.array([[[hue % 360, saturation, value]]], np.float32)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0] * 255


def _class_colour(rng: Rng, hue: float) -> NDArray[np.float32]:
    return _colour(hue + rng.normal(0, 4), rng.uniform(0.7, 1), rng.uniform(0.6, 1))


def _any_colour(rng: Rng) -> NDArray[np.float32]:
    return _colour(rng.uniform(0, 360), rng.uniform(0, 0.6), rng.uniform(0.1, 1))


def _side(rng: Rng, kind: Kind) -> float:
    return float(np.exp(rng.uniform(*np.log(kind.sides))))


def _pick(rng: Rng, kind: Kind) -> tuple[int, str, NDArray[np.float32]]:
    """Return the id, shape and colour of a random class."""
    label = int(rng.integers(len(kind.classes)))
    shape, hue = list(kind.classes.values())[label]
    return label, shape, _class_colour(rng, hue)


def _paste(rng: Rng, canvas: Image, owner: Image, mark: int, kind: Kind) -> _Drawn | None:
    """Draw one labelled object where it hides little of the others; return None if there is no such position."""
    label, shape, colour = _pick(rng, kind)
    patch = _coverage(rng, kind, shape, _side(rng, kind))
    solid = patch.cover > 0.5
    for _ in range(8):
        x, y = _corner(rng, canvas, patch.cover)
        target, source = _clip(owner, x, y, solid)
        below, inside = owner[target], solid[source]
        if inside.sum() >= kind.inside * solid.sum() and np.count_nonzero(below[inside]) <= 0.25 * inside.sum():
            _blend(rng, canvas, x, y, patch.cover, colour)
            below[inside] = mark
            at = np.array([x, y])
            return _Drawn(label, int(solid.sum()), patch.outline + at, patch.frame + at)
    return None


def _paste_distractor(rng: Rng, canvas: Image, kind: Kind) -> None:
    """Draw an object without a label: a blob, or a shape of a class in a pale colour of no class."""
    shapes = sorted({shape for shape, _ in kind.classes.values()})
    shape = "blob" if rng.random() < 0.7 else str(rng.choice(shapes))
    cover = _coverage(rng, kind, shape, _side(rng, kind)).cover
    _blend(rng, canvas, *_corner(rng, canvas, cover), cover, _any_colour(rng))


def _paste_occluder(rng: Rng, canvas: Image, owner: Image, kind: Kind) -> None:
    """Draw a pale blob in front of the objects."""
    cover = _coverage(rng, kind, "blob", float(rng.uniform(15, 120))).cover
    x, y = _corner(rng, canvas, cover)
    _blend(rng, canvas, x, y, cover, _any_colour(rng))
    target, source = _clip(owner, x, y, cover)
    owner[target][cover[source] > 0.5] = 0


def _corner(rng: Rng, canvas: Image, patch: NDArray[np.float32]) -> tuple[int, int]:
    """Return the top left corner of a patch whose centre is inside the image."""
    return (
        int(rng.integers(0, canvas.shape[1])) - patch.shape[1] // 2,
        int(rng.integers(0, canvas.shape[0])) - patch.shape[0] // 2,
    )


Window = tuple[slice, slice]


def _clip(canvas: NDArray, x: int, y: int, patch: NDArray) -> tuple[Window, Window]:
    """Return the overlap of the canvas and a patch at (x, y), as windows of the canvas and of the patch."""
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = min(x + patch.shape[1], canvas.shape[1]), min(y + patch.shape[0], canvas.shape[0])
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))


def _blend(rng: Rng, canvas: Image, x: int, y: int, cover: NDArray[np.float32], colour: NDArray[np.float32]) -> None:
    """Paint a patch in a colour with light from one side, some texture and sometimes a soft shadow."""
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
    """Return soft noise of several scales in muted colours, with textured patches and lines."""
    half = (width // 2, height // 2)
    pixels = np.zeros((half[1], half[0], 3), np.float32) + _any_colour(rng)
    for cells, strength in ((2, 50), (5, 35), (16, 22), (60, 12)):
        noise = rng.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        noise = 0.6 * noise.mean(2, keepdims=True) + 0.4 * noise
        pixels += cv2.resize(noise, half, interpolation=cv2.INTER_CUBIC)
    canvas = cv2.resize(np.clip(pixels, 0, 255).astype(np.uint8), (width, height))
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
    pixels = canvas * (fall * np.float32(rng.uniform(0.8, 1.15)))[..., None]
    grain = np.float32(rng.uniform(1, 7))
    pixels += grain * rng.standard_normal((height, width, 1), np.float32)
    quality = int(rng.integers(70, 96))
    jpeg = cv2.imencode(".jpg", np.clip(pixels, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return cv2.imdecode(jpeg, cv2.IMREAD_COLOR)


def write_dataset(
    folder: Path, count: int, seed: int, width: int = 640, height: int = 640, task: str = "detect"
) -> None:
    """Write a labelled data set as Ultralytics reads it.

    images/NNNNN.jpg, labels/NNNNN.txt with a line per object in relative coordinates, and data.yaml; for
    classify square images NAME/NNNNN.jpg.
    """
    if task == "classify":
        for i in range(count):
            image, label = crop(seed + i, width)
            _write_jpeg(folder / list(KINDS[task].classes)[label] / f"{i:05}.jpg", image)
        return
    kind = KINDS[task]
    about = {"train": "images", "val": "images", "names": list(kind.classes)}
    if kind.keypoints:
        about |= {"kpt_shape": [len(kind.keypoints), 3], "flip_idx": list(kind.flip)}
    (folder / "labels").mkdir(parents=True, exist_ok=True)
    (folder / "data.yaml").write_text(yaml.safe_dump(about, sort_keys=False))
    for i in range(count):
        item = scene(seed + i, width, height, task)
        _write_jpeg(folder / f"images/{i:05}.jpg", item.image)
        rows = zip(item.classes, _label_rows(item, task), strict=True)
        text = "".join(f"{label} {' '.join(f'{value:.6f}' for value in row)}\n" for label, row in rows)
        (folder / f"labels/{i:05}.txt").write_text(text)


def _write_jpeg(path: Path, image: Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])


def _label_rows(item: Scene, task: str) -> list[NDArray[np.float64]]:
    """Return the values of each object after its class in a label file, in relative coordinates."""
    height, width = item.masks.shape
    if task == "segment":
        return [(_polygon(item.masks == i + 1) / [width, height]).ravel() for i in range(len(item.classes))]
    if task == "obb":  # Ultralytics refuses corners outside the image
        return list((item.corners / [width, height]).clip(0, 1).reshape(-1, 8))
    centre = (item.boxes[:, :2] + item.boxes[:, 2:]) / 2 / [width, height]
    sides = (item.boxes[:, 2:] - item.boxes[:, :2]) / [width, height]
    keypoints = (item.keypoints / [width, height, 1]).reshape(len(centre), 3 * item.keypoints.shape[1])
    return list(np.concatenate([centre, sides, keypoints], 1))


def _polygon(mask: NDArray[np.bool_]) -> Points:
    """Return one polygon around all parts and holes of a mask, joined by lines from the first corner and back."""
    contours = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)[0]
    start = contours[0][:1]
    path = np.concatenate([part for each in contours for part in (each, each[:1], start)])
    return path[:, 0] + 0.5


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=640)
    parser.add_argument("--task", choices=KINDS, default="detect")
    args = parser.parse_args()
    write_dataset(args.folder, args.count, args.seed, args.width, args.height, args.task)
