"""What an export says of its model, in the metadata of all releases, and which heads are refused."""

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
    """What is read of an export whose metadata is changed: None = the entry is not there."""

    def read(task: str = "detect", /, *, dynamic: bool = False, **facts: str | None) -> ModelInfo:
        model = normalize.load(exported(task, opset=12, dynamic=dynamic))
        kept = {fact.key: fact.value for fact in model.metadata_props} | facts
        del model.metadata_props[:]
        helper.set_model_props(model, {key: value for key, value in kept.items() if value is not None})
        return describe(model, WEIGHTS, "w", None, None)

    return read


def test_names_stride_and_size_are_read_in_older_forms(of):
    found = of(names="['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j']", stride="[32]", imgsz="96", end2end=None)
    assert (list(found.names.values()), found.stride, found.imgsz) == (list("abcdefghij"), 32, 96)
    assert not found.end_to_end


@pytest.mark.parametrize("task", ["detect", "segment", "classify"])
def test_the_first_releases_wrote_stride_and_names_alone(of, task):
    lacking = dict.fromkeys(("task", "imgsz", "batch", "end2end", "channels", "args"))
    found = of(task, **lacking)
    assert (found.task, len(found.names), found.imgsz) == (task, 10, 96)
    assert of(task, **lacking, dynamic=True).imgsz == 640


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb", "classify"])
def test_classes_without_a_name_are_served_and_told(of, caplog, task):
    count = {"pose": 2, "obb": 4}.get(task, 10)
    with caplog.at_level(logging.WARNING):
        found = of(task, names="{0: 'a'}")
    assert list(found.names.values()) == ["a", *(f"class{i}" for i in range(1, count))]
    assert f"w.onnx: it names 1 of its {count} classes; the others are called class1" in caplog.text


def test_more_names_than_classes_are_cut_and_told(of, caplog):
    with caplog.at_level(logging.WARNING):
        assert list(of(names=str([f"n{i}" for i in range(80)])).names) == list(range(10))
    assert "it names 80 classes and has 10" in caplog.text


def export_of(
    shape: tuple[int | str, ...], *, sides: tuple[int | str, ...] = (96, 96), kind: str = "Identity", **facts
):
    """An export whose one output has this shape, whatever goes in."""
    fixed = [size if isinstance(size, int) else 1 for size in shape]
    ends = [
        helper.make_tensor_value_info("images", 1, (1, 3, *sides)),
        helper.make_tensor_value_info("output0", 1, shape),
    ]
    constant = numpy_helper.from_array(np.zeros(fixed, np.float32), "c")
    node = helper.make_node("Identity", ["c"], ["output0"])
    extra = [helper.make_node(kind, ["c", "c"], ["selected"])] if kind == "NonMaxSuppression" else []
    graph = helper.make_graph([node, *extra], "g", ends[:1], ends[1:], [constant])
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
    ids=["told by end2end", "told by args", "told by its layers"],
)
def test_nms_inside_is_refused(model):
    with pytest.raises(WeightsError, match=r"w\.onnx outputs \[300, 6\] per image.*NMS inside.* nms=False"):
        describe(model, WEIGHTS, "w", None, None)


def test_yolov10_of_a_release_that_did_not_say_so_selects_its_boxes_itself():
    assert describe(export_of((1, 300, 6)), WEIGHTS, "w", None, None).end_to_end


@pytest.mark.parametrize(
    ("shape", "sides"),
    [((1, 567, 7), (96, 96)), ((1, 300, 84), (640, 640)), ((1, 300, 84), ("height", "width")), ((1, 4, 189), (96, 96))],
    ids=["YOLOv5", "RT-DETR", "RT-DETR, dynamic", "no classes"],
)
def test_heads_of_other_networks_are_refused(shape, sides):
    with pytest.raises(WeightsError, match="not the detect head of YOLOv8 and later"):
        describe(export_of(shape, sides=sides), WEIGHTS, "w", None, None)


def test_a_head_on_other_levels_than_three_is_served():
    for anchors in (36 + 9, 144 + 36 + 9, 576 + 144 + 36 + 9):
        assert len(describe(export_of((1, 6, anchors)), WEIGHTS, "w", None, None).names) == 2


def test_poses_without_the_number_of_keypoints_are_refused(of):
    with pytest.raises(WeightsError, match="not the pose head"):
        of("pose", kpt_shape=None)


def test_an_export_of_another_project_is_refused():
    """A classifier of torchvision, say."""
    model = export_of((1, 1000), sides=(224, 224))
    del model.metadata_props[:]
    with pytest.raises(WeightsError, match=r"w\.onnx is not an Ultralytics export"):
        describe(model, WEIGHTS, "w", None, None)
    onnx.checker.check_model(model)
