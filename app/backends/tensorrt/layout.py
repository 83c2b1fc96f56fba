"""What goes into a TensorRT engine and what comes out of it."""

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
    """TensorRT answers False where other libraries raise."""
    if not call:
        raise EngineFailed(f"TensorRT refused {what}")


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output; `shape` is that of one image."""

    name: str
    dtype: type[np.generic]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of one image."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Layout:
    """What goes into an engine and what comes out of it."""

    source: Tensor
    targets: tuple[Tensor, ...]
    least: int  # images in the smallest batch
    most: int  # and in the largest

    @classmethod
    def of(cls, engine: Any, context: Any, shape: Shape) -> "Layout":
        """By the engine's own tensors; `shape` is what an export that leaves it open is used with.

        Raises EngineFailed for what is neither our plan nor a detect export.
        """
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        if len(inputs) != 1:
            raise EngineFailed(f"the engine has the tensors {names}; one input is expected")
        batch, *sides = tuple(engine.get_tensor_shape(inputs[0]))
        frame = tuple(size if size > 0 else own for size, own in zip(sides, (3, *shape), strict=True))
        least = most = batch
        if batch < 0:
            least, _, most = (shape[0] for shape in engine.get_tensor_profile_shape(inputs[0], 0))
        allowed(context.set_input_shape(inputs[0], (most, *frame)), f"frames {frame}")
        if missing := context.infer_shapes():
            raise EngineFailed(f"the engine leaves the shape of {missing} open")
        shapes = {name: tuple(context.get_tensor_shape(name))[1:] for name in outputs} | {inputs[0]: frame}
        tensors = []
        for name in (inputs[0], *outputs):
            kind = _DTYPES.get(int(engine.get_tensor_dtype(name)))
            if min(shapes[name], default=-1) < 0:
                raise EngineFailed(f"the shape of {name} depends on the image; export with nms=False")
            if kind is None:
                raise EngineFailed("the engine's tensors are neither uint8, FP32 nor FP16")
            tensors.append(Tensor(name, kind, shapes[name]))  # type: ignore[arg-type]
        source, *targets = tensors
        if source.dtype is not np.uint8 and len(targets) > 1:
            raise EngineFailed(f"the engine has the tensors {names}; a detect engine has one input and one output")
        return cls(source, tuple(targets), least, most)

    @property
    def shape(self) -> Shape:
        """Of a frame."""
        height, width = self.source.shape[:2] if self.source.dtype is np.uint8 else self.source.shape[1:]
        return height, width

    @property
    def batches(self) -> list[int]:
        """The sizes that are run: powers of two, and the largest; others are padded."""
        sizes = [1 << i for i in range(self.most.bit_length()) if self.least <= 1 << i < self.most]
        return [*sizes, self.most]

    def write(self, frames: Sequence[Pixels], target: NDArray[Any]) -> None:
        """Frames into the host's side of the input, [most, *source.shape]."""
        if self.source.dtype is np.uint8:
            np.stack(frames, out=target[: len(frames)])
            return
        for frame, place in zip(frames, target, strict=False):
            np.multiply(frame.transpose(2, 0, 1), np.float32(1 / 255), out=place, casting="unsafe")

    def read(self, found: Sequence[NDArray[Any]]) -> list[Outputs]:
        """The outputs of each image from the host's side of them, copied: the next batch writes over it."""
        copies = [output.astype(np.float32) for output in found]
        if self.source.dtype is not np.uint8 and copies[0].shape[2] != 6:  # 6: an end-to-end head, or NMS
            copies = [postprocess.from_head(copies[0], postprocess.K, copies[0].shape[1] - 4, centred=False)]
        return list(zip(*copies, strict=True))
