"""The estimate of a graph's device memory: exact for small graphs, plausible for the real one."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from app.graphs import export, fp16, memory, serving_graph
from app.settings import DEMO_WEIGHTS

SIDE = 8
PIXELS = SIDE * SIDE * 3  # bytes of one uint8 frame
FLOATS = 4 * PIXELS  # bytes of the same frame in FP32


def node(kind: str, inputs: str, output: str, **attributes: object) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


@pytest.fixture
def peak(tmp_path):
    """Estimates the memory of a graph of these nodes, from `images` to `rows`, with a constant `c`."""

    def estimate(
        *nodes: NodeProto, batch: int = 1, shape: tuple[int, int] = (SIDE, SIDE), dims: tuple = ("b", "h", "w", 3)
    ) -> int:
        source = helper.make_tensor_value_info("images", TensorProto.UINT8, dims)
        target = helper.make_tensor_value_info("rows", TensorProto.FLOAT, None)
        constants = [numpy_helper.from_array(np.ones((1, 1, 1, 3), np.float32), "c")]
        made = helper.make_graph(nodes, "small", [source], [target], constants)
        onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)]), tmp_path / "small.onnx")
        return memory.activation_bytes(tmp_path / "small.onnx", batch, shape)

    return estimate


CAST = node("Cast", "images", "x", to=TensorProto.FLOAT)
TRANSPOSE = node("Transpose", "x", "y", perm=[0, 2, 1, 3])  # a layer that reads one tensor and writes another


def test_a_layer_needs_its_input_and_its_output(peak):
    assert peak(CAST, node("Transpose", "x", "rows", perm=[0, 3, 1, 2])) == 2 * FLOATS


def test_a_tensor_is_freed_after_its_last_reader(peak):
    chain = [node("Transpose", f"{name}", f"{name}y", perm=[0, 2, 1, 3]) for name in ("x", "xy", "xyy", "xyyy")]
    assert peak(CAST, *chain, node("Transpose", "xyyyy", "rows", perm=[0, 2, 1, 3])) == 2 * FLOATS


def test_a_tensor_that_is_read_later_is_kept(peak):
    late = [node("Transpose", "y", "z", perm=[0, 2, 1, 3]), node("Concat", "x z", "rows", axis=0)]
    # While z is written: x, y and z. While rows are written: x, z and rows, which has the size of both.
    assert peak(CAST, TRANSPOSE, *late) == 4 * FLOATS
    assert peak(CAST, TRANSPOSE, late[0], node("Add", "x z", "rows")) == 3 * FLOATS


def test_a_tensor_that_a_node_reads_twice_counts_once(peak):
    assert peak(CAST, node("Concat", "x x", "rows", axis=0)) == 3 * FLOATS
    assert (
        peak(CAST, node("Concat", "x x", "y", axis=0), node("Transpose", "y", "rows", perm=[0, 2, 1, 3])) == 4 * FLOATS
    )


def test_arithmetic_and_reshapes_work_in_place(peak):
    steps = [node("Mul", "x c", "y"), node("Add", "y c", "z"), node("Relu", "z", "w"), node("Cast", "w", "rows", to=1)]
    assert peak(CAST, *steps) == FLOATS
    # Not if the input is read again: then y is a separate tensor.
    assert peak(CAST, node("Mul", "x c", "y"), node("Add", "x y", "rows")) == 2 * FLOATS


def test_silu_writes_one_tensor(peak):
    nodes = [node("Sigmoid", "y", "gate"), node("Mul", "y gate", "rows")]
    assert peak(CAST, TRANSPOSE, *nodes) == 2 * FLOATS


def test_sigmoid_works_in_place_if_its_input_has_no_other_reader(peak):
    nodes = [node("Sigmoid", "y", "s"), node("Transpose", "s", "rows", perm=[0, 2, 1, 3])]
    assert peak(CAST, TRANSPOSE, *nodes) == 2 * FLOATS


def test_quantized_tensors_take_one_byte_per_value_until_their_last_reader(peak):
    """PIXELS bytes of int8 stay while z and w (FP32, from x) are written."""
    scale = helper.make_node("Constant", [], ["scale"], value=numpy_helper.from_array(np.float32(0.1)))
    zero = helper.make_node("Constant", [], ["zero"], value=numpy_helper.from_array(np.int8(0)))
    nodes = [
        node("QuantizeLinear", "y scale zero", "q"),
        node("DequantizeLinear", "q scale zero", "back"),
        node("Transpose", "x", "z", perm=[0, 2, 1, 3]),
        node("Transpose", "z", "w", perm=[0, 2, 1, 3]),
        node("Add", "back w", "rows"),
    ]
    assert peak(scale, zero, CAST, TRANSPOSE, *nodes) == 2 * FLOATS + PIXELS


def test_constants_count_as_weights_and_not_as_activations(peak, tmp_path):
    peak(CAST, node("Mul", "x c", "rows"))
    assert memory.weight_bytes(tmp_path / "small.onnx") == 3 * 4


def test_the_input_counts_from_the_start(peak):
    assert peak(node("Shape", "images", "rows")) == PIXELS


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("shape", [(SIDE, SIDE), (SIDE, 3 * SIDE), (2 * SIDE, SIDE)])
@pytest.mark.parametrize("dims", [("b", "h", "w", 3), ("b", SIDE, SIDE, 3), (1, "h", "w", 3)], ids=str)
def test_the_requested_batch_and_shape_are_used(peak, batch, shape, dims):
    found = peak(CAST, node("Transpose", "x", "rows", perm=[0, 3, 1, 2]), batch=batch, shape=shape, dims=dims)
    assert found == 2 * FLOATS * batch * shape[0] * shape[1] // SIDE**2


# The graph of yolov8n


@pytest.fixture(scope="module", params=[True, False], ids=["static", "dynamic"])
def real(needs_engine, request, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("real")
    plain = export.to_plain_onnx(DEMO_WEIGHTS, 640, folder, static=request.param)
    made = {"fp32": folder / "single.onnx", "fp16": folder / "half.onnx"}
    serving_graph.to_serving_graph(plain, "demo", 640, made["fp32"])
    fp16.to_half(made["fp32"], made["fp16"])
    return made


def test_activation_memory_is_proportional_to_the_batch(real):
    for path in real.values():
        one = memory.activation_bytes(path, 1, (640, 640))
        for batch in (2, 8, 64):
            assert memory.activation_bytes(path, batch, (640, 640)) == pytest.approx(batch * one, rel=0.01)


def test_fp16_needs_about_half(real):
    for estimate in (memory.weight_bytes, lambda path: memory.activation_bytes(path, 8, (640, 640))):
        assert 0.48 < estimate(real["fp16"]) / estimate(real["fp32"]) < 0.56


def test_yolov8n_at_640_px_needs_the_memory_of_its_first_layer(real):
    """Its first convolution reads 3 x 640 x 640 and writes 16 x 320 x 320 floats: 11.5 MB, most of the peak."""
    first = 4 * (3 * 640 * 640 + 16 * 320 * 320)
    assert first <= memory.activation_bytes(real["fp32"], 1, (640, 640)) < 1.5 * first
    assert 12e6 < memory.weight_bytes(real["fp32"]) < 14e6  # 3.0 million parameters


def test_the_estimate_does_not_change_the_file(real):
    before = real["fp32"].read_bytes()
    memory.activation_bytes(real["fp32"], 3, (320, 320))
    assert real["fp32"].read_bytes() == before
