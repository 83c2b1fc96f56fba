"""Serving graph FP32 -> INT8: QuantizeLinear and DequantizeLinear, as TensorRT, OpenVINO and ONNX Runtime read them.

Convolutions of features (precision.py) run in INT8: int8 weights with a scale for each output channel, biases
as they are, and inputs with one scale each. Zero points are 0 for TensorRT, which knows no other, and for ONNX Runtime,
which tells how accurate TensorRT's will be; OpenVINO's use all 255 steps of what SiLU gives. A tensor is quantized
where its values are made, in front of Concat, Split, MaxPool and Resize, which only move them; what a Concat joins
shares one scale. So these run in INT8 as well and engines need no rounding between two convolutions. Convolutions that
the method leaves in float, and what decodes, stay FP32.

CPUs without VNNI (AVX2, early AVX-512) add the products of two neighbouring input channels in 16 bits, which saturate:
255 * (127 + 127) is twice what fits. Weights are scaled so that no two of them do, and any CPU computes the same.
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

# The first in which scales may be FP16. From 21 on ONNX Runtime 1.32 moves QuantizeLinear behind MaxPool, and fails.
OPSET = 19
VALUE = (
    100  # multiplications that take as long as a value that is written, about (AVX-512): the first layers write most
)

_MOVE = {"Concat", "Split", "MaxPool", "Resize"}  # layers whose outputs are values of their inputs
_LEAST = float(np.finfo(np.float16).tiny)  # of a scale: it must survive FP16, and TensorRT refuses 0


@dataclass(frozen=True, slots=True)
class Method:
    """How a graph is quantized."""

    rule: str = "greatest value"  # a key of calibration.RULES
    floats: frozenset[str] = frozenset()  # convolutions, by their output, that stay as they are

    def __str__(self) -> str:
        return f"{self.rule}, {len(self.floats)} convolutions in float" if self.floats else self.rule


class Quantizer:
    """A graph and the statistics of its tensors, from which INT8 graphs are made by one method or another.

    `frames` are uint8 [H, W, 3]; some 30 are as good as 300. Without `zero_points` they are all 0, as TensorRT needs.
    """

    def __init__(self, graph: Path, frames: Iterable[Pixels], zero_points: bool) -> None:
        self._model = onnx.load(graph)
        if self._model.opset_import[0].version != OPSET:
            self._model = onnx.version_converter.convert_version(self._model, OPSET)
        self._names = [name for group in _groups(self._model.graph, _convs(self._model)) for name in group]
        statistics = collect(self._model, self._names, frames)
        self._statistics = statistics if zero_points else statistics.symmetric()

    def work(self, height: int, width: int) -> dict[str, float]:
        """The share of the time that each convolution, by its output, takes in frames of this shape: an estimate."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for size, dimension in zip((1, height, width), model.graph.input[0].type.tensor_type.shape.dim, strict=False):
            dimension.dim_value = size
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        shapes = {each.name: [size.dim_value for size in each.type.tensor_type.shape.dim] for each in graph.value_info}
        weights = {tensor.name: math.prod(tensor.dims[1:]) for tensor in graph.initializer}
        work = {
            conv.output[0]: math.prod(shapes[conv.output[0]]) * (weights[conv.input[1]] + VALUE)
            for conv in _convs(self._model)
        }
        return {name: each / sum(work.values()) for name, each in work.items()}

    def write(self, target: Path, method: Method) -> None:
        """The INT8 graph, biases corrected for what rounding the weights changes on average."""
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
            inserted |= {name: _pair(name, *names) for name in group}
        means = _Means(model.graph, dict(zip(self._names, self._statistics.means, strict=True)))
        _correct_biases(convs, weights, means)
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


def _convs(model: onnx.ModelProto) -> list[NodeProto]:
    features = fp16.features(model.graph)
    return [node for node in model.graph.node if node.op_type == "Conv" and node.output[0] in features]


class _Means:
    """The mean of every channel of what a convolution reads."""

    def __init__(self, graph: onnx.GraphProto, known: dict[str, NDArray[np.float32]]) -> None:
        self._known = known
        self._producers = {name: node for node in graph.node for name in node.output}

    def of(self, name: str) -> NDArray[np.float32]:
        """[channels]; what MaxPool gives is taken for what it reads, Split's parts are equal."""
        if name in self._known:
            return self._known[name]
        node = self._producers[name]
        if node.op_type == "Concat":
            return np.concatenate([self.of(each) for each in node.input])
        source = self.of(node.input[0])
        return np.split(source, len(node.output))[list(node.output).index(name)] if node.op_type == "Split" else source


def _correct_biases(convs: list[NodeProto], weights: dict[str, TensorProto], means: _Means) -> None:
    """Adds to each bias what the rounded weights lack, times the mean of what they are multiplied with."""
    for conv in convs:
        if len(conv.input) < 3:
            continue
        values, bias = (numpy_helper.to_array(weights[name]) for name in conv.input[1:3])
        steps, scale = _rounded(values)
        lacking = (values - steps * scale.reshape(-1, *[1] * (values.ndim - 1))).sum((2, 3))
        mean = means.of(conv.input[0]).reshape(-1, lacking.shape[1])  # [groups, channels of a group]
        each = np.repeat(mean, len(lacking) // len(mean), axis=0)
        corrected = (bias + (lacking * each).sum(1)).astype(np.float32)
        weights[conv.input[2]].CopyFrom(numpy_helper.from_array(corrected, conv.input[2]))


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


def peaks_of_pairs(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """[O] of weights [O, I, H, W]: the most that one of them, or two neighbouring input channels together, reach."""
    odd = weights[:, 1::2]
    even = weights[:, ::2][:, : odd.shape[1]]
    alone, together = (np.abs(each).max(axis=(1, 2, 3), initial=0) for each in (weights, even + odd))
    return np.asarray(np.maximum(alone, together), np.float32)


def _scale(peak: float | NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.maximum(np.asarray(peak) / STEPS, _LEAST), np.float32)


def _pair(name: str, scale: str, zero: str) -> list[NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [name, scale, zero], [f"{name}/int8"]),
        helper.make_node("DequantizeLinear", [f"{name}/int8", scale, zero], [f"{name}/int8/float"]),
    ]


def _behind(node: NodeProto, inserted: dict[str, list[NodeProto]]) -> list[NodeProto]:
    return [added for name in node.output for added in inserted.get(name, [])]


def _rounded(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Weights [O, I, H, W] as steps, int8, and the scale [O] of a step."""
    scale = _scale(peaks_of_pairs(values))
    return np.round(values / scale.reshape(-1, *[1] * (values.ndim - 1))).astype(np.int8), scale


def _quantize_weights(tensor: TensorProto, new: list[TensorProto]) -> NodeProto:
    """Adds the weights as int8 to `new`; the node that reads them."""
    steps, scale = _rounded(numpy_helper.to_array(tensor))
    name = tensor.name
    for array, suffix in ((steps, "int8"), (scale, "scale"), (np.zeros(len(scale), np.int8), "zero")):
        new.append(numpy_helper.from_array(array, f"{name}/{suffix}"))
    parts = [f"{name}/int8", f"{name}/scale", f"{name}/zero"]
    return helper.make_node("DequantizeLinear", parts, [f"{name}/int8/float"], axis=0)
