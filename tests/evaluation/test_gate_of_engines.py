"""The gate with engines of the trained demo model: in every precision correct engines pass and broken ones are refused.
The graphs that ONNX Runtime runs here are those that TensorRT compiles.
"""

import functools
from pathlib import Path

import fakes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from app.backends import onnxruntime, pytorch
from app.evaluation import datasets
from app.evaluation.gate import Gate
from app.graphs import export, fp16, int8, serving_graph
from app.settings import DEMO_WEIGHTS
from app.store.accuracy import AccuracyReport, Limits
from app.vision import preprocess

pytestmark = pytest.mark.usefixtures("needs_engine")

SIDE, SCENES = 320, 24
PRECISIONS = ["fp32", "fp16", "int8"]


@pytest.fixture(scope="module")
def pictures() -> list[tuple]:
    """For each scene: sample, letterbox transform, frame and the outputs of the reference."""
    reference = pytorch.open_weights(DEMO_WEIGHTS, 2)
    transform = preprocess.place(640, 640, SIDE, 32, None)
    found = []
    for sample in datasets.Scenes("detect", 400_000, SCENES):
        frame = preprocess.letterbox(sample.pixels, transform)
        found.append((sample, transform, frame, reference.infer(0, [frame])[0]))
    return found


@pytest.fixture(scope="module")
def graphs(tmp_path_factory, pictures) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    plain = export.to_plain_onnx(DEMO_WEIGHTS, SIDE, folder, static=True)
    made = {name: folder / f"{name}.onnx" for name in PRECISIONS}
    serving_graph.to_serving_graph(plain, "demo", SIDE, made["fp32"])
    fp16.to_half(made["fp32"], made["fp16"])
    frames = [frame for _, _, frame, _ in pictures]
    int8.Quantizer(made["fp32"], frames, zero_points=False).write(folder / "single.onnx", int8.Method())
    fp16.to_half(folder / "single.onnx", made["int8"])
    return made


def evaluate(path: Path, pictures: list[tuple], kind: str, *, labels: bool = True) -> AccuracyReport:
    engine = onnxruntime.OnnxruntimeEngine(path, 2)
    gate = Gate(kind, fakes.MODEL)
    for sample, transform, frame, expected in pictures:
        given = sample if labels else datasets.Sample(sample.pixels)
        gate.add(given, transform, expected, engine.infer(0, [frame])[0])
    return gate.figures()


def weights(model: ModelProto, name: str) -> onnx.TensorProto:
    """Return the weights of a convolution in the precision of the graph."""
    kinds = (name, f"{name}/half", f"{name}/int8")
    return next(tensor for tensor in model.graph.initializer if tensor.name in kinds)


def change(tensor: onnx.TensorProto, values: np.ndarray) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))


def swap_weights(model: ModelProto) -> None:
    one, other = (weights(model, f"model.4.m.{i}.cv1.conv.weight") for i in (0, 1))
    first, second = numpy_helper.to_array(one), numpy_helper.to_array(other)
    change(one, second)
    change(other, first)


def scale_wrong(model: ModelProto) -> None:
    """Change the scale that dequantizes one activation in INT8, otherwise the 1/255 of the input."""
    scales = {tensor.name: tensor for tensor in model.graph.initializer if "scale" in tensor.name}
    dequantize = [n for n in model.graph.node if n.op_type == "DequantizeLinear" and "model.4/cv1/act" in n.input[0]]
    if not dequantize:
        tensor = next(tensor for name, tensor in scales.items() if name.startswith("in/scale"))
        change(tensor, numpy_helper.to_array(tensor) / 2)
        return
    values = numpy_helper.to_array(scales[dequantize[0].input[1]])
    model.graph.initializer.append(numpy_helper.from_array(values * 3, "wrong"))
    dequantize[0].input[1] = "wrong"


def swap_colours(model: ModelProto) -> None:
    tensor = weights(model, "model.0.conv.weight")
    change(tensor, numpy_helper.to_array(tensor)[:, ::-1])


