"""Converts a serving graph from FP32 to FP16. The graph sets the precision, never an option of an engine's compiler.

The layers that compute features are converted: every convolution and everything before it. The layers that decode
boxes, including DFL's convolution, stay in FP32, because FP16 has steps of 0.5 px from 512 px on.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from app.errors import WeightsError

_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def to_half(graph: Path, target: Path) -> None:
    """Write the FP16 graph to `target`. Raises WeightsError for weights beyond the range of FP16."""
    model = onnx.shape_inference.infer_shapes(onnx.load(graph), data_prop=True)
    lower = features(model.graph)
    floats = _floats(model.graph)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    halved: dict[str, TensorProto] = {}
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.output[0] not in lower:
            nodes.append(node)
            continue
        outputs = [name for name in node.output if name in floats]
        for i in _data_inputs(node):
            name = node.input[i]
            if name in constants and name in floats:
                halved.setdefault(name, _half(constants[name], f"{name}/half"))
            if name in floats:
                node.input[i] = f"{name}/half"
        node.output[:] = [f"{name}/half" if name in floats else name for name in node.output]
        _retype(node)
        # Cast each output back to FP32. Casts that nothing reads are dropped below.
        nodes += [node, *(helper.make_node("Cast", [f"{name}/half"], [name], to=_FLOAT) for name in outputs)]
    read = {name for node in nodes for name in node.input} | {output.name for output in model.graph.output}
    nodes = [node for node in nodes if read & set(node.output)]
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    kept = [tensor for name, tensor in constants.items() if name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *halved.values()])
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, target)


def features(graph: onnx.GraphProto) -> set[str]:
    """Return the first outputs of all nodes that compute features: convolutions except DFL, and their inputs' nodes."""
    producers = {name: node for node in graph.node for name in node.output}
    pending = [node for node in graph.node if node.op_type == "Conv" and not _is_dfl(node, graph)]
    found: set[str] = set()
    while pending:
        node = pending.pop()
        if node.output[0] not in found:
            found.add(node.output[0])
            pending += [producers[node.input[i]] for i in _data_inputs(node) if node.input[i] in producers]
    return found


def _is_dfl(node: NodeProto, graph: onnx.GraphProto) -> bool:
    """Return True for DFL, the mean of a box side's distribution: a convolution with the weights 0, 1, 2, ..."""
    tensors = (numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name == node.input[1])
    return any(np.array_equal(weight.ravel(), np.arange(weight.size)) for weight in tensors)


def _data_inputs(node: NodeProto) -> range:
    """Return the indices of the inputs to convert; only the first for Resize, whose scales are always FP32."""
    return range(1 if node.op_type == "Resize" else len(node.input))


def _floats(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the FP32 tensors."""
    values = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == _FLOAT}
    return values | {tensor.name for tensor in graph.initializer if tensor.data_type == _FLOAT}


def _retype(node: NodeProto) -> None:
    for attribute in node.attribute:
        if node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
            values = np.array(attribute.f if attribute.name == "value_float" else list(attribute.floats), np.float32)
            attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(values)))
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == _FLOAT:
            attribute.i = _HALF
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == _FLOAT:
            attribute.t.CopyFrom(_half(attribute.t, attribute.t.name))


def _half(tensor: TensorProto, name: str) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        raise WeightsError(f"{tensor.name} has values beyond the range of FP16: use PRECISION=fp32")
    return numpy_helper.from_array(values.astype(np.float16), name)
