"""Compares INT8 methods: those that the builder chooses from, NNCF's and ModelOpt's.

    python loadtest/int8.py --weights W --calibration-dir A --gate-dir B [--graph NAME=FILE ...]

A and B contain different images. All graphs run in OpenVINO on two threads and are compared with the FP32 graph in ONNX
Runtime. NNCF and ModelOpt are optional (`pip install nncf`; ModelOpt's onnx extra needs another onnx, so a separate
virtual environment); a row shows if one is not installed. `--graph` adds an INT8 graph made elsewhere.

Columns: boxes with score >= 0.25 found (IoU >= 0.9, same class) and false positives; maximum and mean score difference
of a pair; maximum difference of box coordinates on sides longer than 100 px, after NMS and of the nearest row before it
(NMS may keep either of two rows with nearly equal scores); mAP50-95 if B has labels; speed of one frame, median of
alternating rounds.
"""

import argparse
import logging
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import util
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
import openvino

from app.backends import onnxruntime
from app.evaluation import compare, datasets
from app.evaluation.gate import Gate
from app.graphs import calibration, export, fp16, int8, int8_search, serving_graph
from app.graphs.calibration import RULES, Statistics
from app.graphs.int8 import Method, Quantizer
from app.model import ModelInfo
from app.vision import matching, postprocess
from app.vision.postprocess import Outputs, Thresholds
from app.vision.preprocess import Pixels

MIN_SIDE_PX = 100
ROUNDS = 12
HEAD = (
    "method",
    "boxes found",
    "false positives",
    "max score difference",
    "mean score difference",
    "max box difference, px",
    "the same before NMS, px",
    "mAP50-95",
    "speed / speed of FP32",
)


class Engine:
    """A model in OpenVINO on two threads; its float layers run in FP32."""

    def __init__(self, model: openvino.Model) -> None:
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 2, "ENABLE_CPU_PINNING": False}
        self._compiled = openvino.Core().compile_model(model, "CPU", options)

    def infer(self, frame: Pixels) -> Outputs:
        return tuple(np.array(output[0]) for output in self._compiled({"images": frame[None]}).values())


class Evaluator:
    """Compares engines with the outputs of the FP32 graph on the gate's images."""

    def __init__(self, serving: Path, model: ModelInfo, images: datasets.Dataset) -> None:
        self._model = model
        self._framed = list(compare.frames(images, model, model.shapes))
        reference = onnxruntime.OnnxruntimeEngine(serving, 2)
        self._expected = [reference.infer(0, [frame])[0] for _, _, frame in self._framed]
        self.float = Engine(openvino.convert_model(serving))

    def row(self, name: str, engine: Engine) -> str:
        gate, px, px_before = Gate("int8", self._model), 0.0, 0.0
        for (sample, transform, frame), expected in zip(self._framed, self._expected, strict=True):
            found = engine.infer(frame)
            gate.add(sample, transform, expected, found)
            after, before = self._sides(expected, found)
            px, px_before = max(px, after), max(px_before, before)
        figures = gate.figures()
        cells = [
            f"{figures.agreement:.4f} of {figures.boxes}",
            *(f"{value:.4f}" for value in (figures.false_positives, figures.score, figures.score_mean)),
            *(f"{value:.1f}" for value in (px, px_before)),
            "no labels" if figures.map50_95 is None else f"{figures.map50_95:.4f}",
            f"{self._speed(engine):.2f}",
        ]
        return f"| {name} | {' | '.join(cells)} |"

    def _sides(self, expected: Outputs, found: Outputs) -> tuple[float, float]:
        """Return the maximum difference on large sides: after NMS, and of the nearest row of the class before."""
        thresholds = Thresholds(conf=matching.MIN_MATCH_CONF)
        expected_boxes, candidates = (
            postprocess.select(outputs, thresholds, self._model) for outputs in (expected, found)
        )
        expected_boxes = expected_boxes.first(int(np.count_nonzero(expected_boxes.scores >= matching.CONF)))
        after = before = 0.0
        for i, j in matching.pairs(expected_boxes, candidates):
            box = expected_boxes.boxes[i, :4]
            sides = np.tile(box[2:] - box[:2], 2) > MIN_SIDE_PX
            rows = found[0][(found[0][:, 5] == expected_boxes.classes[i]) & (found[0][:, 4] >= matching.MIN_MATCH_CONF)]
            after = max(after, float(np.abs(candidates.boxes[j, :4] - box)[sides].max(initial=0)))
            nearest = np.abs(rows[:, :4] - box)[:, sides].max(1, initial=0).min(initial=np.inf)
            before = max(before, float(nearest))
        return after, before

    def _speed(self, engine: Engine) -> float:
        frame = self._framed[0][2]
        return statistics.median(seconds(self.float, frame) / seconds(engine, frame) for _ in range(ROUNDS))


