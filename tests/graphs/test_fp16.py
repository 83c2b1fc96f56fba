"""Serving graph FP32 -> FP16: the parts converted, the loss of accuracy, and the operators that TensorRT parses."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import scenes
from fakes import rows_of
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from app.backends import onnxruntime, pytorch
from app.errors import WeightsError
from app.graphs import export, fp16, normalize, serving_graph
from app.settings import DEMO_WEIGHTS

pytestmark = pytest.mark.usefixtures("needs_engine")

SIDE = 320
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def serving(folder: Path, side: int, *, static: bool) -> dict[str, Path]:
    made = {"fp32": folder / "single.onnx", "fp16": folder / "half.onnx"}
    plain = export.to_plain_onnx(DEMO_WEIGHTS, side, folder, static=static)
    serving_graph.to_serving_graph(plain, "demo", side, made["fp32"])
    fp16.to_half(made["fp32"], made["fp16"])
    return made


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory) -> dict[str, Path]:
    return serving(tmp_path_factory.mktemp("dynamic"), SIDE, static=False)


@pytest.fixture(scope="module")
def static(tmp_path_factory) -> dict[str, Path]:
    return serving(tmp_path_factory.mktemp("static"), SIDE, static=True)


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> dict[str, Path]:
    return serving(tmp_path_factory.mktemp("large"), 1280, static=True)


@pytest.fixture(params=["dynamic", "static"])
def graphs(request) -> dict[str, Path]:
    """The FP32 and the FP16 graph, with a dynamic and with a static frame shape."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def half(graphs) -> ModelProto:
    return onnx.load(graphs["fp16"])


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.stack([scenes.scene(seed, SIDE, SIDE).image for seed in range(8)])


@pytest.fixture(scope="module")
def expected(frames) -> np.ndarray:
    return rows_of(pytorch.open_weights(DEMO_WEIGHTS, 2).infer(0, frames))


def run(path: Path, frames: np.ndarray) -> np.ndarray:
    return rows_of(onnxruntime.OnnxruntimeEngine(path, 2).infer(0, frames))


def kinds_of(model: ModelProto) -> dict[str, int]:
    """Return the element type of every tensor by name."""
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    return {value.name: value.type.tensor_type.elem_type for value in values} | {
        tensor.name: tensor.data_type for tensor in inferred.initializer
    }


def of_kind(model: ModelProto, kind: str) -> list[NodeProto]:
    return [node for node in model.graph.node if node.op_type == kind]


def attribute(node: NodeProto, name: str) -> object:
    return next((helper.get_attribute_value(each) for each in node.attribute if each.name == name), None)


def assert_close(rows: np.ndarray, expected: np.ndarray, *, px: float, score: float) -> None:
    """Assert that every expected row with a score of 0.25 or more is close to a row of its class."""
    compared = 0
    for ours, theirs in zip(rows, expected, strict=True):
        for row in theirs[theirs[:, 4] >= 0.25]:
            same = ours[ours[:, 5] == row[5]]
            distance = np.abs(same[:, :5] - row[:5])
            distance[:, 4] /= score / px
            assert distance.max(1).min() <= px
            compared += 1
    assert compared > 100


# The converted parts


def test_graph_passes_the_full_check_and_keeps_its_input_and_output(half):
    onnx.checker.check_model(half, full_check=True)
    (source,), (target,) = half.graph.input, half.graph.output
    assert (source.name, source.type.tensor_type.elem_type) == ("images", TensorProto.UINT8)
    assert (target.name, target.type.tensor_type.elem_type) == ("rows", FLOAT)


def test_the_weights_of_all_convolutions_but_dfl_are_fp16(half):
    kinds = kinds_of(half)
    convs = of_kind(half, "Conv")
    assert len(convs) == 64
    single = [node for node in convs if HALF not in (kinds[node.input[0]], kinds[node.output[0]])]
    assert [node.name.split("/")[-2] for node in single] == ["conv"]
    assert "dfl" in single[0].name
    for node in convs:
        assert {kinds[name] for name in node.input} == ({FLOAT} if node is single[0] else {HALF})


def test_no_weights_are_kept_twice(half):
    sizes = [np.prod(tensor.dims) for tensor in half.graph.initializer if tensor.data_type == FLOAT]
    assert max(sizes) <= 4 * serving_graph.K * 3  # constant anchors, but no weights of a convolution
    read = {name for node in half.graph.node for name in node.input}
    assert {tensor.name for tensor in half.graph.initializer} <= read


