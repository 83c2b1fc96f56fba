"""What can be asked: the model by tensors, which Ultralytics' and Triton's clients send, and the model by images.

Both are served by the same engine. `NAME` takes frames that the client has letterboxed, or cropped for
classify, and gives what the engine gives, of the rows those that NMS leaves, in their px. `NAME_image` takes encoded
images and gives what is on them, in px of each.
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

_PIXELS = ("FP32", "FP16", "UINT8")  # the last one 0..255; only the first can be announced
_LARGEST = 2  # times the model's own size, each side of a frame; the memory of a frame grows with its area
_LEAST_CONF = 0.001  # `yolo val` wants boxes from here on


class Model(Generic[P]):
    """One of the two. Of one moment: made anew for each request."""

    suffix: ClassVar[str]
    input: TensorSpec
    outputs: Sequence[TensorSpec]
    max_batch: int  # as Triton means it: 0 = the first side of the shapes is none of a batch
    defaults: ClassVar[dict[str, Any]] = {}

    def __init__(self, info: ModelInfo, most_images: int) -> None:
        self.info, self.most_images = info, most_images
        self.name = info.name + self.suffix

    def works(
        self, given: Tensor, predictor: Predictor, thresholds: Thresholds, deadline: float
    ) -> list[Coroutine[Any, Any, P]]:
        """One for each image. Raises BadParameter."""
        raise NotImplementedError

    def tensors(self, found: Sequence[P], thresholds: Thresholds, names: Sequence[str]) -> list[Tensor]:
        """The outputs of these names."""
        raise NotImplementedError


class TensorModel(Model[FramePrediction]):
    suffix = ""
    defaults: ClassVar[dict[str, Any]] = {"conf": _LEAST_CONF}

    def __init__(self, info: ModelInfo, most_images: int) -> None:
        super().__init__(info, most_images)
        self.max_batch = most_images
        self.input, self.outputs = specs.frames(info), specs.of_frames(info)

    def works(
        self, given: Tensor, predictor: Predictor, thresholds: Thresholds, deadline: float
    ) -> list[Coroutine[Any, Any, FramePrediction]]:
        planes = given.numbers
        if given.datatype not in _PIXELS:
            raise BadParameter(f"images: {given.datatype} where one of {', '.join(_PIXELS)} is wanted")
        if planes.ndim != 4 or planes.shape[1] != 3:
            raise BadParameter(f"images: shape {list(planes.shape)} is not [images, 3, height, width]")
        self._check_sides(planes.shape[2], planes.shape[3])
        turns = predictor.turns(len(planes))
        return [predictor.predict_frame(partial(to_frame, image), thresholds, deadline, turns) for image in planes]

    def _check_sides(self, height: int, width: int) -> None:
        stride, shapes, most = self.info.stride, self.info.shapes, self.info.imgsz * _LARGEST
        if shapes and (height, width) not in shapes:
            raise BadParameter(
                f"images: {height}x{width} px is no shape of this engine; it has {format_shapes(*shapes)}"
            )
        if min(height, width) < stride or max(height, width) > most or height % stride or width % stride:
            raise BadParameter(f"images: {height}x{width} px; a side is a multiple of {stride} px, at most {most}")

    def tensors(self, found: Sequence[FramePrediction], thresholds: Thresholds, names: Sequence[str]) -> list[Tensor]:
        places = [slot.name for slot in self.outputs]
        return [self._tensor(name, [each.outputs[places.index(name)] for each in found], thresholds) for name in names]

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

    def __init__(self, info: ModelInfo, most_images: int) -> None:
        super().__init__(info, most_images)
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
        return [Tensor.of(name, _together([_part(name, each) for each in found])) for name in names]


def _part(name: str, prediction: Prediction) -> NDArray[Any]:
    """One image's part of an output of the model by images."""
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
    part: NDArray[Any] = getattr(found, name)
    return part


def _coco(mask: masks.Mask, prediction: Prediction) -> bytes:
    checkpoint()
    counts = masks.run_lengths(mask, prediction.transform)
    return orjson.dumps({"size": prediction.transform.image, "counts": counts})


def _together(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """[N, ...], each side as long as the longest; behind what is shorter are zeros, or empty bytes."""
    sides = np.max([part.shape for part in parts], axis=0).astype(int)
    nothing = b"" if parts[0].dtype.kind == "O" else 0
    array = np.full((len(parts), *sides), nothing, parts[0].dtype)
    for i, part in enumerate(parts):
        place: tuple[int | slice, ...] = (i, *map(slice, part.shape))
        array[place] = part
    return array


def export_metadata(info: ModelInfo) -> dict[str, Any]:
    """What Ultralytics writes into an export, of which its client reads the str().

    Where the engine takes any shape, its client sends rectangles, and as many as it likes; otherwise one image at a
    time, of the largest shape. Rows are announced as an end-to-end model's, which come after NMS.
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
    """[3, H, W], floats 0..1 or uint8 -> [H, W, 3], uint8.

    Exact for multiples of 1/255, which images are; others go to the nearest one, and what is out of range to an end of
    it. Nothing is refused, not even NaN: Ultralytics' client warms up with memory as it finds it.
    """
    if planes.dtype != np.uint8:
        rows = planes.astype(np.float32, copy=False).reshape(-1, planes.shape[-1])
        rows = np.clip(rows, 0, 1)  # what is far out of range would come back at the other end
        planes = cv2.addWeighted(rows, 255, rows, 0, 0, dtype=cv2.CV_8U).reshape(planes.shape)  # it rounds
    return np.asarray(cv2.merge(list(planes)), np.uint8)
