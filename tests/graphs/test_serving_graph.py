"""Weights -> serving graph: the inputs and outputs of the graph, and the messages of refusals."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import scenes
from fakes import rows_of

from app.backends import onnxruntime, pytorch
from app.errors import WeightsError
from app.graphs import export, serving_graph
from app.settings import DEMO_WEIGHTS

pytestmark = pytest.mark.usefixtures("needs_engine")

SIDE = 160


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return export.to_plain_onnx(DEMO_WEIGHTS, SIDE, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def serving(plain, tmp_path_factory) -> tuple[Path, serving_graph.ModelInfo]:
    target = tmp_path_factory.mktemp("serving") / "graph.onnx"
    return target, serving_graph.to_serving_graph(plain, "demo", None, target)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.stack([scenes.scene(seed, SIDE, SIDE).image for seed in range(8)])


@pytest.fixture(scope="module")
def expected(frames) -> np.ndarray:
    return rows_of(pytorch.open_weights(DEMO_WEIGHTS, 2).infer(0, frames))


def exported(folder: Path, weights: Path = DEMO_WEIGHTS, **options) -> Path:
    """Export as a user does, with `yolo export format=onnx`; return the path."""
    from ultralytics import YOLO

    copy = Path(shutil.copy(weights, folder / "exported.pt"))
    return Path(YOLO(copy).export(format="onnx", imgsz=SIDE, device="cpu", **options))


def run(path: Path, frames: np.ndarray) -> np.ndarray:
    return rows_of(onnxruntime.OnnxruntimeEngine(path, 2).infer(0, frames))


def assert_same_rows(rows: np.ndarray, expected: np.ndarray) -> None:
    """Compare rows with a score above 0.001; the class of the others is noise."""
    for ours, theirs in zip(rows, expected, strict=True):
        assert np.abs(ours[:, 4] - theirs[:, 4]).max() < 1e-4
        assert theirs[0, 4] > 0.5
        for row in theirs[theirs[:, 4] > 0.001]:
            same_class = ours[ours[:, 5] == row[5]]
            assert np.abs(same_class - row).max(1).min() < 0.01


def test_names_stride_and_size_are_read_from_the_metadata(serving):
    _, model = serving
    assert list(model.names.values()) == scenes.NAMES
    assert (model.task, model.stride, model.imgsz, model.shapes) == ("detect", 32, SIDE, None)


def test_graph_has_the_specified_input_and_output_and_passes_the_full_check(serving):
    model = onnx.load(serving[0])
    onnx.checker.check_model(model, full_check=True)
    (source,), (target,) = model.graph.input, model.graph.output
    assert (source.name, source.type.tensor_type.elem_type) == ("images", onnx.TensorProto.UINT8)
    assert [dim.dim_param or dim.dim_value for dim in source.type.tensor_type.shape.dim] == [
        "batch",
        "height",
        "width",
        3,
    ]
    assert (target.name, target.type.tensor_type.elem_type) == ("rows", onnx.TensorProto.FLOAT)


def test_the_uint8_input_goes_only_into_a_cast(serving):
    """https://github.com/NVIDIA/TensorRT/issues/3985"""
    nodes = onnx.load(serving[0]).graph.node
    assert [node.op_type for node in nodes if "images" in node.input] == ["Cast"]


def test_rows_are_those_of_pytorch(serving, frames, expected):
    assert_same_rows(run(serving[0], frames), expected)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_an_image_has_the_same_rows_in_a_batch_of_any_size(serving, frames, batch):
    expected = run(serving[0], frames[:1])[0]
    found = run(serving[0], frames[:batch])[0]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_any_multiple_of_the_stride_runs_and_has_a_row_for_each_anchor(serving):
    for height, width in ((32, 64), (96, 256), (640, 480)):
        anchors = height * width * (1 / 64 + 1 / 256 + 1 / 1024)
        rows = run(serving[0], np.zeros((1, height, width, 3), np.uint8))
        assert rows.shape == (1, min(serving_graph.K, anchors), 6)


def test_rows_are_sorted_by_score(serving, frames):
    scores = run(serving[0], frames)[..., 4]
    assert (np.diff(scores, axis=1) <= 0).all()