def test_everything_after_the_head_is_fp32(half):
    """The six outputs of the head are cast casts, and nothing after them is FP16."""
    kinds, producers = kinds_of(half), {name: node for node in half.graph.node for name in node.output}
    casts = [node for node in of_kind(half, "Cast") if kinds[node.input[0]] == HALF]
    decoding = {node.output[0] for node in casts}
    readers = [node for node in half.graph.node if node not in casts]
    for node in readers:
        if decoding & set(node.input):
            decoding |= set(node.output)
            assert HALF not in {kinds[name] for name in (*node.input, *node.output) if name}, node.name
    assert "rows" in decoding
    heads = [node.input[0] for node in casts if producers[node.input[0]].op_type == "Conv"]
    assert len(heads) == 6
    assert all("/model.22/cv" in name for name in heads)


@pytest.mark.parametrize("kind", ["Softmax", "Sub", "Div", "TopK", "ArgMax", "ReduceMax", "GatherElements"])
def test_the_decode_is_fp32(half, kind):
    kinds = kinds_of(half)
    for node in of_kind(half, kind):
        assert HALF not in {kinds[name] for name in (*node.input, *node.output)}


def test_the_sigmoid_of_the_scores_is_fp32_and_those_of_features_are_fp16(half):
    kinds = kinds_of(half)
    found = [kinds[node.output[0]] for node in of_kind(half, "Sigmoid")]
    assert (found.count(HALF), found.count(FLOAT)) == (57, 1)


def test_resize_keeps_its_scales_in_fp32(half):
    kinds = kinds_of(half)
    resizes = of_kind(half, "Resize")
    assert len(resizes) == 2
    for node in resizes:
        assert (kinds[node.input[0]], kinds[node.input[2]], kinds[node.output[0]]) == (HALF, FLOAT, HALF)


def test_no_cast_is_redundant(half):
    producers = {name: node for node in half.graph.node for name in node.output}
    casts = of_kind(half, "Cast")
    read = {name for node in half.graph.node for name in node.input}
    assert len({(node.input[0], attribute(node, "to")) for node in casts}) == len(casts)
    for node in casts:
        source = producers.get(node.input[0])
        assert source is None or source.op_type != "Cast"
        assert node.output[0] in read
    assert [node.input[0] for node in casts if attribute(node, "to") == HALF] == ["images"]


def test_weights_beyond_the_range_of_fp16_are_refused_with_their_name(static, tmp_path):
    for value, accepted in ((65504, True), (-65504, True), (65505, False), (-1e6, False), (np.inf, False)):
        model = onnx.load(static["fp32"])
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "model.0.conv.weight")
        weights = numpy_helper.to_array(tensor).copy()
        weights[0, 0, 0, 0] = value
        tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
        onnx.save(model, tmp_path / "great.onnx")
        if accepted:
            fp16.to_half(tmp_path / "great.onnx", tmp_path / "half.onnx")
            continue
        with pytest.raises(WeightsError, match=r"model\.0\.conv\.weight has values beyond the range of FP16: use"):
            fp16.to_half(tmp_path / "great.onnx", tmp_path / "none.onnx")
    assert not (tmp_path / "none.onnx").exists()


def small(shared: NodeProto, path: Path) -> Path:
    """Write a graph whose convolution and softmax both depend on the output of `shared`; return its path."""
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=FLOAT),
        shared,
        helper.make_node("Mul", ["pixels", "shared"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "weights"], ["features"]),
        helper.make_node("Add", ["features", "shared"], ["shifted"]),
        helper.make_node("Softmax", ["shifted"], ["rows"], axis=1),
    ]
    weights = np.random.default_rng(0).normal(size=(4, 3, 1, 1)).astype(np.float32)
    source = helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 3, 4, 4])
    target = helper.make_tensor_value_info("rows", FLOAT, [1, 4, 4, 4])
    constants = [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.float32(0.01), "scale")]
    model = helper.make_model(
        helper.make_graph(nodes, "small", [source], [target], constants),
        opset_imports=[helper.make_opsetid("", normalize.OPSET)],
        ir_version=9,
    )
    onnx.save(model, path)
    return path


