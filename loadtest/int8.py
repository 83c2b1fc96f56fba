"""Every way to make INT8 that the builder chooses among, side by side, and NNCF's where it is installed: a table.

    python loadtest/int8.py --weights W --calibration-dir A --gate-dir B

A and B hold different images. NNCF is no dependency: without it (`pip install nncf`) its rows say so.
"""

import argparse
import tempfile
from collections.abc import Iterator
from importlib import util
from pathlib import Path

import numpy as np
import onnx
import openvino

from app import candidates, datasets, export, graph, judge, parity, precision
from app.backends import onnxruntime
from app.calibration import RULES
from app.parity import Figures
from app.quantize import Method, Quantizer
from app.results import Outputs


class Engine:
    """A model in OpenVINO, on two threads, in FP32 where it is not INT8."""

    def __init__(self, model: openvino.Model) -> None:
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2, "ENABLE_CPU_PINNING": False}
        self._compiled = openvino.Core().compile_model(model, "CPU", options)

    def infer(self, frame: np.ndarray) -> Outputs:
        return tuple(np.array(output[0]) for output in self._compiled({"images": frame[None]}).values())


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--weights", "--calibration-dir", "--gate-dir"):
        parser.add_argument(name, type=Path, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        plain, serving = export.to_plain_onnx(given.weights, None, folder), folder / "graph.onnx"
        model = graph.to_serving_graph(plain, given.weights.stem, None, serving)
        images = {name: datasets.folder(getattr(given, name), model, name) for name in ("calibration_dir", "gate_dir")}
        frames = [frame for _, _, frame in judge.frames(images["calibration_dir"], model, model.shapes)]
        gate = list(judge.frames(images["gate_dir"], model, model.shapes))
        reference = onnxruntime.OnnxruntimeEngine(serving, 2)
        expected = [reference.infer(0, [frame])[0] for _, _, frame in gate]
        print("| method | boxes found | new | score, worst | mean | px, worst | mean | mAP50-95 lost |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- |")
        for name, engine in engines(serving, folder / "int8.onnx", frames):
            collected = parity.Gate("int8", model)
            for (picture, placement, frame), outputs in zip(gate, expected, strict=True):
                collected.add(picture, placement, outputs, engine.infer(frame))
            print(row(name, collected.figures()), flush=True)
        if not util.find_spec("nncf"):
            print("| NNCF | not installed | | | | | | |")


def row(name: str, figures: Figures) -> str:
    lost = figures.lost()
    cells = [
        f"{figures.agreement:.4f} of {figures.boxes}",
        *(f"{getattr(figures, name):.4f}" for name in ("invented", "score", "score_mean", "box_px", "box_px_mean")),
        "" if lost is None else f"{lost:.4f}",
    ]
    return f"| {name} | {' | '.join(cells)} |"


def engines(serving: Path, target: Path, frames: list[np.ndarray]) -> Iterator[tuple[str, Engine]]:
    for zero_points, name in ((False, "zero points 0"), (True, "zero points")):
        quantizer = Quantizer(serving, frames, zero_points)
        for rule in RULES:
            quantizer.write(target, Method(rule))
            yield f"{rule}, {name}", Engine(openvino.convert_model(target))
        facts = candidates.to_int8(serving, target, frames, zero_points=zero_points)["int8"]
        yield f"as built, {name}: {facts['method']}", Engine(openvino.convert_model(target))
    if util.find_spec("nncf"):
        yield from nncf_engines(serving, frames)


def nncf_engines(serving: Path, frames: list[np.ndarray]) -> Iterator[tuple[str, Engine]]:
    """PTQ of OpenVINO's model without the decode; the mixed preset has zero points, which TensorRT has not."""
    import nncf  # noqa: PLC0415 - optional

    nodes = onnx.load(serving).graph
    features = precision.features(nodes)
    decode = {name for node in nodes.node if node.output[0] not in features for name in (node.name, *node.output)}
    for preset in (nncf.QuantizationPreset.PERFORMANCE, nncf.QuantizationPreset.MIXED):
        model = openvino.convert_model(serving)
        names = [op.get_friendly_name() for op in model.get_ops() if op.get_friendly_name() in decode]
        scope, data = nncf.IgnoredScope(names=names), nncf.Dataset(frames, lambda frame: frame[None])
        quantized = nncf.quantize(model, data, preset=preset, ignored_scope=scope, subset_size=len(frames))
        yield f"NNCF PTQ, {preset.value}", Engine(quantized)


if __name__ == "__main__":
    main()
