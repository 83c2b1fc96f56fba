"""OpenVINO with SHAPES: loading a quantized model compiles a model for each listed shape."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scenes

from app.backends import BuildContext, openvino, pytorch
from app.backends.shapes import MIN_FRAMES
from app.graphs import export, serving_graph
from app.settings import DEMO_WEIGHTS

pytestmark = pytest.mark.usefixtures("needs_engine")

SHAPES = ((64, 160), (160, 64), (96, 160))


@pytest.fixture(scope="module", params=openvino.PRECISIONS)
def folder(request, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp(request.param)
    plain = export.to_plain_onnx(DEMO_WEIGHTS, 160, made)
    calibrated_on = []

    def calibration(shapes) -> Iterator[np.ndarray]:
        calibrated_on.append(shapes)
        return iter([scenes.scene(seed, 160, 96).image for seed in range(4)])

    context = BuildContext(
        weights=DEMO_WEIGHTS,
        graphs=[made / "graph.onnx"],
        model=serving_graph.to_serving_graph(plain, "demo", 160, made / "graph.onnx", SHAPES),
        precision=request.param,
        batch=2,
        instances=2,
        calibration=calibration,
        folder=made,
        cache=made,
        report=lambda _: None,
    )
    openvino.build(context)
    assert calibrated_on == ([SHAPES] if request.param == "int8" else [])
    return made


def test_a_quantized_model_compiles_its_listed_shapes_when_it_is_loaded(folder, monkeypatch):
    compiled = []
    real = openvino.OpenvinoEngine._compile
    monkeypatch.setattr(
        openvino.OpenvinoEngine, "_compile", lambda self, shape: compiled.append(shape) or real(self, shape)
    )
    engine = openvino.load(folder, 2, 2)
    quantized = "int8" in folder.name
    assert compiled == [None, *((*shape, 3) for shape in SHAPES if quantized)]
    for shape in SHAPES:
        for _ in range(10):
            engine.infer(0, [np.zeros((*shape, 3), np.uint8)])
    time.sleep(0.1)
    assert len(compiled) == (4 if quantized else 1)
    engine.close()


def test_the_model_of_a_frequent_shape_infers_at_normal_priority(folder):
    """Threads that a model starts keep the priority it was compiled at: at nice 19 a busy process stopped inference."""
    before = set(Path("/proc/self/task").iterdir())
    engine = openvino.load(folder, 2, 2)
    for _ in range(MIN_FRAMES):
        engine.infer(0, [np.zeros((64, 64, 3), np.uint8)])
    if engine._shapes and (compiling := engine._shapes._compiling):
        compiling.join(60)
    threads = set(Path("/proc/self/task").iterdir()) - before
    assert len(threads) > 1
    assert {os.getpriority(os.PRIO_PROCESS, int(thread.name)) for thread in threads} == {
        os.getpriority(os.PRIO_PROCESS, 0)
    }
    engine.close()


def test_every_shape_gives_the_rows_of_pytorch(folder):
    engine, reference, compared = openvino.load(folder, 1, 2), pytorch.open_weights(DEMO_WEIGHTS, 2), 0
    tolerance = {"fp32": 0.01, "int8": 8}["int8" if "int8" in folder.name else "fp32"]
    for shape in SHAPES:
        for seed in range(4):
            frame = scenes.scene(seed, shape[1], shape[0]).image
            ((rows,),), ((expected,),) = engine.infer(0, [frame]), reference.infer(0, [frame])
            if expected[0, 4] > 0.6:
                assert rows[0, 5] == expected[0, 5]
                assert np.abs(rows[0, :4] - expected[0, :4]).max() < tolerance
                compared += 1
    assert compared > 4
    engine.close()