def seconds(engine: Engine, frame: Pixels) -> float:
    began = time.perf_counter()
    engine.infer(frame)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--weights", "--calibration-dir", "--gate-dir"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--graph", action="append", default=[], metavar="NAME=FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        plain, serving = export.to_plain_onnx(options.weights, None, folder), folder / "graph.onnx"
        model = serving_graph.to_serving_graph(plain, options.weights.stem, None, serving)
        images = {
            name: datasets.folder(getattr(options, name), model, name) for name in ("calibration_dir", "gate_dir")
        }
        frames = [frame for _, _, frame in compare.frames(images["calibration_dir"], model, model.shapes)]
        evaluator = Evaluator(serving, model, images["gate_dir"])
        print(f"| {' | '.join(HEAD)} |\n|{' --- |' * len(HEAD)}", flush=True)
        print(evaluator.row("FP32", evaluator.float), flush=True)
        for name, engine in engines(serving, folder / "int8.onnx", frames):
            print(evaluator.row(name, engine), flush=True)
        for name, file in (each.split("=", 1) for each in options.graph):
            print(evaluator.row(name, Engine(openvino.convert_model(file))), flush=True)


def engines(serving: Path, target: Path, frames: list[Pixels]) -> Iterator[tuple[str, Engine]]:
    yield from own_engines(serving, target, frames)
    for package, made in (("nncf", nncf_engines), ("modelopt", modelopt_engines)):
        if util.find_spec(package):
            yield from made(serving, target, frames)
        else:
            print(f"| {package} is not installed |{' |' * (len(HEAD) - 1)}")


def own_engines(serving: Path, target: Path, frames: list[Pixels]) -> Iterator[tuple[str, Engine]]:
    def write(quantizer: Quantizer, rule: str) -> Engine:
        quantizer.write(target, Method(rule))
        return Engine(openvino.convert_model(target))

    with mock.patch.dict(RULES, {f"{share} of the values": percentile(share) for share in (0.999, 0.9999)}):
        for zero_points, name in ((False, "zero points 0"), (True, "zero points")):
            quantizer = Quantizer(serving, frames, zero_points)
            for rule in RULES:
                yield f"{rule}, {name}", write(quantizer, rule)
            with mock.patch.object(int8, "peaks_of_pairs", of_all_channels(int8.peaks_of_pairs)):
                yield f"greatest value, {name}, weights per tensor", write(quantizer, "greatest value")
    for zero_points, name in ((False, "zero points 0"), (True, "zero points")):
        facts = int8_search.to_int8(serving, target, frames, zero_points=zero_points)["int8"]
        yield f"**as built, {name}**: {facts['method']}", Engine(openvino.convert_model(target))


def percentile(share: float) -> Callable[[Statistics], np.ndarray]:
    """Return the rule that keeps this share of a tensor's values and clips the others."""

    def rule(found: Statistics) -> np.ndarray:
        below = np.cumsum(found.counts, axis=1) / found.counts.sum(1, keepdims=True)
        return np.minimum(calibration.CENTRES[(below >= share).argmax(1)], found.peaks.max(0))

    return rule


