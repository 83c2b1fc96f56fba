"""The inputs and outputs of the models, per task."""

from collections.abc import Sequence
from dataclasses import dataclass

from app.api.protocols.kserve.tensors import BYTES
from app.model import ModelInfo

_ROW = "x1 y1 x2 y2 score class"
_POINT = {2: "x y", 3: "x y visible"}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output. `shape` has -1 for variable dimensions, batch first; `layout` describes the content."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    layout: str


def frames(info: ModelInfo) -> TensorSpec:
    """Return the input of the tensor model."""
    height, width = info.shapes[0] if info.shapes and len(info.shapes) == 1 else (-1, -1)
    return TensorSpec("images", "FP32", (-1, 3, height, width), "RGB, 0 to 1")


def of_frames(info: ModelInfo) -> Sequence[TensorSpec]:
    """Return the tensor model's outputs, in the engine's order. The number of prototypes depends on the weights."""

    def rows(width: int, layout: str) -> TensorSpec:
        return TensorSpec("output0", "FP32", (-1, -1, width), f"{layout}; px of the frame, best first, then zeros")

    match info:
        case ModelInfo(task="classify"):
            return [TensorSpec("output0", "FP32", (-1, len(info.names)), "probability of each class")]
        case ModelInfo(task="segment"):
            protos = TensorSpec("output1", "FP32", (-1, -1, -1, -1), "mask prototypes, a quarter of the frame's sides")
            return [rows(-1, f"{_ROW} and a coefficient for each prototype"), protos]
        case ModelInfo(task="pose", kpt_shape=(count, values)):
            return [rows(6 + count * values, f"{_ROW} and {_POINT[values]} of each keypoint")]
        case ModelInfo(task="obb"):
            return [rows(7, "cx cy w h score class angle")]
    return [rows(6, _ROW)]


IMAGE = TensorSpec("image", BYTES, (-1,), "encoded images")


def of_images(info: ModelInfo) -> Sequence[TensorSpec]:
    """Return the image model's outputs, in px of each image."""
    scores = TensorSpec("scores", "FP32", (-1, -1), "best first, then zeros")
    classes = TensorSpec("classes", "INT32", (-1, -1), "ids")
    if info.task == "classify":
        return [scores, classes]
    counts = TensorSpec("num_detections", "INT32", (-1,), "number of boxes in each image")
    boxes = TensorSpec("boxes", "FP32", (-1, -1, 4), "x1 y1 x2 y2")
    match info:
        case ModelInfo(task="segment"):
            masks = TensorSpec("masks", BYTES, (-1, -1), "JSON: size and counts, COCO's compressed run lengths")
            return [counts, boxes, scores, classes, masks]
        case ModelInfo(task="pose", kpt_shape=(count, values)):
            return [
                counts,
                boxes,
                scores,
                classes,
                TensorSpec("keypoints", "FP32", (-1, -1, count, values), _POINT[values]),
            ]
        case ModelInfo(task="obb"):
            rotated = TensorSpec("boxes", "FP32", (-1, -1, 5), "cx cy w h angle")
            return [counts, rotated, scores, classes, TensorSpec("corners", "FP32", (-1, -1, 4, 2), "x y")]
    return [counts, boxes, scores, classes]
