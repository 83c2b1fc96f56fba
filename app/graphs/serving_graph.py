"""Plain Ultralytics ONNX -> serving graph.

The serving graph takes `images`, uint8 [B, H, W, 3], RGB, letterboxed, and gives, all float32,

    rows    [B, K, 6 + E]       x1 y1 x2 y2 in frame px (obb: cx cy w h), score, class and E extras of the K best
                                anchors by score, before NMS; those of an end-to-end export are as it selects them
    protos  [B, E, H/4, W/4]    behind the rows of segment: E mask prototypes
    probs   [B, classes]        of classify, and nothing else

The extras: segment, a coefficient for each prototype; pose, x y (visible) in frame px of each keypoint; obb, the angle
in radians, by which the box is turned about its centre. A plain export gets Cast, Transpose and 1/255 in front and the
class maximum and TopK behind. K = min(1024, anchors): of detect 24 KB an image leave the device and not 2.8 MB.
"""

from pathlib import Path
from typing import Any

import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from app.graphs import normalize
from app.graphs.describe import describe, dims
from app.model import ModelInfo, Shape
from app.vision.postprocess import K


def to_serving_graph(
    export: Path,
    name: str,
    imgsz: int | None,
    target: Path,
    shapes: tuple[Shape, ...] | None = None,
    weights: Path | None = None,
) -> ModelInfo:
    """Wrap a plain Ultralytics ONNX export into the serving graph at `target`, for frames of these shapes if any.

    `weights` is the user's file, which errors name, where the export was made from another one. Raises WeightsError for
    what cannot be wrapped: other tasks, exports with NMS inside or without metadata.
    """
    weights = weights or export
    model = normalize.read(export, weights)
    info = describe(model, weights, name, imgsz, shapes)
    _free_batch(model)
    _put_in_front(model.graph)
    _put_behind(model, info)
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, target)
    return info


