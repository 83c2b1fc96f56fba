"""Serving graph FP32 -> INT8: QuantizeLinear and DequantizeLinear, as TensorRT, OpenVINO and ONNX Runtime read them.

Every convolution of features (app/precision.py) runs in INT8: int8 weights with a scale for each output channel, biases
as they are, and inputs with one scale each and the zero point 0 (TensorRT knows no other). A tensor is quantized where
its values are made, in front of Concat, Split, MaxPool and Resize, which only move them; what a Concat joins shares one
scale. So these run in INT8 as well and engines need no rounding between two convolutions. What decodes stays FP32.

CPUs without VNNI (AVX2, early AVX-512) add the products of two neighbouring input channels in 16 bits, which saturate:
255 * (127 + 127) is twice what fits. Weights are scaled so that no two of them do, and any CPU computes the same.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from app import precision
from app.images import Pixels

OPSET = 19  # the first in which scales may be FP16

_MOVE = {"Concat", "Split", "MaxPool", "Resize"}  # layers whose outputs are values of their inputs
_STEPS = 127
_LEAST = float(np.finfo(np.float16).tiny)  # of a scale: it must survive FP16, and TensorRT refuses 0


def to_int8(graph: Path, target: Path, frames: Iterable[Pixels]) -> None:
    """Write the INT8 graph, calibrated on `frames`, uint8 [H, W, 3]; some 30 are as good as 300.

    Scales hold the greatest value of any frame. Few frames hold values far above those of the others, and to clip these
    costs more than coarser steps for all: as the mean over the frames does it, 0.01 of mAP50-95 of turned boxes.
    """
    model = onnx.load(graph)
    if model.opset_import[0].version < OPSET:
        model = onnx.version_converter.convert_version(model, OPSET)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    features = precision.features(model.graph)
    convs = [node for node in model.graph.node if node.op_type == "Conv" and node.output[0] in features]
    groups = _groups(model.graph, convs)
    names = [name for group in groups for name in group]
    peaks = dict(zip(names, _peaks(model, names, frames), strict=True))
    inserted: dict[str, list[NodeProto]] = {}
    new: list[TensorProto] = [numpy_helper.from_array(np.zeros((), np.int8), "int8/zero")]
    for group in groups:
        scale = numpy_helper.from_array(_scale(max(peaks[name] for name in group)), f"{group[0]}/scale")
        new.append(scale)
        inserted |= {name: _pair(name, scale.name) for name in group}
    for node in model.graph.node:
        node.input[:] = [f"{name}/int8/float" if name in inserted else name for name in node.input]
    nodes = [added for node in model.graph.node for added in (node, *_behind(node, inserted))]
    for name in sorted({conv.input[1] for conv in convs}):
        nodes.insert(0, _quantize_weights(weights[name], new))
    for conv in convs:
        conv.input[1] += "/int8/float"
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(new)
    read = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, target)


def _groups(graph: onnx.GraphProto, convs: list[NodeProto]) -> list[list[str]]:
    """The tensors to quantize, those together that share a scale because some convolution reads them joined."""
    producers = {name: node for node in graph.node for name in node.output}

    def sources(name: str) -> set[str]:
        node = producers.get(name)
        if node is None or node.op_type not in _MOVE:
            return {name}
        inputs = node.input if node.op_type == "Concat" else node.input[:1]
        return {source for each in inputs for source in sources(each)}

    groups: list[set[str]] = []
    for conv in convs:
        group = sources(conv.input[0])
        for other in [other for other in groups if other & group]:
            groups.remove(other)
            group |= other
        groups.append(group)
    return [sorted(group) for group in groups]


def _peaks(model: onnx.ModelProto, names: list[str], frames: Iterable[Pixels]) -> NDArray[np.float32]:
    """[len(names)] the greatest absolute value of each tensor in any of the frames."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    for i, name in enumerate(names):
        probe.graph.node.append(helper.make_node("Abs", [name], [f"abs/{i}"]))
        probe.graph.node.append(helper.make_node("ReduceMax", [f"abs/{i}"], [f"peak/{i}"], keepdims=0))
        probe.graph.output.append(helper.make_tensor_value_info(f"peak/{i}", TensorProto.FLOAT, []))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    peaks = [session.run(None, {"images": frame[None]}) for frame in frames]
    return np.asarray(np.max(peaks, axis=0), np.float32)


def _peaks_of_pairs(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """[O] of weights [O, I, H, W]: the most that one of them, or two neighbouring input channels together, reach."""
    odd = weights[:, 1::2]
    even = weights[:, ::2][:, : odd.shape[1]]
    alone, together = (np.abs(each).max(axis=(1, 2, 3), initial=0) for each in (weights, even + odd))
    return np.asarray(np.maximum(alone, together), np.float32)


def _scale(peak: float | NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.maximum(np.asarray(peak) / _STEPS, _LEAST), np.float32)


def _pair(name: str, scale: str) -> list[NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [name, scale, "int8/zero"], [f"{name}/int8"]),
        helper.make_node("DequantizeLinear", [f"{name}/int8", scale, "int8/zero"], [f"{name}/int8/float"]),
    ]


def _behind(node: NodeProto, inserted: dict[str, list[NodeProto]]) -> list[NodeProto]:
    return [added for name in node.output for added in inserted.get(name, [])]


def _quantize_weights(tensor: TensorProto, new: list[TensorProto]) -> NodeProto:
    """Adds the weights as int8 to `new`; the node that reads them."""
    values = numpy_helper.to_array(tensor)
    scale = _scale(_peaks_of_pairs(values))
    steps = np.round(values / scale.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8)
    name = tensor.name
    for array, suffix in ((steps, "int8"), (scale, "scale"), (np.zeros(len(scale), np.int8), "zero")):
        new.append(numpy_helper.from_array(array, f"{name}/{suffix}"))
    parts = [f"{name}/int8", f"{name}/scale", f"{name}/zero"]
    return helper.make_node("DequantizeLinear", parts, [f"{name}/int8/float"], axis=0)