SHARED = {
    "Identity": helper.make_node("Identity", ["scale"], ["shared"]),
    "Constant as a number": helper.make_node("Constant", [], ["shared"], value_float=0.01),
    "Constant": helper.make_node("Constant", [], ["shared"], value=helper.make_tensor("c", FLOAT, [], [0.01])),
}


@pytest.mark.parametrize("kind", SHARED)
def test_a_node_read_by_features_and_decode_is_cast_for_each(tmp_path, kind):
    path = small(SHARED[kind], tmp_path / "single.onnx")
    fp16.to_half(path, tmp_path / "half.onnx")
    model = onnx.load(tmp_path / "half.onnx")
    onnx.checker.check_model(model, full_check=True)
    kinds = kinds_of(model)
    assert [kinds[of_kind(model, kind)[0].input[0]] for kind in ("Conv", "Add", "Softmax")] == [HALF, FLOAT, FLOAT]
    images = np.random.default_rng(1).integers(0, 256, (1, 3, 4, 4), np.uint8)
    rows = [onnxruntime.session(each, 1).run(None, {"images": images})[0] for each in (path, tmp_path / "half.onnx")]
    np.testing.assert_allclose(*rows, atol=5e-3)


# Accuracy


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_an_image_has_the_same_rows_in_a_batch_of_any_size(graphs, frames, batch):
    expected = np.concatenate([run(graphs["fp16"], frame[None]) for frame in frames[:batch]])
    np.testing.assert_array_equal(run(graphs["fp16"], frames[:batch]), expected)


def test_rows_are_those_of_fp32(graphs, frames, expected):
    assert_close(run(graphs["fp32"], frames), expected, px=0.01, score=1e-4)
    assert_close(run(graphs["fp16"], frames), expected, px=0.5, score=0.01)


def test_rows_are_those_of_fp32_if_every_operation_rounds(frames, expected):
    """As on a GPU. ONNX Runtime computes in FP32 and rounds some results, torch on a CPU rounds every one."""
    assert_close(rows_in_half(frames), expected, px=0.5, score=0.01)


def rows_in_half(frames: np.ndarray) -> np.ndarray:
    """Return the rows of torch with the features in FP16 and the decode in FP32."""
    import torch

    model = export.load_module(DEMO_WEIGHTS)
    head = model.model[-1]
    strides, decode = head.stride.clone(), head._inference
    model.half()
    head.dfl.float()
    head.stride = strides
    head._inference = lambda found: decode(
        {name: [one.float() for one in value] if name == "feats" else value.float() for name, value in found.items()}
    )
    with torch.inference_mode():
        images = torch.from_numpy(frames).permute(0, 3, 1, 2).half() * (1 / 255)
        return pytorch.select_rows(model(images)[0], len(scenes.NAMES)).numpy()


# The operators that TensorRT's parser supports: docs/operators.md of onnx-tensorrt 10.1, for these graphs

_FLOATS = {"FLOAT", "FLOAT16", "BFLOAT16"}
_NUMBERS = _FLOATS | {"INT32", "INT64"}
_ANY = _NUMBERS | {"BOOL"}
SUPPORTED = {
    "Add": _NUMBERS,
    "ArgMax": _NUMBERS,
    "Cast": _ANY | {"UINT8"},
    "Concat": _ANY,
    "Conv": _FLOATS,
    "Div": _NUMBERS,
    "GatherElements": _ANY,
    "MaxPool": _FLOATS,
    "Mul": _NUMBERS,
    "ReduceMax": _NUMBERS,
    "Reshape": _ANY,
    "Resize": _FLOATS,
    "Sigmoid": _FLOATS,
    "Slice": _ANY,
    "Softmax": _FLOATS,
    "Split": _ANY,
    "Sub": _NUMBERS,
    "TopK": _NUMBERS,
    "Transpose": _ANY,
    "Unsqueeze": _ANY,
}
_CONSTANT = {"ReduceMax": [1], "Slice": [3], "TopK": [1], "Unsqueeze": [1]}  # inputs that must be initializers
_K_LIMIT = 3840  # "must be less than"


def parser_errors(path: Path) -> list[str]:
    """Return what the parser would refuse."""
    model = onnx.load(path)
    kinds = {name: TensorProto.DataType.Name(kind) for name, kind in kinds_of(model).items()}
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type not in SUPPORTED:
            found.append(f"{node.op_type} is unknown")
            continue
        used = {kinds.get(name, "no known type") for name in (node.input[0], node.output[0])}
        found += [f"{node.op_type} of {kind}" for kind in used - SUPPORTED[node.op_type]]
        found += [
            f"{node.op_type} with an input that is not constant"
            for i in _CONSTANT.get(node.op_type, [])
            if node.input[i] not in values
        ]
        found += [f"{node.op_type}: {text}" for text, broken in restrictions(node, values).items() if broken]
    return found