def of_all_channels(peaks: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function with one peak per tensor, the maximum of all channels."""
    return lambda weights: np.full(len(weights), peaks(weights).max(), np.float32)


def decode(serving: Path) -> set[str]:
    """Return the names of the nodes after the features and of their outputs, which no method quantizes."""
    nodes = onnx.load(serving).graph
    features = fp16.features(nodes)
    return {name for node in nodes.node if node.output[0] not in features for name in (node.name, *node.output) if name}


def nncf_engines(serving: Path, target: Path, frames: list[Pixels]) -> Iterator[tuple[str, Engine]]:
    """Quantize OpenVINO's model except the decode; the mixed preset has zero points, unlike TensorRT."""
    import nncf  # noqa: PLC0415 - optional

    nncf.set_log_level(logging.ERROR)
    ignored = decode(serving)
    model = openvino.convert_model(serving)
    names = [op.get_friendly_name() for op in model.get_ops() if op.get_friendly_name() in ignored]
    options = {"ignored_scope": nncf.IgnoredScope(names=names), "subset_size": len(frames)}

    def data(some: Sequence[Pixels]) -> nncf.Dataset:
        return nncf.Dataset(some, lambda frame: frame[None])

    for preset in (nncf.QuantizationPreset.PERFORMANCE, nncf.QuantizationPreset.MIXED):
        quantized = nncf.quantize(openvino.convert_model(serving), data(frames), preset=preset, **options)
        yield f"NNCF PTQ, {preset.value}", Engine(quantized)

    # The same criterion and the same held-back images as the builder
    held_back, used = frames[:: int8_search.HELD_BACK], [f for i, f in enumerate(frames) if i % int8_search.HELD_BACK]
    expected = int8_search.outputs(serving, held_back)

    def similarity(compiled: openvino.CompiledModel, validation: Sequence[Pixels]) -> tuple[float, list[float]]:
        distances = []
        for wanted, frame in zip(expected, validation, strict=False):
            found = tuple(np.array(output[0]) for output in compiled(frame[None]).values())
            distances.append(int8_search.distance([wanted], [found]))
        return 1 - float(np.mean(distances)), [1 - each for each in distances]

    controlled = nncf.quantize_with_accuracy_control(
        model, data(used), data(held_back), similarity, max_drop=int8_search.MAX_DISTANCE,
        preset=nncf.QuantizationPreset.MIXED, ignored_scope=options["ignored_scope"], subset_size=len(used),
    )  # fmt: skip
    yield "NNCF PTQ with accuracy control, mixed", Engine(controlled)


def modelopt_engines(serving: Path, target: Path, frames: list[Pixels]) -> Iterator[tuple[str, Engine]]:
    """Quantize with NVIDIA's ONNX PTQ as for TensorRT: zero points 0."""
    from modelopt.onnx.quantization import quantize as modelopt  # noqa: PLC0415 - optional
    from onnxruntime.quantization import CalibrationDataReader  # noqa: PLC0415

    class Frames(CalibrationDataReader):
        """Yields single frames of any shape."""

        def __init__(self) -> None:
            self.rewind()

        def get_next(self) -> dict[str, Pixels] | None:
            return next(self._left, None)

        def rewind(self) -> None:
            self._left = iter([{"images": frame[None]} for frame in frames])

        def get_first(self) -> dict[str, Pixels]:
            return {"images": frames[0][None]}

    excluded = [f"^{re.escape(name)}$" for name in sorted(decode(serving))]
    for method in ("max", "entropy"):  # only convolutions: with its own choice of layers it finds 0.58 and 0.60
        modelopt(
            str(serving), calibration_method=method, calibration_data_reader=Frames(), calibration_eps=["cpu"],
            op_types_to_quantize=["Conv"], nodes_to_exclude=excluded, high_precision_dtype="fp32",
            output_path=str(target),
        )  # fmt: skip
        yield f"ModelOpt PTQ, {method}", Engine(openvino.convert_model(target))


if __name__ == "__main__":
    main()
