"""Exports of any opset, precision and release are normalized into one form, with the rows of PyTorch."""

import numpy as np
import onnx
import pytest
import scenes
from onnx import TensorProto, helper, numpy_helper

from app.backends import onnxruntime, pytorch
from app.errors import WeightsError
from app.graphs import fp16, int8, normalize, serving_graph
from app.graphs.describe import dims
from app.graphs.int8 import Method
from app.settings import DEMO, DEMO_WEIGHTS

TASKS = ["detect", "segment", "pose", "obb", "classify"]
SIDE = 96
EXPORTS = {
    "opset 9": {"opset": 9},
    "opset 9, dynamic, not simplified": {"opset": 9, "dynamic": True, "simplify": False},
    "opset 12, dynamic": {"opset": 12, "dynamic": True},
    "opset 13, batch of 4, not simplified": {"opset": 13, "batch": 4, "simplify": False},
    "opset 22, dynamic": {"opset": 22, "dynamic": True},
    "FP16": {"half": True},
    "FP16, dynamic, not simplified": {"half": True, "dynamic": True, "simplify": False},
}
KINDS_FOR_ALL_TASKS = ["opset 9", "opset 12, dynamic", "FP16, dynamic, not simplified"]


def frames_of(task: str) -> list[np.ndarray]:
    return [scenes.scene(seed, SIDE, SIDE, task="detect" if task == "classify" else task).image for seed in range(3)]


def assert_same(found: list, expected: list, task: str, tolerance: float) -> None:
    """Compare the rows with a score above 0.05, and all other outputs."""
    for (first, *protos), (wanted, *prototypes) in zip(found, expected, strict=True):
        if task == "classify":
            np.testing.assert_allclose(first, wanted, atol=1e-3)
            continue
        sure = wanted[wanted[:, 4] > 0.05]
        assert len(sure) > 2
        assert np.abs(sure[:, None] - first[None]).max(2).min(1).max() < tolerance
        assert all(np.abs(one - other).max() < tolerance for one, other in zip(protos, prototypes, strict=True))


@pytest.mark.parametrize(
    ("task", "kind"),
    [(task, kind) for task in TASKS for kind in (EXPORTS if task == "detect" else KINDS_FOR_ALL_TASKS)],
)
def test_rows_of_every_export_are_those_of_pytorch(exported, tmp_path, task, kind):
    path, frames = exported(task, **EXPORTS[kind]), frames_of(task)
    model = serving_graph.to_serving_graph(path, task, None, tmp_path / "graph.onnx")
    served = onnx.load(tmp_path / "graph.onnx")
    onnx.checker.check_model(served, full_check=True)
    assert served.opset_import[0].version == normalize.OPSET
    assert {tensor.data_type for tensor in served.graph.initializer} <= {TensorProto.FLOAT, TensorProto.INT64}
    found = onnxruntime.OnnxruntimeEngine(tmp_path / "graph.onnx", 1).infer(0, frames)
    weights = DEMO_WEIGHTS if task == "detect" else DEMO / f"yolov8-demo-{task}.pt"
    half = "FP16" in kind
    assert_same(found, pytorch.open_weights(weights, 1).infer(0, frames), task, 0.1 if half else 0.01)
    reference = onnxruntime.PlainExport(normalize.load(path).SerializeToString(), model, 1)
    assert_same(found, reference.infer(frames), task, 0.001)
    unchanged = onnxruntime.PlainExport(path, model, 1)
    assert_same(found, unchanged.infer(frames), task, 0.5 if half else 0.001)


def test_an_export_with_fp16_inputs_runs_widened_and_unchanged(exported, tmp_path):
    """`yolo export half=True device=0` writes FP16 inputs."""
    from onnxruntime.transformers import float16

    path, frames = tmp_path / "half.onnx", frames_of("detect")
    onnx.save(float16.convert_float_to_float16(onnx.load(exported("detect", opset=12))), path)
    assert onnx.load(path).graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT16
    model = serving_graph.to_serving_graph(path, "half", None, tmp_path / "graph.onnx")
    found = onnxruntime.OnnxruntimeEngine(tmp_path / "graph.onnx", 1).infer(0, frames)
    assert_same(found, onnxruntime.PlainExport(path, model, 1).infer(frames), "detect", 0.5)
    assert_same(found, pytorch.open_weights(DEMO_WEIGHTS, 1).infer(0, frames), "detect", 0.1)