def shift_pad(model: ModelProto) -> None:
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    pads = next(attribute for attribute in first.attribute if attribute.name == "pads")
    assert list(pads.ints) == [1, 1, 1, 1]
    pads.ints[:] = [1, 0, 1, 2]


SABOTAGES = [swap_weights, scale_wrong, swap_colours, shift_pad]


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("kind", PRECISIONS)
def test_a_correct_engine_passes(graphs, pictures, kind, labels):
    figures = evaluate(graphs[kind], pictures, kind, labels=labels)
    assert figures.boxes > 100
    assert figures.shortcomings(kind, Limits()) == []


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("sabotage", SABOTAGES)
@pytest.mark.parametrize("kind", PRECISIONS)
def test_a_broken_engine_is_refused(graphs, pictures, kind, sabotage, labels, tmp_path):
    model = onnx.load(graphs[kind])
    sabotage(model)
    onnx.save(model, tmp_path / "broken.onnx")
    figures = evaluate(tmp_path / "broken.onnx", pictures, kind, labels=labels)
    assert figures.shortcomings(kind, Limits())


# Other tasks: outputs with the errors of a wrong graph or runtime


@pytest.fixture(scope="module")
def seen(of_task):
    """Returns the model of a task, and for 40 scenes the sample, the frame and the outputs of PyTorch."""

    @functools.cache
    def of_one_task(task: str) -> tuple:
        made = of_task(task)
        reference = pytorch.open_weights(made.weights, 2)
        found = datasets.Scenes(task, 400_000, 40)
        return made.model, [(each, each.pixels, reference.infer(0, [each.pixels])[0]) for each in found]

    return of_one_task


def figures_of(model, scenes: list[tuple], kind: str, break_it, *, labels: bool) -> AccuracyReport:
    gate = Gate(kind, model)
    for sample, frame, outputs in scenes:
        given = sample if labels else datasets.Sample(sample.pixels)
        gate.add(given, preprocess.whole(frame), outputs, break_it(*outputs))
    return gate.figures()


def columns(change) -> object:
    """Return a function that applies `change` to the columns after the class and keeps the other outputs."""
    return lambda rows, *others: (np.concatenate([rows[:, :6], change(rows[:, 6:])], 1), *others)


BROKEN = {
    "prototypes upside down": ("segment", lambda rows, protos: (rows, protos[:, ::-1])),
    "coefficients of the next prototype": ("segment", columns(lambda extras: np.roll(extras, 1, 1))),
    "keypoints in another order": ("pose", columns(lambda extras: np.roll(extras, 3, 1))),
    "keypoints off by 12 px": ("pose", columns(lambda extras: extras + np.float32(12))),
    "rotated by 20 degrees": ("obb", columns(lambda extras: extras + np.float32(np.pi / 9))),
    "width for height": ("obb", lambda rows: (rows[:, [0, 1, 3, 2, 4, 5, 6]],)),
    "the next class": ("classify", lambda probs: (np.roll(probs, 1),)),
}


@pytest.mark.parametrize(("kind", "labels"), [("fp32", False), ("fp32", True), ("int8", True)])
@pytest.mark.parametrize("task", ["segment", "pose", "obb", "classify"])
def test_the_outputs_of_pytorch_pass_for_every_task(seen, task, kind, labels):
    figures = figures_of(*seen(task), kind, lambda *outputs: outputs, labels=labels)
    assert figures.boxes >= 40
    assert figures.shortcomings(kind, Limits()) == []


@pytest.mark.parametrize(("kind", "labels"), [("fp32", False), ("int8", True)])
@pytest.mark.parametrize("what", BROKEN)
def test_broken_outputs_of_a_task_are_refused_by_agreement_and_by_labels(seen, what, kind, labels):
    task, break_it = BROKEN[what]
    reasons = figures_of(*seen(task), kind, break_it, labels=labels).shortcomings(kind, Limits())
    assert reasons
    if labels:
        assert any("it loses" in reason for reason in reasons)