@pytest.mark.parametrize("options", [{"batch": 1, "opset": 19}, {"batch": 2, "simplify": False}], ids=str)
def test_plain_export_with_a_fixed_batch_serves_any_batch(tmp_path, frames, expected, options):
    path = exported(tmp_path, **options)
    model = serving_graph.to_serving_graph(path, "fixed", None, tmp_path / "graph.onnx")
    assert model.shapes == ((SIDE, SIDE),)
    assert_same_rows(run(tmp_path / "graph.onnx", frames[:3]), expected[:3])
    assert_same_rows(rows_of(onnxruntime.PlainExport(path, model, 2).infer(frames[:1])), expected[:1])
    with pytest.raises(WeightsError, match=r"exported for 160x160 only, not IMGSZ=320: export it again"):
        serving_graph.to_serving_graph(path, "fixed", 320, tmp_path / "graph.onnx")


def test_plain_export_with_one_rectangle_is_served_only_at_that_shape(tmp_path):
    plain = export.to_plain_onnx(DEMO_WEIGHTS, (96, SIDE), tmp_path, static=True)
    target = tmp_path / "graph.onnx"
    for imgsz, shapes in ((None, None), (SIDE, None), (SIDE, ((96, SIDE),))):
        model = serving_graph.to_serving_graph(plain, "fixed", imgsz, target, shapes)
        assert (model.imgsz, model.shapes) == (SIDE, ((96, SIDE),))
    frame = scenes.scene(0, SIDE, 96).image[None]
    assert_same_rows(run(target, frame), rows_of(pytorch.open_weights(DEMO_WEIGHTS, 2).infer(0, frame)))
    with pytest.raises(WeightsError, match="exported for 96x160 only, not IMGSZ=160x160: export it again"):
        serving_graph.to_serving_graph(plain, "fixed", SIDE, target, ((SIDE, SIDE),))
    with pytest.raises(WeightsError, match="exported for 96x160 only, not IMGSZ=96: export it again"):
        serving_graph.to_serving_graph(plain, "fixed", 96, target)


def test_size_that_is_no_multiple_of_the_stride_is_refused_with_the_nearest_multiple(tmp_path, plain):
    with pytest.raises(WeightsError, match="IMGSZ=600 is not a multiple of the model's stride 32: use 608"):
        serving_graph.to_serving_graph(plain, "demo", 600, tmp_path / "graph.onnx")
    with pytest.raises(WeightsError, match="use 608"):
        export.to_plain_onnx(DEMO_WEIGHTS, 600, tmp_path)


def test_unsupported_tasks_are_refused_as_weights_and_as_export(tmp_path, plain):
    from ultralytics import YOLO

    YOLO("yolo26n-sem.yaml").save(tmp_path / "sem.pt")
    text = r" is a semantic model; supported tasks are detect, segment, pose, classify, obb"
    with pytest.raises(WeightsError, match=rf"sem\.pt{text}"):
        export.to_plain_onnx(tmp_path / "sem.pt", None, tmp_path_of(tmp_path))
    model = onnx.load(plain)
    next(fact for fact in model.metadata_props if fact.key == "task").value = "semantic"
    onnx.save(model, tmp_path / "sem.onnx")
    with pytest.raises(WeightsError, match=rf"sem\.onnx{text}"):
        serving_graph.to_serving_graph(tmp_path / "sem.onnx", "x", None, tmp_path / "graph.onnx")


def test_onnx_that_is_no_ultralytics_export_is_refused(tmp_path):
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    target = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [target])), tmp_path / "other.onnx")
    with pytest.raises(WeightsError, match="is not an Ultralytics export: its metadata has neither task nor names"):
        serving_graph.to_serving_graph(tmp_path / "other.onnx", "x", None, tmp_path / "graph.onnx")


