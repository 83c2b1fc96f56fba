"""Converts a serving graph from FP32 to INT8 with QuantizeLinear and DequantizeLinear nodes.

TensorRT, OpenVINO and ONNX Runtime read these. Convolutions of features (fp16.py) run in INT8: int8 weights with one
scale per output channel, float biases, and one scale per input tensor. Zero points are 0 for TensorRT, which supports
no others, and for ONNX Runtime, whose accuracy predicts TensorRT's. OpenVINO's use all 255 steps for outputs of SiLU.
A tensor is quantized where its values are computed, before Concat, Split, MaxPool and Resize, which only move values;
inputs of one Concat share a scale. So these layers also run in INT8, and engines do not round between two convolutions.
The layers that decode, and convolutions that the method keeps in float, stay in FP32.

CPUs without VNNI (AVX2, early AVX-512) add the products of two neighbouring input channels in 16 bits, which saturate:
255 * (127 + 127) is twice the maximum. The scales of weights prevent this, so that all CPUs compute the same.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from app.graphs import fp16
from app.graphs.calibration import RULES, STEPS, collect
from app.vision.preprocess import Pixels

# The first opset with FP16 scales. From 21 on ONNX Runtime 1.32 moves QuantizeLinear after MaxPool, and fails.
OPSET = 19
WRITE_COST = 100  # of an output value, in multiplications, about (AVX-512); the first layers write the most values

_MOVING_LAYERS = {"Concat", "Split", "MaxPool", "Resize"}  # their outputs are values of their inputs
_MIN_SCALE = float(np.finfo(np.float16).tiny)  # not 0 in FP16, as TensorRT refuses 0


@dataclass(frozen=True, slots=True)
class Method:
    """A quantization method: the rule for the ranges, and the convolutions that stay in float."""

    rule: str = "greatest value"  # a key of calibration.RULES
    floats: frozenset[str] = frozenset()  # convolutions that stay in float, by their output

    def __str__(self) -> str:
        return f"{self.rule}, {len(self.floats)} convolutions in float" if self.floats else self.rule


class Quantizer:
    """Writes INT8 graphs of one FP32 graph by different methods. Keeps the statistics of the graph's tensors.

    `frames` are uint8 [H, W, 3]; about 30 are as good as 300. Without `zero_points` all are 0, as TensorRT requires.
    """

    def __init__(self, graph: Path, frames: Iterable[Pixels], zero_points: bool) -> None:
        self._model = onnx.load(graph)
        if self._model.opset_import[0].version != OPSET:
            self._model = onnx.version_converter.convert_version(self._model, OPSET)
        self._names = [name for group in _groups(self._model.graph, _convs(self._model)) for name in group]
        statistics = collect(self._model, self._names, frames)
        self._statistics = statistics if zero_points else statistics.symmetric()

    def work(self, height: int, width: int) -> dict[str, float]:
        """Return the estimated share of the time of each convolution, by its output, for frames of this shape."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for size, dimension in zip((1, height, width), model.graph.input[0].type.tensor_type.shape.dim, strict=False):
            dimension.dim_value = size
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        shapes = {each.name: [size.dim_value for size in each.type.tensor_type.shape.dim] for each in graph.value_info}
        weights = {tensor.name: math.prod(tensor.dims[1:]) for tensor in graph.initializer}
        work = {
            conv.output[0]: math.prod(shapes[conv.output[0]]) * (weights[conv.input[1]] + WRITE_COST)
            for conv in _convs(self._model)
        }
        return {name: each / sum(work.values()) for name, each in work.items()}

    def write(self, target: Path, method: Method) -> None:
        """Write the INT8 graph to `target`. Biases are corrected for the mean error of the rounded weights."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        convs = [conv for conv in _convs(model) if conv.output[0] not in method.floats]
        groups = _groups(model.graph, convs)
        highs = dict(zip(self._names, RULES[method.rule](self._statistics), strict=True))
        lows = dict(zip(self._names, self._statistics.lows, strict=True))
        inserted: dict[str, list[NodeProto]] = {}
        new: list[TensorProto] = []
        for group in groups:
            high = max(highs[name] for name in group)
            low = max(min(lows[name] for name in group), -high)
            scale = _scale((high - low) / 2)
            zero = np.round(-STEPS - low / scale).astype(np.int8)
            names = f"{group[0]}/scale", f"{group[0]}/zero"
            new += [numpy_helper.from_array(array, name) for array, name in zip((scale, zero), names, strict=True)]
            inserted |= {name: _quantize_pair(name, *names) for name in group}
        means = _Means(model.graph, dict(zip(self._names, self._statistics.means, strict=True)))
        _correct_biases(convs, weights, means)
        for node in model.graph.node:
            node.input[:] = [f"{name}/int8/float" if name in inserted else name for name in node.input]
        nodes = [added for node in model.graph.node for added in (node, *_inserted_after(node, inserted))]
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


def _convs(model: onnx.ModelProto) -> list[NodeProto]:
    features = fp16.features(model.graph)
    return [node for node in model.graph.node if node.op_type == "Conv" and node.output[0] in features]


class _Means:
    """The channel means of the inputs of convolutions."""

    def __init__(self, graph: onnx.GraphProto, known: dict[str, NDArray[np.float32]]) -> None:
        self._known = known
        self._producers = {name: node for node in graph.node for name in node.output}

    def of(self, name: str) -> NDArray[np.float32]:
        """Return the means [channels] of a tensor. Ignores the effect of MaxPool; assumes equal parts of Split."""
        if name in self._known:
            return self._known[name]
        node = self._producers[name]
        if node.op_type == "Concat":
            return np.concatenate([self.of(each) for each in node.input])
        source = self.of(node.input[0])
        return np.split(source, len(node.output))[list(node.output).index(name)] if node.op_type == "Split" else source


def _correct_biases(convs: list[NodeProto], weights: dict[str, TensorProto], means: _Means) -> None:
    """Add the rounding error of the weights, times the mean of their inputs, to each bias, in place."""
    for conv in convs:
        if len(conv.input) < 3:
            continue
        values, bias = (numpy_helper.to_array(weights[name]) for name in conv.input[1:3])
        steps, scale = _rounded(values)
        error = (values - steps * scale.reshape(-1, *[1] * (values.ndim - 1))).sum((2, 3))
        mean = means.of(conv.input[0]).reshape(-1, error.shape[1])  # [groups, channels of a group]
        each = np.repeat(mean, len(error) // len(mean), axis=0)
        corrected = (bias + (error * each).sum(1)).astype(np.float32)
        weights[conv.input[2]].CopyFrom(numpy_helper.from_array(corrected, conv.input[2]))


def _groups(graph: onnx.GraphProto, convs: list[NodeProto]) -> list[list[str]]:
    """Return the tensors to quantize, grouped by scale: tensors that a convolution reads joined share one."""
    producers = {name: node for node in graph.node for name in node.output}

    def sources(name: str) -> set[str]:
        node = producers.get(name)
        if node is None or node.op_type not in _MOVING_LAYERS:
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


def peaks_of_pairs(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return [O] for weights [O, I, H, W]: the maximum of |w|, and of |sum| of two neighbouring input channels."""
    odd = weights[:, 1::2]
    even = weights[:, ::2][:, : odd.shape[1]]
    single, paired = (np.abs(each).max(axis=(1, 2, 3), initial=0) for each in (weights, even + odd))
    return np.asarray(np.maximum(single, paired), np.float32)


