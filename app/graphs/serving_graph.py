"""Converts a plain Ultralytics ONNX export to the serving graph.

The input of the serving graph is `images`, uint8 [B, H, W, 3], RGB, letterboxed. The outputs are float32:

    rows    [B, K, 6 + E]       x1 y1 x2 y2 in frame px (obb: cx cy w h), score, class and E extras of the K anchors
                                with the best scores, before NMS; an end-to-end export selects its own rows
    protos  [B, E, H/4, W/4]    segment, second output: E mask prototypes
    probs   [B, classes]        classify, the only output

The extras: segment, a coefficient per prototype; pose, x y (visible) in frame px per keypoint; obb, the angle of the
box about its centre, in radians. The graph is the export with Cast, Transpose and 1/255 before it, and class maximum
and TopK after it. K = min(1024, anchors): for detect the device returns 24 KB per image, not 2.8 MB.
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
    """Write the serving graph of a plain Ultralytics ONNX export to `target`; return its ModelInfo.

    `imgsz` and `shapes` are the requested frame sizes. `weights` is the user's file for error messages, if it is not
    the export itself. Raises WeightsError for unsupported tasks, and for exports with NMS or without metadata.
    """
    weights = weights or export
    model = normalize.read(export, weights)
    info = describe(model, weights, name, imgsz, shapes)
    _make_batch_dynamic(model)
    _add_input_layers(model.graph)
    _add_output_layers(model, info)
    del model.graph.value_info[:]
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, target)
    return info


def _make_batch_dynamic(model: onnx.ModelProto) -> None:
    """Make a fixed batch dynamic: each Reshape with the batch as a constant gets 0, which copies it from the input."""
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


def _add_input_layers(graph: onnx.GraphProto) -> None:
    """Convert uint8 NHWC to the export's input, NCHW 0..1. Cast is first: TensorRT only supports uint8 there."""
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


def _add_output_layers(model: onnx.ModelProto, info: ModelInfo) -> None:
    """Convert the export's outputs to those of the serving graph."""
    graph = model.graph
    outputs = list(graph.output)
    if info.task == "classify":
        targets = [_as_float(graph, outputs[0], "probs")]
    elif info.end_to_end:
        _limit_selection(graph)
        targets = [_as_float(graph, outputs[0], "rows")]
    else:
        targets = [_pick_rows(graph, len(info.names), centred=info.task == "obb")]
    targets += [_as_float(graph, output, "protos") for output in outputs[1:]]
    del graph.output[:]
    graph.output.extend(targets)


def _limit_selection(graph: onnx.GraphProto) -> None:
    """Limit k of TopK to the number of anchors: an end-to-end export selects 300, and small frames have fewer."""
    if all(dims(graph.input[0])[1:3]):
        return
    for name, values in (("last", [-1]), ("end", [2**31]), ("first", [0])):
        graph.initializer.append(helper.make_tensor(f"select/{name}", TensorProto.INT64, [1], values))
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.op_type == "TopK":
            data, k = node.input
            size, anchors, limited = (f"{node.output[0]}/{name}" for name in ("size", "most", "k"))
            span = [size, "select/last", "select/end", "select/first"]
            graph.node.append(helper.make_node("Shape", [data], [size]))
            graph.node.append(helper.make_node("Slice", span, [anchors]))
            graph.node.append(helper.make_node("Min", [k, anchors], [limited]))
            node.input[1] = limited
        graph.node.append(node)
    graph.output[0].type.tensor_type.shape.dim[1].dim_param = "k"


def _as_float(graph: onnx.GraphProto, output: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    """Add a cast of an output to FP32; return its value info with this name."""
    graph.node.append(helper.make_node("Cast", [output.name], [name], to=TensorProto.FLOAT))
    shape = ["batch", *(size or f"{name}{i}" for i, size in enumerate(dims(output)[1:], 1))]
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _pick_rows(graph: onnx.GraphProto, classes: int, *, centred: bool) -> onnx.ValueInfoProto:
    """Add layers from [B, 4 + classes + E, A], which are cx cy w h, class scores and extras, to rows [B, K, 6 + E],
    sorted by score, best first. Boxes stay cx cy w h if `centred`, else x1 y1 x2 y2. Returns the value info.
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
        count = node("Slice", [node("Shape", [best], "shape"), axis1, two, zero], "anchors")
        k = node("Min", [count, ints("max", [K])], "k")
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
