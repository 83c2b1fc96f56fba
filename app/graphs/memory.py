"""How much device memory a serving graph will need, estimated from its shapes before anything is compiled."""

from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, helper

from app.model import Shape

# A compiler fuses these into their neighbours: they work in place, or never write their output.
_IN_PLACE = frozenset(("Add", "Cast", "Mul", "Relu", "Reshape", "Clip", "QuantizeLinear"))
_TAKES_OVER = frozenset(("Sigmoid", "DequantizeLinear"))  # no output of their own: they stand for the input they free
_NEVER_WRITTEN = frozenset(("Shape", "Constant"))


def weight_bytes(graph: Path) -> int:
    """Of all its constants."""
    return sum(_size(tensor.data_type, tensor.dims) for tensor in onnx.load(graph).graph.initializer)


def activation_bytes(graph: Path, batch: int, shape: Shape) -> int:
    """The most that is alive at a time while a batch of frames of this shape goes through, in- and output included."""
    model = onnx.load(graph)
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (batch, *shape, 3), strict=True):
        dim.dim_value = size
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    sizes = _sizes(model.graph)
    readers: dict[str, int] = {output.name: 1 for output in model.graph.output}
    for node in model.graph.node:
        for name in set(node.input):
            readers[name] = readers.get(name, 0) + 1
    alive = most = sizes.get(model.graph.input[0].name, 0)
    for node in model.graph.node:
        freed = _read(node, readers, sizes)
        if node.op_type in _TAKES_OVER | _NEVER_WRITTEN:
            sizes[node.output[0]] = freed if node.op_type in _TAKES_OVER else 0
        written = sum(sizes.get(name, 0) for name in node.output)
        most = max(most, alive + (written - freed if node.op_type in _IN_PLACE | _TAKES_OVER else written))
        alive += written - freed
    return most


def _read(node: NodeProto, readers: dict[str, int], sizes: dict[str, int]) -> int:
    """Bytes of the inputs that nobody reads after this node."""
    freed = 0
    for name in set(node.input):
        readers[name] -= 1
        freed += 0 if readers[name] else sizes.get(name, 0)
    return freed


def _sizes(graph: onnx.GraphProto) -> dict[str, int]:
    values = (*graph.input, *graph.value_info, *graph.output)
    kinds = {value.name: value.type.tensor_type for value in values}
    return {name: _size(kind.elem_type, [d.dim_value for d in kind.shape.dim]) for name, kind in kinds.items()}


def _size(kind: int, dims: object) -> int:
    return int(np.prod(np.array(dims, np.int64)) * helper.tensor_dtype_to_np_dtype(kind).itemsize)