def restrictions(node: NodeProto, values: dict[str, np.ndarray]) -> dict[str, bool]:
    match node.op_type:
        case "Resize":
            return {
                "mode": attribute(node, "mode") not in (b"nearest", b"linear"),
                "transformation": attribute(node, "coordinate_transformation_mode")
                not in (b"asymmetric", b"half_pixel"),
                "nearest mode": attribute(node, "nearest_mode") not in (b"floor", b"ceil"),
                "antialiasing": bool(attribute(node, "antialias")),
            }
        case "TopK":
            return {
                "not sorted": attribute(node, "sorted") != 1,
                "K": node.input[1] in values and bool(values[node.input[1]].max() >= _K_LIMIT),
            }
        case "MaxPool":
            return {
                "indices": len(node.output) > 1,
                "dilations": any(size != 1 for size in attribute(node, "dilations") or []),
            }
    return {}


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_every_operator_and_type_is_supported_by_tensorrts_parser(static, large, kind):
    assert parser_errors(static[kind]) == []
    assert parser_errors(large[kind]) == []


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_the_uint8_input_goes_only_into_a_cast(graphs, kind):
    model = onnx.load(graphs[kind])
    kinds = kinds_of(model)
    readers = [
        node.op_type for node in model.graph.node if TensorProto.UINT8 in {kinds.get(name) for name in node.input}
    ]
    assert readers == ["Cast"]
    assert [name for name, kind in kinds.items() if kind == TensorProto.UINT8] == ["images"]


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_topk_at_1280_px_is_within_the_limit_of_tensorrt(large, kind):
    model = onnx.load(large[kind])
    (node,) = of_kind(model, "TopK")
    (k,) = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == node.input[1]]
    assert k.tolist() == [serving_graph.K]
    assert serving_graph.K < _K_LIMIT
    assert model.graph.output[0].type.tensor_type.shape.dim[1].dim_value == serving_graph.K


def insert_before(model: ModelProto, kind: str, reader: str, **attributes: object) -> None:
    """Insert a node of this kind before the first `reader` node."""
    at, node = next((i, node) for i, node in enumerate(model.graph.node) if node.op_type == reader)
    model.graph.node.insert(at, helper.make_node(kind, [node.input[0]], ["planted"], **attributes))
    node = model.graph.node[at + 1]
    node.input[0] = "planted"


def unsupported_operator(model: ModelProto) -> None:
    insert_before(model, "BitShift", "Cast", direction="LEFT")
    model.graph.node[0].input.append("images")


def unsupported_type(model: ModelProto) -> None:
    insert_before(model, "Cast", "Softmax", to=TensorProto.DOUBLE)


def uint8_elsewhere(model: ModelProto) -> None:
    insert_before(model, "Transpose", "Cast", perm=[0, 1, 2, 3])


def too_many_rows(model: ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "out/k")
    tensor.CopyFrom(numpy_helper.from_array(np.array([_K_LIMIT]), "out/k"))


def computed_rows(model: ModelProto) -> None:
    at, node = next((i, node) for i, node in enumerate(model.graph.node) if node.op_type == "TopK")
    node.input[1] = "computed"
    model.graph.node.insert(at, helper.make_node("Add", ["out/k", "out/0"], ["computed"]))


DEFECTS: dict[str, tuple[Callable[[ModelProto], None], set[str]]] = {
    "operator": (unsupported_operator, {"BitShift is unknown"}),
    "type": (unsupported_type, {"Cast of DOUBLE", "Softmax of DOUBLE"}),
    "uint8": (uint8_elsewhere, {"Transpose of UINT8"}),
    "K": (too_many_rows, {"TopK: K"}),
    "computed K": (computed_rows, {"TopK with an input that is not constant"}),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_parser_check_finds_unsupported_nodes(large, tmp_path, defect):
    add_defect, errors = DEFECTS[defect]
    model = onnx.load(large["fp32"])
    add_defect(model)
    onnx.save(model, tmp_path / "planted.onnx")
    assert errors <= set(parser_errors(tmp_path / "planted.onnx"))