@pytest.mark.parametrize("name", ["w.pt", "w.onnx"])
@pytest.mark.parametrize(
    "data", [b"", b"garbage", DEMO_WEIGHTS.read_bytes()[:100_000]], ids=["empty", "garbage", "cut"]
)
def test_damaged_weights_are_refused_with_one_line_that_names_the_file(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(WeightsError) as error:
        serving_graph.to_serving_graph(
            export.to_plain_onnx(path, None, tmp_path_of(tmp_path)), "x", None, tmp_path / "g.onnx"
        )
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def tmp_path_of(path: Path) -> Path:
    (folder := path / "scratch").mkdir()
    return folder


# Other tasks, and heads of other YOLO versions


@pytest.mark.parametrize(
    ("task", "shapes"),
    [
        ("segment", [(1, 315, 38), (1, 32, 24, 40)]),
        ("pose", [(1, 315, 21)]),
        ("obb", [(1, 315, 7)]),
        ("classify", [(1, 10)]),
    ],
)
def test_graphs_of_other_tasks_have_their_specified_outputs(of_task, task, shapes):
    made = of_task(task)
    model = onnx.load(made.graph)
    onnx.checker.check_model(model, full_check=True)
    names = {"segment": ["rows", "protos"], "classify": ["probs"]}.get(task, ["rows"])
    assert [output.name for output in model.graph.output] == names
    assert {output.type.tensor_type.elem_type for output in model.graph.output} == {onnx.TensorProto.FLOAT}
    assert [node.op_type for node in model.graph.node if "images" in node.input] == ["Cast"]
    frame = np.zeros((96, 96, 3) if task == "classify" else (96, 160, 3), np.uint8)
    (outputs,) = onnxruntime.OnnxruntimeEngine(made.graph, 2).infer(0, [frame])
    assert [(1, *output.shape) for output in outputs] == shapes
    assert made.model.kpt_shape == ((5, 3) if task == "pose" else None)
    assert made.model.shapes == (((96, 96),) if task == "classify" else None)


@pytest.mark.parametrize("task", ["segment", "pose", "obb", "classify"])
def test_outputs_of_other_tasks_are_those_of_pytorch_and_of_the_plain_export(of_task, task):
    made = of_task(task)
    size, kind = ((96, 96), "detect") if task == "classify" else ((320, 224), task)
    frames = [scenes.scene(seed, *size, task=kind).image for seed in range(3)]
    ours = onnxruntime.OnnxruntimeEngine(made.graph, 2).infer(0, frames)
    for theirs in (
        pytorch.open_weights(made.weights, 2).infer(0, frames),
        onnxruntime.PlainExport(made.plain, made.model, 2).infer(frames),
    ):
        for (first, *protos), (expected, *prototypes) in zip(ours, theirs, strict=True):
            if task == "classify":
                np.testing.assert_allclose(first, expected, atol=1e-4)
                continue
            sure = first[first[:, 4] > 0.01]
            assert len(sure) > 3
            assert np.abs(sure[:, None] - expected[None]).max(2).min(1).max() < 0.01
            assert all(np.abs(one - other).max() < 1e-3 for one, other in zip(protos, prototypes, strict=True))


def test_a_rectangular_size_is_refused_for_classify(tmp_path, of_task):
    with pytest.raises(WeightsError, match="classifies square frames; IMGSZ=96x160 is not square: set one number"):
        serving_graph.to_serving_graph(of_task("classify").plain, "x", None, tmp_path / "graph.onnx", ((96, 160),))


@pytest.fixture(scope="module")
def of_26(tmp_path_factory) -> Path:
    """Random weights with two heads, one of them end to end."""
    from ultralytics import YOLO

    path = tmp_path_factory.mktemp("26") / "yolo26n.pt"
    YOLO("yolo26n.yaml").save(path)
    return path


def test_end_to_end_export_is_served_with_the_rows_that_it_selects(tmp_path, of_26):
    path = exported(tmp_path, of_26, nms=False, dynamic=True)
    model = serving_graph.to_serving_graph(path, "26", SIDE, tmp_path / "graph.onnx")
    assert (model.task, model.end_to_end) == ("detect", True)
    noise = np.random.default_rng(0).integers(0, 255, (2, SIDE, SIDE, 3), np.uint8)
    rows, plain = run(tmp_path / "graph.onnx", noise), rows_of(onnxruntime.PlainExport(path, model, 2).infer(noise))
    assert rows.shape == (2, 300, 6)
    np.testing.assert_allclose(rows[..., 4], plain[..., 4], atol=1e-4)
    fewer = run(tmp_path / "graph.onnx", np.zeros((1, 32, SIDE, 3), np.uint8))
    assert fewer.shape == (1, 300, 6)  # from 105 anchors, each with several classes


def test_the_head_with_nms_is_served_if_weights_have_two_heads(tmp_path, of_26):
    model = serving_graph.to_serving_graph(
        export.to_plain_onnx(of_26, SIDE, tmp_path), "26", None, tmp_path / "graph.onnx"
    )
    assert not model.end_to_end
    noise = np.random.default_rng(0).integers(0, 255, (1, SIDE, SIDE, 3), np.uint8)
    rows, expected = run(tmp_path / "graph.onnx", noise), rows_of(pytorch.open_weights(of_26, 2).infer(0, noise))
    assert rows.shape == (1, 525, 6)
    np.testing.assert_allclose(rows[..., 4], expected[..., 4], atol=1e-4)
