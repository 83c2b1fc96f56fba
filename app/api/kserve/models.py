"""What can be asked: the model by tensors, which Ultralytics' and Triton's clients send, and the model by images.

Both are the one engine behind the one door. `NAME` takes frames that the client has letterboxed and gives rows after
NMS in their px; `NAME_image` takes encoded images and gives boxes in px of each.
"""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from app.api.kserve.tensors import BYTES, Tensor
from app.errors import BadParameter
from app.images import Pixels
from app.model import ModelInfo, spell
from app.predictor import Prediction, Predictor
from app.results import Detections, Thresholds

_PIXELS = ("FP32", "FP16", "UINT8")  # the last one 0..255; only the first can be announced
_LARGEST = 2  # times the model's own size, each side of a frame; the memory of a frame grows with its area
_LEAST_CONF = 0.001  # `yolo val` wants boxes from here on


@dataclass(frozen=True, slots=True)
class Slot:
    """An input or output, with -1 for what is open. The first side is that of the batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Model:
    """One of the two. Of one moment: made anew for each request."""

    suffix: ClassVar[str]
    input: Slot
    outputs: Sequence[Slot]
    max_batch: int  # as Triton means it: 0 = the first side of the shapes is none of a batch
    defaults: ClassVar[dict[str, Any]] = {}

    def __init__(self, info: ModelInfo, most_images: int) -> None:
        self.info, self.most_images = info, most_images
        self.name = info.name + self.suffix

    def works(
        self, given: Tensor, predictor: Predictor, thresholds: Thresholds, deadline: float
    ) -> list[Coroutine[Any, Any, Prediction]]:
        """One for each image. Raises BadParameter."""
        raise NotImplementedError

    def tensors(self, found: Sequence[Detections], thresholds: Thresholds) -> list[Tensor]:
        """The outputs."""
        raise NotImplementedError


class TensorModel(Model):
    suffix = ""
    defaults: ClassVar[dict[str, Any]] = {"conf": _LEAST_CONF}
    outputs = (Slot("output0", "FP32", (-1, -1, 6)),)

    def __init__(self, info: ModelInfo, most_images: int) -> None:
        super().__init__(info, most_images)
        self.max_batch = most_images
        height, width = info.shapes[0] if info.shapes and len(info.shapes) == 1 else (-1, -1)
        self.input = Slot("images", "FP32", (-1, 3, height, width))

    def works(
        self, given: Tensor, predictor: Predictor, thresholds: Thresholds, deadline: float
    ) -> list[Coroutine[Any, Any, Prediction]]:
        planes = given.numbers
        if given.datatype not in _PIXELS:
            raise BadParameter(f"images: {given.datatype} where one of {', '.join(_PIXELS)} is wanted")
        if planes.ndim != 4 or planes.shape[1] != 3:
            raise BadParameter(f"images: shape {list(planes.shape)} is not [images, 3, height, width]")
        self._check_sides(planes.shape[2], planes.shape[3])
        return [predictor.predict_frame(partial(to_frame, image), thresholds, deadline) for image in planes]

    def _check_sides(self, height: int, width: int) -> None:
        stride, shapes, most = self.info.stride, self.info.shapes, self.info.imgsz * _LARGEST
        if shapes and (height, width) not in shapes:
            raise BadParameter(f"images: {height}x{width} px is no shape of this engine; it has {spell(*shapes)}")
        if min(height, width) < stride or max(height, width) > most or height % stride or width % stride:
            raise BadParameter(f"images: {height}x{width} px; a side is a multiple of {stride} px, at most {most}")

    def tensors(self, found: Sequence[Detections], thresholds: Thresholds) -> list[Tensor]:
        rows = np.zeros((len(found), thresholds.max_det, 6), np.float32)
        for image, each in zip(rows, found, strict=True):
            image[: len(each)] = np.column_stack((each.boxes, each.scores, each.classes))
        return [Tensor.of("output0", rows)]


class ImageModel(Model):
    suffix = "_image"
    max_batch = 0
    input = Slot("image", BYTES, (-1,))
    outputs = (
        Slot("num_detections", "INT32", (-1,)),
        Slot("boxes", "FP32", (-1, -1, 4)),
        Slot("scores", "FP32", (-1, -1)),
        Slot("classes", "INT32", (-1, -1)),
    )

    def works(
        self, given: Tensor, predictor: Predictor, thresholds: Thresholds, deadline: float
    ) -> list[Coroutine[Any, Any, Prediction]]:
        async def predict(data: bytes) -> Prediction:
            return (await predictor.predict(data, thresholds, deadline, predictor.engines[:1], shadowed=True))[0]

        return [predict(data) for data in given.elements]

    def tensors(self, found: Sequence[Detections], thresholds: Thresholds) -> list[Tensor]:
        counts = np.array([len(each) for each in found], np.int32)

        def padded(values: Callable[[Detections], NDArray[Any]], dtype: type, *sides: int) -> NDArray[Any]:
            array = np.zeros((len(found), counts.max(), *sides), dtype)
            for image, each in zip(array, found, strict=True):
                image[: len(each)] = values(each)
            return array

        return [
            Tensor.of("num_detections", counts),
            Tensor.of("boxes", padded(lambda each: each.boxes, np.float32, 4)),
            Tensor.of("scores", padded(lambda each: each.scores, np.float32)),
            Tensor.of("classes", padded(lambda each: each.classes, np.int32)),
        ]


def export_metadata(info: ModelInfo) -> dict[str, Any]:
    """What Ultralytics writes into an export, of which its client reads the str().

    Where the engine takes any shape, its client sends rectangles, and as many as it likes; otherwise one image at a
    time, of the largest shape. The output is announced as an end-to-end model's: x1 y1 x2 y2 score class, after NMS.
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
    }


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
