"""The two models: one takes tensors, as Ultralytics' and Triton's clients send them, the other encoded images.

Both are served by the same engine. `NAME` takes frames that the client has letterboxed, or cropped for classify, and
returns the engine's outputs, only the rows left after NMS, in px of the frame. `NAME_image` takes encoded images and
returns predictions in px of each image.
"""

from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

import cv2
import numpy as np
import orjson
from numpy.typing import NDArray

from app.api.protocols.kserve import specs
from app.api.protocols.kserve.specs import TensorSpec
from app.api.protocols.kserve.tensors import Tensor
from app.errors import BadParameter
from app.model import ModelInfo, format_shapes
from app.serving.prediction import FramePrediction, Prediction
from app.serving.predictor import Predictor
from app.system.threads import checkpoint
from app.vision import masks
from app.vision.postprocess import Thresholds, corners
from app.vision.preprocess import Pixels

P = TypeVar("P", Prediction, FramePrediction)

_PIXELS = ("FP32", "FP16", "UINT8")  # UINT8 is 0..255, the others 0..1; the metadata has only FP32
_MAX_SIDE_RATIO = 2  # of a frame's side to the model's own size; memory grows with the frame's area
_DEFAULT_CONF = 0.001  # `yolo val` needs boxes down to this score


class Model(Generic[P]):
    """Base class of the two models. An instance is created for each request."""

    suffix: ClassVar[str]
    input: TensorSpec
    outputs: Sequence[TensorSpec]
    max_batch: int  # as in Triton: 0 = shapes have no batch dimension
    defaults: ClassVar[dict[str, Any]] = {}

    def __init__(self, info: ModelInfo, max_images: int) -> None:
        self.info, self.max_images = info, max_images
        self.name = info.name + self.suffix

    def works(
        self, given: Tensor, predictor: Predictor, thresholds: Thresholds, deadline: float
    ) -> list[Coroutine[Any, Any, P]]:
        """Return one coroutine per image; `deadline` is a loop time. Raises BadParameter if the input does not fit."""
        raise NotImplementedError

    def tensors(self, found: Sequence[P], thresholds: Thresholds, names: Sequence[str]) -> list[Tensor]:
        """Return the outputs with these names for the images' predictions, batched."""
        raise NotImplementedError


class TensorModel(Model[FramePrediction]):
    suffix = ""
    defaults: ClassVar[dict[str, Any]] = {"conf": _DEFAULT_CONF}

    def __init__(self, info: ModelInfo, max_images: int) -> None:
        super().__init__(info, max_images)
        self.max_batch = max_images
        self.input, self.outputs = specs.frames(info), specs.of_frames(info)

    def works(
        self, given: Tensor, predictor: Predictor, thresholds: Thresholds, deadline: float
    ) -> list[Coroutine[Any, Any, FramePrediction]]:
        planes = given.numbers
        if given.datatype not in _PIXELS:
            raise BadParameter(f"images: {given.datatype} where one of {', '.join(_PIXELS)} is expected")
        if planes.ndim != 4 or planes.shape[1] != 3:
            raise BadParameter(f"images: shape {list(planes.shape)} is not [images, 3, height, width]")
        self._check_sides(planes.shape[2], planes.shape[3])
        turns = predictor.turns(len(planes))
        return [predictor.predict_frame(partial(to_frame, image), thresholds, deadline, turns) for image in planes]

    def _check_sides(self, height: int, width: int) -> None:
        stride, shapes, max_side = self.info.stride, self.info.shapes, self.info.imgsz * _MAX_SIDE_RATIO
        if shapes and (height, width) not in shapes:
            raise BadParameter(
                f"images: {height}x{width} px is not a shape of this engine; it has {format_shapes(*shapes)}"
            )
        if min(height, width) < stride or max(height, width) > max_side or height % stride or width % stride:
            raise BadParameter(f"images: {height}x{width} px; a side is a multiple of {stride} px, at most {max_side}")

    def tensors(self, found: Sequence[FramePrediction], thresholds: Thresholds, names: Sequence[str]) -> list[Tensor]:
        order = [spec.name for spec in self.outputs]
        return [self._tensor(name, [each.outputs[order.index(name)] for each in found], thresholds) for name in names]

    def _tensor(self, name: str, parts: list[NDArray[np.float32]], thresholds: Thresholds) -> Tensor:
        if name != "output0" or self.info.task == "classify":
            return Tensor.of(name, np.stack(parts))
        rows = np.zeros((len(parts), thresholds.max_det, parts[0].shape[1]), np.float32)
        for image, part in zip(rows, parts, strict=True):
            image[: len(part)] = part
        return Tensor.of(name, rows)