def _free_batch(model: onnx.ModelProto) -> None:
    """Make a fixed batch dynamic: every Reshape that spells the batch out copies it from its input instead."""
    graph = model.graph
    batch = dims(graph.input[0])[0]
    if batch:
        constants = {tensor.name: tensor for tensor in graph.initializer}
        constants |= {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
        shapes = {node.input[1] for node in graph.node if node.op_type == "Reshape"} & constants.keys()
        for name in shapes:
            sizes = numpy_helper.to_array(constants[name]).copy()
            if len(sizes) > 2 and sizes[0] == batch:
                sizes[0] = 0
                constants[name].CopyFrom(numpy_helper.from_array(sizes, name))
    for value in (graph.input[0], *graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


def _put_in_front(graph: onnx.GraphProto) -> None:
    """uint8 NHWC -> the export's own input, NCHW 0..1. The Cast comes first: TensorRT takes uint8 nowhere else."""
    inner = graph.input[0]
    kind = inner.type.tensor_type.elem_type
    _, channels, height, width = inner.type.tensor_type.shape.dim
    shape = ["batch", height.dim_value or "height", width.dim_value or "width", channels.dim_value]
    front = [
        helper.make_node("Cast", ["images"], ["in/float"], to=kind),
        helper.make_node("Transpose", ["in/float"], ["in/nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["in/nchw", "in/scale"], ["in/scaled"]),
    ]
    scale = helper.make_tensor("in/scale", kind, [], [1 / 255])
    for node in graph.node:
        for i, source in enumerate(node.input):
            if source == inner.name:
                node.input[i] = "in/scaled"
    _prepend(graph.node, front)
    graph.initializer.append(scale)
    graph.input[0].CopyFrom(helper.make_tensor_value_info("images", TensorProto.UINT8, shape))


def _prepend(nodes: Any, front: list[NodeProto]) -> None:
    rest = list(nodes)
    del nodes[:]
    nodes.extend(front + rest)


def _put_behind(model: onnx.ModelProto, info: ModelInfo) -> None:
    """The export's own outputs -> those of the serving graph."""
    graph = model.graph
    outputs = list(graph.output)
    if info.task == "classify":
        targets = [_as_float(graph, outputs[0], "probs")]
    elif info.end_to_end:
        _soften_selection(graph)
        targets = [_as_float(graph, outputs[0], "rows")]
    else:
        targets = [_pick_rows(graph, len(info.names), centred=info.task == "obb")]
    targets += [_as_float(graph, output, "protos") for output in outputs[1:]]
    del graph.output[:]
    graph.output.extend(targets)


def _soften_selection(graph: onnx.GraphProto) -> None:
    """An end-to-end export selects 300 of the anchors; of a frame that has fewer it shall select all."""
    if all(dims(graph.input[0])[1:3]):
        return
    for name, values in (("last", [-1]), ("end", [2**31]), ("first", [0])):
        graph.initializer.append(helper.make_tensor(f"select/{name}", TensorProto.INT64, [1], values))
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.op_type == "TopK":
            data, k = node.input
            size, most, softened = (f"{node.output[0]}/{name}" for name in ("size", "most", "k"))
            span = [size, "select/last", "select/end", "select/first"]
            graph.node.append(helper.make_node("Shape", [data], [size]))
            graph.node.append(helper.make_node("Slice", span, [most]))
            graph.node.append(helper.make_node("Min", [k, most], [softened]))
            node.input[1] = softened
        graph.node.append(node)
    graph.output[0].type.tensor_type.shape.dim[1].dim_param = "k"


def _as_float(graph: onnx.GraphProto, output: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    """An output as it is, but FP32 and by this name."""
    graph.node.append(helper.make_node("Cast", [output.name], [name], to=TensorProto.FLOAT))
    shape = ["batch", *(size or f"{name}{i}" for i, size in enumerate(dims(output)[1:], 1))]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _pick_rows(graph: onnx.GraphProto, classes: int, *, centred: bool) -> onnx.ValueInfoProto:
    """[B, 4 + nc + E, A] of cx cy w h, class scores and extras -> rows [B, K, 6 + E], best first; boxes as they are if
    `centred`.
    """
    raw = graph.output[0].name
    _, channels, anchors = dims(graph.output[0])
    extras = channels - 4 - classes

    def ints(name: str, values: list[int]) -> str:
        graph.initializer.append(helper.make_tensor(f"out/{name}", TensorProto.INT64, [len(values)], values))
        return f"out/{name}"

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(kind, inputs, [f"out/{output}"], **attributes))
        return f"out/{output}"

    graph.initializer.append(helper.make_tensor("out/half", TensorProto.FLOAT, [], [0.5]))
    axis1, axis2 = ints("1", [1]), ints("2", [2])
    zero, two, four = ints("0", [0]), ints("two", [2]), ints("4", [4])
    head = node("Cast", [raw], "head", to=TensorProto.FLOAT)
    scores = node("Slice", [head, four, ints("end", [4 + classes]), axis1], "scores")
    best = node("ReduceMax", [scores, axis1], "best", keepdims=0)
    label = node("Cast", [node("ArgMax", [scores], "argmax", axis=1, keepdims=0)], "label", to=TensorProto.FLOAT)
    if anchors:
        k = ints("k", [min(K, anchors)])
    else:
        there = node("Slice", [node("Shape", [best], "shape"), axis1, two, zero], "anchors")
        k = node("Min", [there, ints("max", [K])], "k")
    graph.node.append(helper.make_node("TopK", [best, k], ["out/score", "out/anchor"], axis=1, sorted=1))
    picked = node("GatherElements", [label, "out/anchor"], "picked", axis=1)
    kept = node("Slice", [head, zero, four, axis1], "boxes")
    if extras:
        extra = node("Slice", [head, "out/end", ints("all", [channels]), axis1], "extras")
        kept = node("Concat", [kept, extra], "kept", axis=1)
    columns = node("Transpose", [kept], "boxes_last", perm=[0, 2, 1])
    each = node("Concat", [node("Unsqueeze", ["out/anchor", axis2], "anchor1")] * (4 + extras), "anchors_each", axis=2)
    box = gathered = node("GatherElements", [columns, each], "box", axis=1)
    if extras:
        box = node("Slice", [gathered, zero, four, axis2], "box_alone")
    parts = [box]
    if not centred:
        centre = node("Slice", [box, zero, two, axis2], "centre")
        half = node("Mul", [node("Slice", [box, two, four, axis2], "sides"), "out/half"], "half_sides")
        parts = [node("Sub", [centre, half], "top_left"), node("Add", [centre, half], "bottom_right")]
    parts += [node("Unsqueeze", ["out/score", axis2], "score1"), node("Unsqueeze", [picked, axis2], "class1")]
    if extras:
        parts.append(node("Slice", [gathered, four, ints("width", [4 + extras]), axis2], "extras_last"))
    graph.node.append(helper.make_node("Concat", parts, ["rows"], axis=2))
    rows = min(K, anchors) if anchors else "k"
    return helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", rows, 6 + extras])
