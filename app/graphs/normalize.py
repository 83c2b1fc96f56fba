"""A plain Ultralytics ONNX export of any age and precision -> the form that all later steps work on.

Nodes are sorted, floats are FP32, the opset is 19, constants are folded, external data is inside, and outputs have the
sizes that follow from the graph.
"""

import graphlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxslim
from onnx import NodeProto, TensorProto, numpy_helper, version_converter

from app.errors import WeightsError

OPSET = 19  # of the exports made here; the first in which the scales of int8 may be FP16

_FLOAT, _NARROW = TensorProto.FLOAT, (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def load(weights: Path) -> onnx.ModelProto:
    """The export sorted and with FP32 floats, otherwise as it is. Raises WeightsError for a damaged file."""
    try:
        model = onnx.load(weights)
        constants = {tensor.name for tensor in model.graph.initializer}
        _replace(model.graph.input, [each for each in model.graph.input if each.name not in constants])
        sort(model.graph)
        onnx.checker.check_model(model)
        widen(model)
    except Exception as error:
        raise WeightsError(f"{weights} is not a sound ONNX file: {_first_line(error)}") from error
    return model


def read(export: Path, weights: Path) -> onnx.ModelProto:
    """The export in the form above. Raises WeightsError, which names the user's `weights`."""
    model = load(export)
    try:
        model = with_opset(model)
        if any(node.op_type in ("Constant", "Identity") for node in model.graph.node):
            model = onnxslim.slim(model)
        _size_outputs(model)
    except Exception as error:
        raise WeightsError(f"{weights} cannot be raised to opset {OPSET}: {_first_line(error)}") from error
    return model


def sort(graph: onnx.GraphProto) -> None:
    """Put every node behind those that it reads from; Ultralytics' FP16 exports have casts at the end of the list.

    Raises graphlib.CycleError.
    """
    nodes = list(graph.node)
    producers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    needed = {i: {producers[name] for name in node.input if name in producers} for i, node in enumerate(nodes)}
    if any(source >= i for i, sources in needed.items() for source in sources):
        _replace(graph.node, [nodes[i] for i in graphlib.TopologicalSorter(needed).static_order()])


def widen(model: onnx.ModelProto) -> None:
    """Make every FP16 and BF16 tensor FP32 and drop the casts that this makes needless."""
    graph = model.graph
    tensors = [*graph.initializer, *(each.t for node in graph.node for each in node.attribute if each.HasField("t"))]
    narrow = [tensor for tensor in tensors if tensor.data_type in _NARROW]
    casts = [each for node in graph.node if node.op_type == "Cast" for each in node.attribute if each.name == "to"]
    ends = [
        each.type.tensor_type for each in (*graph.input, *graph.output) if each.type.tensor_type.elem_type in _NARROW
    ]
    if not (narrow or ends or any(each.i in _NARROW for each in casts)):
        return
    for tensor in narrow:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for attribute in casts:
        attribute.i = _FLOAT if attribute.i in _NARROW else attribute.i
    for end in ends:
        end.elem_type = _FLOAT
    del graph.value_info[:]
    _drop_casts(model)


def _drop_casts(model: onnx.ModelProto) -> None:
    """Without those from FP32 to FP32; one that writes an output of the graph stays."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    kinds = {each.name: each.type.tensor_type.elem_type for each in (*graph.input, *graph.value_info)}
    kinds |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    outputs = {output.name for output in graph.output}
    sources: dict[str, str] = {}
    kept: list[NodeProto] = []
    for node in model.graph.node:
        node.input[:] = [sources.get(name, name) for name in node.input]
        to = next((each.i for each in node.attribute if each.name == "to"), None)
        if node.op_type == "Cast" and to == _FLOAT == kinds.get(node.input[0]) and node.output[0] not in outputs:
            sources[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    _replace(model.graph.node, kept)


def with_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model in opset 19: ONNX Runtime 1.32 fails on graphs of int8 from 21 on ("output_dtype INT8 does not match
    y_zero_point type UINT8"). One that uses what came later is given back as it is.
    """
    ours = next(entry for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if ours.version == OPSET:
        return model
    if ours.version < OPSET:
        model = version_converter.convert_version(model, OPSET)
        model.ir_version = max(model.ir_version, onnx.helper.find_min_ir_version_for(model.opset_import))
        return model
    # Layers of these exports have only been given more types since then. onnx's own converter knows no way back for
    # some of them, and the full check tells whether the graph is one of opset 19.
    older = onnx.ModelProto()
    older.CopyFrom(model)
    next(entry for entry in older.opset_import if entry.domain == ours.domain).version = OPSET
    try:
        onnx.checker.check_model(older, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return model
    return older


def _size_outputs(model: onnx.ModelProto) -> None:
    """Sizes that depend on those of the input are left open; releases before 8.1 wrote those that they traced with."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    for output in bare.graph.output:
        output.type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph.output
    fixed = all(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:])
    for output, found in zip(model.graph.output, inferred, strict=True):
        declared, sizes = (each.type.tensor_type.shape.dim for each in (output, found))
        for i, (dim, size) in enumerate(zip(declared, sizes, strict=len(sizes) > 0)):
            if size.dim_value:
                dim.dim_value = size.dim_value
            elif i > 1 and not fixed:
                dim.Clear()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _replace(field: Any, values: Sequence[Any]) -> None:
    del field[:]
    field.extend(values)