class ImageModel(Model[Prediction]):
    suffix = "_image"
    max_batch = 0
    input = specs.IMAGE

    def __init__(self, info: ModelInfo, max_images: int) -> None:
        super().__init__(info, max_images)
        self.outputs = specs.of_images(info)

    def works(
        self, given: Tensor, predictor: Predictor, thresholds: Thresholds, deadline: float
    ) -> list[Coroutine[Any, Any, Prediction]]:
        turns = predictor.turns(len(given.elements))

        async def predict(data: bytes) -> Prediction:
            engines = predictor.engines[:1]
            return (await predictor.predict(data, thresholds, deadline, engines, turns=turns, shadowed=True))[0]

        if given.shape[0] != len(given.elements):
            raise BadParameter(f"image: shape {list(given.shape)} is not [images]")
        return [predict(data) for data in given.elements]

    def tensors(self, found: Sequence[Prediction], thresholds: Thresholds, names: Sequence[str]) -> list[Tensor]:
        return [Tensor.of(name, _stack([_output(name, each) for each in found])) for name in names]


def _output(name: str, prediction: Prediction) -> NDArray[Any]:
    """Return one image's values of the image model's output `name`, without the batch dimension."""
    found = prediction.detections
    match name:
        case "num_detections":
            return np.array(len(found), np.int32)
        case "classes":
            return found.classes.astype(np.int32)
        case "corners":
            return corners(found.boxes)
        case "masks":
            return np.array([_coco(mask, prediction) for mask in found.masks or ()], object)
    values: NDArray[Any] = getattr(found, name)
    return values


def _coco(mask: masks.Mask, prediction: Prediction) -> bytes:
    checkpoint()
    counts = masks.run_lengths(mask, prediction.transform)
    return orjson.dumps({"size": prediction.transform.image, "counts": counts})


def _stack(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Stack N arrays to [N, ...]. Pads each dimension to the longest with zeros, or with b"" for objects."""
    sides = np.max([part.shape for part in parts], axis=0).astype(int)
    padding = b"" if parts[0].dtype.kind == "O" else 0
    array = np.full((len(parts), *sides), padding, parts[0].dtype)
    for i, part in enumerate(parts):
        index: tuple[int | slice, ...] = (i, *map(slice, part.shape))
        array[index] = part
    return array


def export_metadata(info: ModelInfo) -> dict[str, Any]:
    """Return the metadata that Ultralytics writes into an export. Its client parses the str() of it.

    If the engine takes any shape, the client sends rectangles in batches of any size; otherwise one image at a time, of
    the largest shape. `end2end` is true because the rows are those left after NMS.
    """
    dynamic = info.shapes is None
    height, width = max(info.shapes or [(info.imgsz, info.imgsz)], key=lambda shape: shape[0] * shape[1])
    return {
        "description": f"{info.name}, served by Yolopard",
        "stride": info.stride,
        "task": info.task,
        "batch": 1,
        "imgsz": [height, width],
        "names": info.names,
        "args": {"batch": 1, "dynamic": dynamic, "nms": False},
        "channels": 3,
        "end2end": True,
    } | ({"kpt_shape": info.kpt_shape} if info.kpt_shape else {})


def to_frame(planes: NDArray[Any]) -> Pixels:
    """Convert [3, H, W], floats 0..1 or uint8, to [H, W, 3], uint8.

    Exact for multiples of 1/255, as images have; other values are rounded, and values out of range clipped. Refuses
    nothing, not even NaN: Ultralytics' client warms up with uninitialized memory.
    """
    if planes.dtype != np.uint8:
        rows = planes.astype(np.float32, copy=False).reshape(-1, planes.shape[-1])
        rows = np.clip(rows, 0, 1)  # addWeighted wraps values far out of range
        planes = cv2.addWeighted(rows, 255, rows, 0, 0, dtype=cv2.CV_8U).reshape(planes.shape)  # rounds
    return np.asarray(cv2.merge(list(planes)), np.uint8)
