"""ONNX Runtime on the CPU. It runs the very graphs that TensorRT compiles, whatever their precision."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from app.backends import BuildContext
from app.model import ModelInfo
from app.system import host
from app.vision import postprocess
from app.vision.postprocess import K, Outputs
from app.vision.preprocess import Pixels

PRECISIONS = ("fp32", "fp16", "int8")
INSTANCES = 1
ONE_DEVICE = False
STATIC = False

_FILE = "model.onnx"


def require() -> None:
    """It runs wherever it is installed."""


def version() -> str:
    return str(onnxruntime.__version__)


def device() -> str:
    return host.architecture()


def build(context: BuildContext) -> dict[str, Any]:
    """INT8 is slower than FP32 here (loadtest/RESULTS.md): it tells how accurate TensorRT's will be."""
    from app.graphs import fp16, int8_search

    (graph,) = context.graphs
    match context.precision:
        case "fp32":
            shutil.copyfile(graph, context.folder / _FILE)
        case "fp16":
            fp16.to_half(graph, context.folder / _FILE)
        case "int8":
            frames = context.calibration(context.model.shapes)
            return int8_search.to_int8(graph, context.folder / _FILE, frames, zero_points=False)
    return {}


def load(folder: Path, instances: int, threads: int) -> "OnnxruntimeEngine":
    return OnnxruntimeEngine(folder / _FILE, threads)


def session(model: Path | bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    # Spinning threads would eat the cores that decode JPEGs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        str(model) if isinstance(model, Path) else model, options, providers=["CPUExecutionProvider"]
    )


class OnnxruntimeEngine:
    """One session, which is safe to run from several instances."""

    def __init__(self, path: Path, threads: int) -> None:
        self._session = session(path, threads)

    def infer(self, instance: int, frames: Sequence[Pixels], *, low_latency: bool = False) -> list[Outputs]:
        return list(zip(*self._session.run(None, {"images": np.stack(frames)}), strict=True))

    def device_seconds(self, instance: int) -> float | None:
        return None

    def close(self) -> None:
        del self._session


class PlainExport:
    """A plain Ultralytics export run as it is: the reference for .onnx weights. The rows are picked in numpy."""

    def __init__(self, export: Path | bytes, model: ModelInfo, threads: int) -> None:
        self._session = session(export, threads)
        self._model = model

    def infer(self, frames: Sequence[Pixels]) -> list[Outputs]:
        """As Engine.infer; the images go one by one, repeated where the export has a fixed batch."""
        return [self._one(frame) for frame in frames]

    def _one(self, frame: Pixels) -> Outputs:
        source, model = self._session.get_inputs()[0], self._model
        batch = source.shape[0] if isinstance(source.shape[0], int) else 1
        kind = np.float16 if source.type == "tensor(float16)" else np.float32
        pixels = np.repeat((frame.transpose(2, 0, 1)[None] / 255).astype(kind), batch, axis=0)
        found = self._session.run(None, {source.name: pixels})
        first, *others = (np.asarray(output, np.float32)[0] for output in found)
        if model.task != "classify" and not model.end_to_end:
            first = postprocess.from_head(first[None], K, len(model.names), centred=model.task == "obb")[0]
        return first, *others