@pytest.mark.parametrize("kind", ["opset 9", "opset 22, dynamic", "FP16, dynamic, not simplified"])
def test_graphs_converted_to_fp16_and_int8_run_in_onnx_runtime(exported, tmp_path, kind):
    """ONNX Runtime 1.32 fails on INT8 graphs of opset 21 and later: "output_dtype INT8 does not match"."""
    served, frames = tmp_path / "graph.onnx", frames_of("detect")
    serving_graph.to_serving_graph(exported("detect", **EXPORTS[kind]), "detect", None, served)
    expected = onnxruntime.OnnxruntimeEngine(served, 1).infer(0, frames)
    fp16.to_half(served, tmp_path / "half.onnx")
    assert_same(onnxruntime.OnnxruntimeEngine(tmp_path / "half.onnx", 1).infer(0, frames), expected, "detect", 0.2)
    int8.Quantizer(served, frames, zero_points=False).write(tmp_path / "int8.onnx", Method())
    convs = [node for node in onnx.load(tmp_path / "int8.onnx").graph.node if node.op_type == "Conv"]
    assert sum(node.input[1].endswith("/int8/float") for node in convs) == 63
    onnxruntime.OnnxruntimeEngine(tmp_path / "int8.onnx", 1).infer(0, frames)


def test_int8_conversion_of_fp16_and_fp32_weights_inserts_the_same_nodes(exported, tmp_path):
    """Casts between convolutions would prevent their inputs from sharing a scale."""
    counts = []
    for options in ({"opset": 17}, {"opset": 17, "half": True}):
        serving_graph.to_serving_graph(exported("detect", **options), "detect", None, tmp_path / "graph.onnx")
        int8.Quantizer(tmp_path / "graph.onnx", frames_of("detect"), zero_points=False).write(
            tmp_path / "int8.onnx", Method()
        )
        kinds = [node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node]
        counts.append((kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")))
    assert counts[0] == counts[1]


def small(*nodes: onnx.NodeProto, opset: int = 19, kind: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """Return a model from x to y, each [1, 4]."""
    values = [helper.make_tensor_value_info(name, kind, [1, 4]) for name in "xy"]
    made = helper.make_graph(list(nodes), "g", values[:1], values[1:])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def test_nodes_are_sorted_topologically():
    first, second = helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Abs", ["a"], ["y"])
    for given in ([first, second], [second, first]):
        model = small(*given)
        normalize.sort(model.graph)
        assert [node.op_type for node in model.graph.node] == ["Relu", "Abs"]


def test_a_graph_with_a_cycle_is_refused(tmp_path):
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Abs", ["a"], ["b"])]
    onnx.save(small(*nodes, helper.make_node("Relu", ["b"], ["y"])), tmp_path / "loop.onnx")
    with pytest.raises(WeightsError, match=r"loop\.onnx is not a valid ONNX file: .*cycle"):
        normalize.load(tmp_path / "loop.onnx")


def test_constants_casts_inputs_and_outputs_are_widened():
    half = numpy_helper.from_array(np.full(4, 0.5, np.float16), "half")
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.FLOAT16),
        helper.make_node("Constant", [], ["c"], value=half),
        helper.make_node("Mul", ["a", "c"], ["b"]),
        helper.make_node("Cast", ["b"], ["y"], to=TensorProto.FLOAT16),
    ]
    model = small(*nodes, kind=TensorProto.FLOAT16)
    normalize.widen(model)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == ["Constant", "Mul", "Cast"]
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    (found,) = onnxruntime.session(model.SerializeToString(), 1).run(None, {"x": np.ones((1, 4), np.float32)})
    assert found.tolist() == [[0.5] * 4]


def test_the_opset_is_converted_if_possible_and_kept_otherwise():
    relu = helper.make_node("Relu", ["x"], ["y"])
    for opset in (9, 17, 19, 22):
        assert normalize.with_opset(small(relu, opset=opset)).opset_import[0].version == normalize.OPSET
    newer = small(helper.make_node("Gelu", ["x"], ["y"]), opset=20)
    assert normalize.with_opset(newer).opset_import[0].version == 20


def test_fixed_sizes_that_old_releases_declared_in_dynamic_exports_are_ignored(exported, tmp_path):
    """Releases before 8.1 declared ['batch', 'anchors', 8400] in dynamic exports."""
    model = onnx.load(exported("detect", opset=12, dynamic=True))
    _, channels, anchors = model.graph.output[0].type.tensor_type.shape.dim
    channels.dim_param, anchors.dim_value = "anchors", 8400
    onnx.save(model, tmp_path / "old.onnx")
    assert dims(normalize.read(tmp_path / "old.onnx", tmp_path / "old.onnx").graph.output[0]) == [0, 14, 0]
    found = serving_graph.to_serving_graph(tmp_path / "old.onnx", "old", None, tmp_path / "graph.onnx")
    assert len(found.names) == 10
    engine = onnxruntime.OnnxruntimeEngine(tmp_path / "graph.onnx", 1)
    assert engine.infer(0, [np.zeros((SIDE, 160, 3), np.uint8)])[0][0].shape == (315, 6)


def test_constants_listed_as_inputs_are_removed_from_the_inputs(exported, tmp_path):
    """Old exporters list them so."""
    model = onnx.load(exported("detect", opset=12))
    for tensor in list(model.graph.initializer):
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(model, tmp_path / "old.onnx")
    assert [each.name for each in normalize.load(tmp_path / "old.onnx").graph.input] == ["images"]
