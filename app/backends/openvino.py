"""OpenVINO on the CPU: the default where there is no GPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from app import machine
from app.backends import Recipe
from app.images import Pixels

PRECISIONS = ("fp32", "int8")
LANES = 1
STATIC = False

_FILE = "model.xml"


def require() -> None:
    """It runs wherever it is installed."""


def version() -> str:
    return str(openvino.__version__).partition("-")[0]


def device() -> str:
    return machine.architecture()


def build(recipe: Recipe) -> dict[str, Any]:
    """By convert_model: read_model gives other boxes for a quantized graph, without an error (docs/decisions.md)."""
    from app import quantize

    graph = recipe.graph
    if recipe.precision == "int8":
        graph = recipe.graph.with_name("int8.onnx")
        quantize.to_int8(recipe.graph, graph, recipe.calibration())
    openvino.save_model(openvino.convert_model(graph), recipe.folder / _FILE, compress_to_fp16=False)
    return {}


def load(folder: Path, lanes: int, threads: int) -> "OpenvinoEngine":
    return OpenvinoEngine(folder / _FILE, lanes, threads)


class OpenvinoEngine:
    """One compiled model; a stream and an infer request for each lane."""

    def __init__(self, path: Path, lanes: int, threads: int) -> None:
        options = {
            "NUM_STREAMS": lanes,
            "INFERENCE_NUM_THREADS": threads,
            # The default is bfloat16 on CPUs that have it: twice as fast, and not FP32 (docs/decisions.md).
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._compiled = openvino.Core().compile_model(path, "CPU", options)
        self._requests = [self._compiled.create_infer_request() for _ in range(lanes)]

    def infer(self, lane: int, frames: Sequence[Pixels]) -> NDArray[np.float32]:
        return np.asarray(self._requests[lane].infer({"images": np.stack(frames)}, share_inputs=True)["rows"])

    def device_seconds(self, lane: int) -> float | None:
        return None

    def close(self) -> None:
        self._requests.clear()
        del self._compiled
