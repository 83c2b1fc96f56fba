"""Estimates the device memory of a serving graph from its shapes, without compiling it."""

from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, helper

from app.model import Shape

# Compilers fuse these layers into their neighbours, so they need no memory for an output.
_IN_PLACE = frozenset(("Add", "Cast", "Mul", "Relu", "Reshape", "Clip", "QuantizeLinear"))
_REUSES_INPUT = frozenset(("Sigmoid", "DequantizeLinear"))  # the output has the size of the input that is freed
_NEVER_WRITTEN = frozenset(("Shape", "Constant"))


def weight_bytes(graph: Path) -> int:
    """Return the bytes of all constants."""
    return sum(_size(tensor.data_type, tensor.dims) for tensor in onnx.load(graph).graph.initializer)


def activation_bytes(graph: Path, batch: int, shape: Shape) -> int:
    """Return the maximum bytes of tensors alive at a time, inputs and outputs included, for a batch of this shape."""
    model = onnx.load(graph)
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (batch, *shape, 3), strict=True):
        dim.dim_value = size
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    sizes = _sizes(model.graph)
    readers: dict[str, int] = {output.name: 1 for output in model.graph.output}
    for node in model.graph.node:
        for name in set(node.input):
            readers[name] = readers.get(name, 0) + 1
    alive = peak = sizes.get(model.graph.input[0].name, 0)
    for node in model.graph.node:
        freed = _release_inputs(node, readers, sizes)
        if node.op_type in _REUSES_INPUT | _NEVER_WRITTEN:
            sizes[node.output[0]] = freed if node.op_type in _REUSES_INPUT else 0
        written = sum(sizes.get(name, 0) for name in node.output)
        peak = max(peak, alive + (written - freed if node.op_type in _IN_PLACE | _REUSES_INPUT else written))
        alive += written - freed
    return peak


def _release_inputs(node: NodeProto, readers: dict[str, int], sizes: dict[str, int]) -> int:
    """Count one reader less for each input; return the bytes of inputs that no later node reads."""
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
