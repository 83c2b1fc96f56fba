"""Normalizes plain Ultralytics ONNX exports of any release and precision for all later steps.

Afterwards nodes are sorted, floats are FP32, the opset is 19, constants are folded, external data is inside the model,
and output sizes are those inferred from the graph.
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

OPSET = 19  # of exports; the first with FP16 scales for int8

_FLOAT, _NARROW = TensorProto.FLOAT, (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def load(weights: Path) -> onnx.ModelProto:
    """Load an export; sort its nodes and make its floats FP32. Raises WeightsError for a damaged file."""
    try:
        model = onnx.load(weights)
        constants = {tensor.name for tensor in model.graph.initializer}
        _replace(model.graph.input, [each for each in model.graph.input if each.name not in constants])
        sort(model.graph)
        onnx.checker.check_model(model)
        widen(model)
    except Exception as error:
        raise WeightsError(f"{weights} is not a valid ONNX file: {_first_line(error)}") from error
    return model


def read(export: Path, weights: Path) -> onnx.ModelProto:
    """Load and normalize an export. Raises WeightsError, which names the user's `weights`."""
    model = load(export)
    try:
        model = with_opset(model)
        if any(node.op_type in ("Constant", "Identity") for node in model.graph.node):
            model = onnxslim.slim(model)
        _size_outputs(model)
    except Exception as error:
        raise WeightsError(f"{weights} cannot be converted to opset {OPSET}: {_first_line(error)}") from error
    return model


def sort(graph: onnx.GraphProto) -> None:
    """Sort nodes so that each follows its inputs' nodes; Ultralytics' FP16 exports have casts at the end of the list.

    Raises graphlib.CycleError.
    """
    nodes = list(graph.node)
    producers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    needed = {i: {producers[name] for name in node.input if name in producers} for i, node in enumerate(nodes)}
    if any(source >= i for i, sources in needed.items() for source in sources):
        _replace(graph.node, [nodes[i] for i in graphlib.TopologicalSorter(needed).static_order()])


def widen(model: onnx.ModelProto) -> None:
    """Convert every FP16 and BF16 tensor to FP32, and drop casts that are no longer needed."""
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
    """Drop casts from FP32 to FP32, except those that write an output of the graph."""
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
    """Return the model in opset 19, or unchanged if it needs a later one.

    ONNX Runtime 1.32 fails on int8 graphs from opset 21 on: "output_dtype INT8 does not match y_zero_point type
    UINT8".
    """
    ours = next(entry for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if ours.version == OPSET:
        return model
    if ours.version < OPSET:
        model = version_converter.convert_version(model, OPSET)
        model.ir_version = max(model.ir_version, onnx.helper.find_min_ir_version_for(model.opset_import))
        return model
    # Later opsets only add types to the layers of these exports. onnx's converter cannot downgrade some layers, so set
    # the version; the full check fails if the graph is not valid in opset 19.
    older = onnx.ModelProto()
    older.CopyFrom(model)
    next(entry for entry in older.opset_import if entry.domain == ours.domain).version = OPSET
    try:
        onnx.checker.check_model(older, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return model
    return older


def _size_outputs(model: onnx.ModelProto) -> None:
    """Set the inferred output sizes, make others dynamic; releases before 8.1 wrote sizes of the traced input."""
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