def _scale(peak: float | NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.maximum(np.asarray(peak) / STEPS, _MIN_SCALE), np.float32)


def _quantize_pair(name: str, scale: str, zero: str) -> list[NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}/int8"]),
        helper.make_node("DequantizeLinear", [f"{name}/int8", scale, zero], [f"{name}/int8/float"]),
    ]


def _inserted_after(node: NodeProto, inserted: dict[str, list[NodeProto]]) -> list[NodeProto]:
    return [added for name in node.output for added in inserted.get(name, [])]


def _rounded(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return weights [O, I, H, W] as int8 steps, and the scales [O]."""
    scale = _scale(peaks_of_pairs(values))
    return np.round(values / scale.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8), scale


def _quantize_weights(tensor: TensorProto, new: list[TensorProto]) -> NodeProto:
    """Append the int8 weights to `new`; return the node that dequantizes them."""
    steps, scale = _rounded(numpy_helper.to_array(tensor))
    name = tensor.name
    for array, suffix in ((steps, "int8"), (scale, "scale"), (np.zeros(len(scale), np.int8), "zero")):
        new.append(numpy_helper.from_array(array, f"{name}/{suffix}"))
    parts = [f"{name}/int8", f"{name}/scale", f"{name}/zero"]
    return helper.make_node("DequantizeLinear", parts, [f"{name}/int8/float"], axis=0)
