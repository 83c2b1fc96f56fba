"""The model description from an export's metadata, for all releases, and the heads that are refused."""

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from app.errors import WeightsError
from app.graphs import normalize
from app.graphs.describe import describe
from app.model import ModelInfo

WEIGHTS = Path("w.onnx")


@pytest.fixture
def of(exported):
    """Describes an export with changed metadata; None removes the entry."""

    def read(task: str = "detect", /, *, dynamic: bool = False, **facts: str | None) -> ModelInfo:
        model = normalize.load(exported(task, opset=12, dynamic=dynamic))
        metadata = {fact.key: fact.value for fact in model.metadata_props} | facts
        del model.metadata_props[:]
        helper.set_model_props(model, {key: value for key, value in metadata.items() if value is not None})
        return describe(model, WEIGHTS, "w", None, None)

    return read


def test_names_stride_and_size_are_read_in_older_formats(of):
    found = of(names="['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j']", stride="[32]", imgsz="96", end2end=None)
    assert (list(found.names.values()), found.stride, found.imgsz) == (list("abcdefghij"), 32, 96)
    assert not found.end_to_end


@pytest.mark.parametrize("task", ["detect", "segment", "classify"])
def test_an_export_with_only_stride_and_names_is_described(of, task):
    lacking = dict.fromkeys(("task", "imgsz", "batch", "end2end", "channels", "args"))
    found = of(task, **lacking)
    assert (found.task, len(found.names), found.imgsz) == (task, 10, 96)
    assert of(task, **lacking, dynamic=True).imgsz == 640


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb", "classify"])
def test_classes_without_a_name_get_one_and_a_warning_is_logged(of, caplog, task):
    count = {"pose": 2, "obb": 4}.get(task, 10)
    with caplog.at_level(logging.WARNING):
        found = of(task, names="{0: 'a'}")
    assert list(found.names.values()) == ["a", *(f"class{i}" for i in range(1, count))]
    assert f"w.onnx: it names 1 of its {count} classes; the others are called class1" in caplog.text


def test_surplus_names_are_dropped_and_a_warning_is_logged(of, caplog):
    with caplog.at_level(logging.WARNING):
        assert list(of(names=str([f"n{i}" for i in range(80)])).names) == list(range(10))
    assert "it names 80 classes and has 10" in caplog.text


def export_of(
    shape: tuple[int | str, ...], *, sides: tuple[int | str, ...] = (96, 96), kind: str = "Identity", **facts
):
    """Return an export whose only output is constant and has this shape."""
    fixed = [size if isinstance(size, int) else 1 for size in shape]
    values = [
        helper.make_tensor_value_info("images", 1, (1, 3, *sides)),
        helper.make_tensor_value_info("output0", 1, shape),
    ]
    constant = numpy_helper.from_array(np.zeros(fixed, np.float32), "c")
    node = helper.make_node("Identity", ["c"], ["output0"])
    extra = [helper.make_node(kind, ["c", "c"], ["selected"])] if kind == "NonMaxSuppression" else []
    graph = helper.make_graph([node, *extra], "g", values[:1], values[1:], [constant])
    model = helper.make_model(graph)
    helper.set_model_props(model, {"task": "detect", "names": "{0: 'a', 1: 'b'}", "stride": "32"} | facts)
    return model


@pytest.mark.parametrize(
    "model",
    [
        export_of((1, 300, 6), end2end="False", args="{'nms': True}"),
        export_of((1, 300, 6), args="{'nms': True}"),
        export_of((1, 300, 6), kind="NonMaxSuppression"),
    ],
    ids=["known by end2end", "known by args", "known by its layers"],
)
def test_an_export_with_nms_is_refused(model):
    with pytest.raises(WeightsError, match=r"w\.onnx outputs \[300, 6\] per image.*NMS inside.* nms=False"):
        describe(model, WEIGHTS, "w", None, None)


def test_yolov10_without_the_end2end_entry_is_recognized_as_end_to_end():
    assert describe(export_of((1, 300, 6)), WEIGHTS, "w", None, None).end_to_end


@pytest.mark.parametrize(
    ("shape", "sides"),
    [((1, 567, 7), (96, 96)), ((1, 300, 84), (640, 640)), ((1, 300, 84), ("height", "width")), ((1, 4, 189), (96, 96))],
    ids=["YOLOv5", "RT-DETR", "RT-DETR, dynamic", "no classes"],
)
def test_heads_of_other_networks_are_refused(shape, sides):
    with pytest.raises(WeightsError, match="not the detect head of YOLOv8 and later"):
        describe(export_of(shape, sides=sides), WEIGHTS, "w", None, None)


def test_a_head_with_one_to_four_levels_is_accepted():
    for anchors in (36 + 9, 144 + 36 + 9, 576 + 144 + 36 + 9):
        assert len(describe(export_of((1, 6, anchors)), WEIGHTS, "w", None, None).names) == 2


def test_a_pose_export_without_the_keypoint_shape_is_refused(of):
    with pytest.raises(WeightsError, match="not the pose head"):
        of("pose", kpt_shape=None)


def test_an_export_of_another_project_is_refused():
    """For example a classifier of torchvision."""
    model = export_of((1, 1000), sides=(224, 224))
    del model.metadata_props[:]
    with pytest.raises(WeightsError, match=r"w\.onnx is not an Ultralytics export"):
        describe(model, WEIGHTS, "w", None, None)
    onnx.checker.check_model(model)
