"""No model: an engine that takes the time it is told to take, without the CPU, and answers fixed rows.

With 0,0 it measures everything but the engine; with the figures of a GPU, whether a host's cores can feed that GPU.
Like a GPU it works on one batch at a time, whatever the instances.
"""

import json
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.backends import BuildContext
from app.errors import BuildFailed
from app.model import ModelInfo, Shape, format_shapes
from app.progress import Progress, Report
from app.store.manifest import Fingerprint, GateResult, Manifest, StoredEngine
from app.vision.postprocess import K, Outputs
from app.vision.preprocess import Pixels

NAME = "simulated"
PRECISIONS = ("none",)
INSTANCES = 2
ONE_DEVICE = True
STATIC = False

_FILE = "simulated.json"
_BOXES = ((0.1, 0.1, 0.3, 0.4), (0.4, 0.2, 0.6, 0.9), (0.7, 0.1, 0.9, 0.3), (0.1, 0.6, 0.3, 0.8), (0.7, 0.6, 0.9, 0.9))


def require() -> None:
    """It runs everywhere."""


def version() -> str:
    return "1"


def device() -> str:
    return NAME


def build(context: BuildContext) -> dict[str, Any]:
    raise BuildFailed("BACKEND=simulated runs no model: there is nothing to build")


def load(folder: Path, instances: int, threads: int) -> "SimulatedEngine":
    fields = json.loads((folder / _FILE).read_bytes())
    return SimulatedEngine(fields["a_ms"] / 1000, fields["b_ms"] / 1000, fields["imgsz"], instances, folder)


class Source:
    """Where a simulated engine comes from; needs no weights."""

    def __init__(
        self, a_ms: float, b_ms: float, imgsz: int, batch: int, shapes: tuple[Shape, ...] | None = None
    ) -> None:
        self._facts = {"a_ms": a_ms, "b_ms": b_ms, "imgsz": imgsz}
        self._model = ModelInfo(NAME, "detect", {0: "nothing"}, stride=32, imgsz=imgsz, shapes=shapes)
        self._fingerprint = Fingerprint(
            name=NAME,
            weights_sha256="",
            graph_revision="",
            evaluation_revision="",
            imgsz=imgsz,
            shapes=format_shapes(*shapes) if shapes else None,
            batch=batch,
            precision=PRECISIONS[0],
            backend=NAME,
            backend_version=version(),
            device=f"{NAME}: {a_ms:g} ms a batch and {b_ms:g} ms an image",
            calibration="",
        )
        self._folder = Path(tempfile.mkdtemp(prefix="yolopard-simulated-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)  # of an engine that was never closed

    def run(self, report: Report) -> StoredEngine:
        report(Progress.at("engine", NAME, "no image is looked at, the boxes are made up"))
        (self._folder / _FILE).write_text(json.dumps(self._facts))
        gate_result = GateResult("nothing: a simulated engine looks at no image", "", None)
        return StoredEngine(self._folder, Manifest(self._fingerprint, self._model, gate_result, {}, {}))

    def cancel(self) -> None:
        """It takes no time."""


class SimulatedEngine:
    """A batch of n takes a + b * n seconds, one batch at a time over all instances. Its folder goes with it."""

    def __init__(self, a: float, b: float, imgsz: int, instances: int, folder: Path | None = None) -> None:
        self._folder = folder
        self._a, self._b = a, b
        rows = np.zeros((K, 6), np.float32)
        rows[: len(_BOXES), :4] = np.array(_BOXES) * imgsz
        rows[: len(_BOXES), 4] = np.linspace(0.9, 0.5, len(_BOXES))
        self._rows = rows
        self._seconds = [0.0] * instances
        self._free_at = 0.0
        self._device = threading.Lock()

    def infer(self, instance: int, frames: Sequence[Pixels], *, low_latency: bool = False) -> list[Outputs]:
        seconds = self._seconds[instance] = self._a + self._b * len(frames)
        with self._device:
            self._free_at = ends = max(self._free_at, time.perf_counter()) + seconds
        if (wait := ends - time.perf_counter()) > 0:
            time.sleep(wait)
        return [(self._rows,)] * len(frames)

    def device_seconds(self, instance: int) -> float | None:
        return self._seconds[instance]

    def close(self) -> None:
        """`serve` ends without the interpreter's own end, at which finalizers run."""
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
