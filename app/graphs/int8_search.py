"""Tries several INT8 methods and keeps the one whose outputs are nearest to those of the float graph."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.graphs import calibration
from app.graphs.int8 import Method, Quantizer
from app.vision.postprocess import Outputs
from app.vision.preprocess import Pixels

log = logging.getLogger("yolopard.int8_search")

HELD_BACK = 3  # methods are compared on every third calibration image, and calibrated on the others
TOP_ROWS = 30  # rows before NMS that are compared: few photos have enough boxes to compare methods by boxes
MAX_DISTANCE = 0.007  # from the float graph (docs/accuracy.md)
MIN_INT8_RATIO = 0.5  # of the convolutions' work: with less INT8 gains little over FP32
STEP = 4  # convolutions that are moved to float at a time
SWEEP_IMAGES = 8  # for trying each convolution alone


class _Comparison:
    """Compares INT8 methods by the distance of their graphs from the float graph."""

    def __init__(self, graph: Path, target: Path, frames: list[Pixels], zero_points: bool) -> None:
        self._target = target
        self._held_back = frames[::HELD_BACK] if len(frames) >= HELD_BACK else frames
        used = [frame for i, frame in enumerate(frames) if i % HELD_BACK] or frames
        self._quantizer = Quantizer(graph, used, zero_points)
        self._work = self._quantizer.work(*frames[0].shape[:2])
        self._expected = outputs(graph, self._held_back)
        self._found: dict[Method, dict[str, float]] = {}

    def best(self) -> Method:
        return min(self._found, key=lambda method: self._found[method]["distance"])

    def to_json(self) -> dict[str, Any]:
        table = {str(method): found for method, found in self._found.items()}
        return {"method": str(self.best()), "images": len(self._held_back), "compared": table}

    def compare_rules(self) -> None:
        for rule in calibration.RULES:
            self._add(Method(rule))

    def keep_in_float(self) -> None:
        """Move more and more convolutions to float, until the graph is near enough or too little work is in INT8.

        The squared errors of convolutions add up, so those with the largest squared error per work are moved first.
        The range is the maximum, since the other rules clip values beyond the calibration data more.
        """
        images = slice(SWEEP_IMAGES)
        log.info(
            "int8: no method is within distance %.3f, trying each of %d convolutions", MAX_DISTANCE, len(self._work)
        )
        errors = {
            name: self._distance(Method(floats=frozenset(self._work.keys() - {name})), images) for name in self._work
        }
        order = sorted(errors, key=lambda name: errors[name] ** 2 / self._work[name], reverse=True)
        for count in range(STEP, len(order), STEP):
            method = Method(floats=frozenset(order[:count]))
            if self.is_near() or self._share_of_int8(method) < MIN_INT8_RATIO:
                return
            self._add(method)

    def is_near(self) -> bool:
        return self._found[self.best()]["distance"] <= MAX_DISTANCE

    def _add(self, method: Method) -> None:
        distance, share = round(self._distance(method), 4), round(self._share_of_int8(method), 3)
        self._found[method] = {"distance": distance, "int8": share}
        log.info("int8: %s: distance %.4f, %.0f %% of the work in int8", method, distance, 100 * share)

    def _distance(self, method: Method, images: slice = slice(None)) -> float:
        self._quantizer.write(self._target, method)
        return distance(self._expected[images], outputs(self._target, self._held_back[images]))

    def _share_of_int8(self, method: Method) -> float:
        return 1 - sum(self._work[name] for name in method.floats)


def to_int8(graph: Path, target: Path, frames: Iterable[Pixels], *, zero_points: bool) -> dict[str, Any]:
    """Write the INT8 graph of the best method, calibrated on all `frames`, uint8 [H, W, 3]; return the comparison.

    ONNX Runtime runs the candidates for every backend.
    """
    frames = list(frames)
    comparison = _Comparison(graph, target, frames, zero_points)
    comparison.compare_rules()
    if not comparison.is_near():
        comparison.keep_in_float()
    Quantizer(graph, frames, zero_points).write(target, comparison.best())
    log.info("int8: using %s", comparison.best())
    return {"int8": comparison.to_json()}


def outputs(graph: Path, frames: list[Pixels]) -> list[Outputs]:
    session = calibration.session(graph.read_bytes())
    return [tuple(output[0] for output in session.run(None, {"images": frame[None]})) for frame in frames]


def distance(expected: list[Outputs], found: list[Outputs]) -> float:
    """Return the mean difference of the TOP_ROWS best scores; for classify, of the probabilities of all classes."""
    return float(
        np.mean([np.abs(_scores(one) - _scores(other)).mean() for one, other in zip(expected, found, strict=True)])
    )


def _scores(outputs: Outputs) -> NDArray[np.float32]:
    first = outputs[0]
    return first if first.ndim == 1 else np.sort(first[:, 4])[::-1][:TOP_ROWS]
