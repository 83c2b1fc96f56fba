"""OpenVINO on the CPU: the default where there is no GPU."""

from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray

PRECISIONS = ("fp32",)

_FILE = "model.xml"


def version() -> str:
    return str(openvino.__version__).partition("-")[0]


def build(weights: Path, graph: Path, folder: Path) -> None:
    """By convert_model: only that way SiLU is fused when the graph is quantized later on."""
    openvino.save_model(openvino.convert_model(graph), folder / _FILE, compress_to_fp16=False)


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

    def infer(self, lane: int, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(self._requests[lane].infer({"images": images}, share_inputs=True)["rows"])

    def close(self) -> None:
        self._requests.clear()
        del self._compiled
