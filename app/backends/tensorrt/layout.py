"""Inputs and outputs of a TensorRT engine, and the conversion of frames and outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorrt as trt
from numpy.typing import NDArray

from app.errors import EngineFailed
from app.model import Shape
from app.vision import postprocess
from app.vision.postprocess import Outputs
from app.vision.preprocess import Pixels

_DTYPES = {
    int(trt.DataType.UINT8): np.uint8,
    int(trt.DataType.FLOAT): np.float32,
    int(trt.DataType.HALF): np.float16,
}


def allowed(call: bool, what: str) -> None:
    """Raise EngineFailed if a TensorRT call returned False; TensorRT does not raise itself."""
    if not call:
        raise EngineFailed(f"TensorRT refused {what}")


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of the engine; `shape` is for one image, without the batch."""

    name: str
    dtype: type[np.generic]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes per image."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Layout:
    """The input, the outputs and the batch sizes of an engine."""

    source: Tensor
    targets: tuple[Tensor, ...]
    min_batch: int  # images
    max_batch: int

    @classmethod
    def of(cls, engine: Any, context: Any, shape: Shape) -> "Layout":
        """Return the layout of the engine's tensors; `shape` is used for an export with a dynamic frame shape.

        Raises EngineFailed if the engine is neither a plan of this project nor a detect export.
        """
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        if len(inputs) != 1:
            raise EngineFailed(f"the engine has the tensors {names}; one input is expected")
        batch, *sides = tuple(engine.get_tensor_shape(inputs[0]))
        frame = tuple(size if size > 0 else own for size, own in zip(sides, (3, *shape), strict=True))
        min_batch = max_batch = batch
        if batch < 0:
            min_batch, _, max_batch = (shape[0] for shape in engine.get_tensor_profile_shape(inputs[0], 0))
        allowed(context.set_input_shape(inputs[0], (max_batch, *frame)), f"frames {frame}")
        if missing := context.infer_shapes():
            raise EngineFailed(f"the engine does not define the shape of {missing}")
        shapes = {name: tuple(context.get_tensor_shape(name))[1:] for name in outputs} | {inputs[0]: frame}
        tensors = []
        for name in (inputs[0], *outputs):
            dtype = _DTYPES.get(int(engine.get_tensor_dtype(name)))
            if min(shapes[name], default=-1) < 0:
                raise EngineFailed(f"the shape of {name} depends on the image; export with nms=False")
            if dtype is None:
                raise EngineFailed("the engine's tensors are neither uint8, FP32 nor FP16")
            tensors.append(Tensor(name, dtype, shapes[name]))  # type: ignore[arg-type]
        source, *targets = tensors
        if source.dtype is not np.uint8 and len(targets) > 1:
            raise EngineFailed(f"the engine has the tensors {names}; a detect engine has one input and one output")
        return cls(source, tuple(targets), min_batch, max_batch)

    @property
    def shape(self) -> Shape:
        """Height and width of a frame."""
        height, width = self.source.shape[:2] if self.source.dtype is np.uint8 else self.source.shape[1:]
        return height, width

    @property
    def batches(self) -> list[int]:
        """The batch sizes that are run: powers of two, and the maximum. Other sizes are padded."""
        sizes = [1 << i for i in range(self.max_batch.bit_length()) if self.min_batch <= 1 << i < self.max_batch]
        return [*sizes, self.max_batch]

    def write(self, frames: Sequence[Pixels], target: NDArray[Any]) -> None:
        """Write frames into `target`, the input's host memory [max_batch, *source.shape]."""
        if self.source.dtype is np.uint8:
            np.stack(frames, out=target[: len(frames)])
            return
        for frame, image in zip(frames, target, strict=False):
            np.multiply(frame.transpose(2, 0, 1), np.float32(1 / 255), out=image, casting="unsafe")

    def read(self, found: Sequence[NDArray[Any]]) -> list[Outputs]:
        """Return the outputs of each image, copied from host memory, because the next batch overwrites it."""
        copies = [output.astype(np.float32) for output in found]
        if self.source.dtype is not np.uint8 and copies[0].shape[2] != 6:  # 6: an end-to-end head, or NMS
            copies = [postprocess.from_head(copies[0], postprocess.K, copies[0].shape[1] - 4, centred=False)]
        return list(zip(*copies, strict=True))
