"""ONNX Runtime on the CPU."""

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

PRECISIONS = ("fp32",)

_FILE = "model.onnx"


def version() -> str:
    return str(onnxruntime.__version__)


def build(weights: Path, graph: Path, folder: Path) -> None:
    shutil.copyfile(graph, folder / _FILE)


def load(folder: Path, lanes: int, threads: int) -> "OnnxruntimeEngine":
    return OnnxruntimeEngine(folder / _FILE, threads)


def session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    # Spinning threads would eat the cores that decode JPEGs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class OnnxruntimeEngine:
    """One session, which is safe to run from several lanes."""

    def __init__(self, path: Path, threads: int) -> None:
        self._session = session(path, threads)

    def infer(self, lane: int, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.asarray(self._session.run(["rows"], {"images": images})[0])

    def close(self) -> None:
        del self._session


class PlainExport:
    """A plain Ultralytics export run as it is: the reference for .onnx weights. The rows are picked in numpy."""

    def __init__(self, path: Path, rows: int, threads: int) -> None:
        self._session = session(path, threads)
        self._rows = rows

    def infer(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As Engine.infer; the images go one by one, repeated where the export has a fixed batch."""
        return np.stack([self._one(image) for image in images])

    def _one(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        source = self._session.get_inputs()[0]
        batch = source.shape[0] if isinstance(source.shape[0], int) else 1
        kind = np.float16 if source.type == "tensor(float16)" else np.float32
        pixels = np.repeat((image.transpose(2, 0, 1)[None] / 255).astype(kind), batch, axis=0)
        head = np.asarray(self._session.run(None, {source.name: pixels})[0], np.float32)[0]
        scores = head[4:]
        order = np.argsort(-scores.max(0), kind="stable")[: self._rows]
        centre, half = head[:2, order], head[2:4, order] / 2
        best, label = scores[:, order].max(0), scores[:, order].argmax(0)
        return np.concatenate([centre - half, centre + half, best[None], label[None]]).T.astype(np.float32)
