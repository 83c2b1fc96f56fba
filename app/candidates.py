"""INT8 graphs by several methods, of which the one nearest to the float graph is kept."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app import calibration
from app.images import Pixels
from app.quantize import Method, Quantizer
from app.results import Outputs

log = logging.getLogger("yolopard.candidates")

HELD_BACK = 3  # every third calibration image: methods are compared on these, calibrated on the others
LIKELIEST = 30  # rows before NMS: few photos hold enough boxes to tell methods apart by what is found
NEAR = 0.015  # distance up to which no layer stays in float: that costs a fifth of the speed


def to_int8(graph: Path, target: Path, frames: Iterable[Pixels]) -> dict[str, Any]:
    """Write the INT8 graph of the best method, calibrated on `frames`, uint8 [H, W, 3]; what was compared.

    ONNX Runtime runs the candidates, whatever engine will serve. The one that is kept is calibrated on all frames.
    """
    frames = list(frames)
    held_back = frames[::HELD_BACK] if len(frames) >= HELD_BACK else frames
    used = [frame for i, frame in enumerate(frames) if i % HELD_BACK] or frames
    quantizer, expected = Quantizer(graph, used), _outputs(graph, held_back)
    distances: dict[Method, float] = {}

    def measure(method: Method) -> None:
        quantizer.write(target, method)
        distances[method] = round(_distance(expected, _outputs(target, held_back)), 4)
        log.info("int8 by %s: distance %.4f on %d images", method, distances[method], len(held_back))

    for rule in calibration.RULES:
        measure(Method(rule))
    best = min(distances, key=lambda method: distances[method])
    if distances[best] > NEAR:
        measure(Method(best.rule, early_float=True))
        best = min(distances, key=lambda method: distances[method])
    Quantizer(graph, frames).write(target, best)
    log.info("int8 is made by %s", best)
    table = {str(method): distance for method, distance in distances.items()}
    return {"int8": {"method": str(best), "images": len(held_back), "distances": table}}


def _outputs(graph: Path, frames: list[Pixels]) -> list[Outputs]:
    session = calibration.session(graph.read_bytes())
    return [tuple(output[0] for output in session.run(None, {"images": frame[None]})) for frame in frames]


def _distance(expected: list[Outputs], found: list[Outputs]) -> float:
    """The mean difference of the LIKELIEST scores, best first; of classify of all probabilities, class by class."""
    return float(
        np.mean([np.abs(_scores(one) - _scores(other)).mean() for one, other in zip(expected, found, strict=True)])
    )


def _scores(outputs: Outputs) -> NDArray[np.float32]:
    first = outputs[0]
    return first if first.ndim == 1 else np.sort(first[:, 4])[::-1][:LIKELIEST]
