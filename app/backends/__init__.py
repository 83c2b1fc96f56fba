"""Backends: one module or package per kind of engine. A missing library or device only affects its own backend."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from app.errors import BackendUnavailable
from app.model import ModelInfo, Shape
from app.vision.postprocess import Outputs
from app.vision.preprocess import Pixels

PREBUILT = {".engine": "tensorrt"}  # suffix of weights that are engines already -> their backend
_MODULES = {"tensorrt": "tensorrt.backend"}  # backends that are packages
PREFERRED = ("tensorrt", "openvino", "onnxruntime", "pytorch")  # for BACKEND=auto: the first available one is used


class Engine(Protocol):
    """A loaded engine. Each instance number has one thread that calls `infer`; the threads run at the same time."""

    def infer(self, instance: int, frames: Sequence[Pixels], *, low_latency: bool = False) -> list[Outputs]:
        """N frames, uint8 [H, W, 3] RGB of one shape -> the outputs of each, in the order of serving_graph.py.

        `low_latency` means that no other batch runs or waits: all cores may work on this one.
        """

    def device_seconds(self, instance: int) -> float | None:
        """Return the device time of the instance's last batch; None if the backend does not measure it."""

    def close(self) -> None:
        """Free the device memory."""


@dataclass(frozen=True, slots=True)
class BuildContext:
    """Everything that a backend needs to build an engine."""

    weights: Path
    graphs: Sequence[Path]  # serving graphs in FP32: one per shape of the model if the backend is STATIC
    model: ModelInfo
    precision: str
    batch: int
    instances: int
    calibration: Callable[[Sequence[Shape] | None], Iterator[Pixels]]  # frames for int8, each of its best shape
    folder: Path  # for the engine's files
    cache: Path  # kept after the build, shared by all builds
    report: Callable[[str], None]  # gets the progress as text


class Backend(Protocol):
    """The interface of a backend's module. Only backends in PREBUILT have the last two functions."""

    PRECISIONS: Sequence[str]  # the first is used for "auto"
    INSTANCES: int | None  # the default of the setting INSTANCES; None: one per core
    ONE_DEVICE: bool  # True: the instances share one device; False: each has its own cores
    STATIC: bool  # True: compiled per frame shape, imgsz x imgsz by default

    def require(self) -> None:
        """Raise BackendUnavailable if the device is missing."""

    def version(self) -> str:
        """Return the version of the library; part of the fingerprint."""

    def device(self) -> str:
        """Return the device that an engine is bound to; part of the fingerprint."""

    def build(self, context: BuildContext) -> dict[str, Any]:
        """Write the engine's files into `context.folder`; return facts for the manifest. Raises a SetupError."""

    def load(self, folder: Path, instances: int, threads: int) -> Engine:
        """Load the files of `build`, for `instances` batches at a time on `threads` cores in total.

        Raises EngineStale if the engine must be built again.
        """

    def describe(self, path: Path, name: str, imgsz: int | None, shapes: tuple[Shape, ...] | None) -> ModelInfo:
        """Return the model of a prebuilt engine. Raises WeightsError; SettingsError for frames it does not support."""

    def precision_of(self, path: Path) -> str:
        """Return the precision of a prebuilt engine."""


def instances(backend: Backend, requested: int | None, threads: int) -> int:
    """Return the number of batches that an engine runs at a time."""
    return requested or backend.INSTANCES or threads


def owner(path: Path) -> str | None:
    """Return the backend of a prebuilt engine; None for weights that an engine is built from."""
    return PREBUILT.get(path.suffix)


def get(name: str) -> Backend:
    """Return the backend of this name. Raises BackendUnavailable with the reason."""
    try:
        backend: Backend = importlib.import_module(f"app.backends.{_MODULES.get(name, name)}")
        backend.require()
    except ImportError as error:
        raise BackendUnavailable(
            f"BACKEND={name} cannot be used: {error}. Install it: pip install 'yolopard[{name}]'"
        ) from error
    except BackendUnavailable as error:
        raise BackendUnavailable(f"BACKEND={name} cannot be used: {error}") from error
    return backend


def choose(name: str) -> str:
    """Return the name itself; for "auto", the first of PREFERRED that is available. Raises BackendUnavailable."""
    if name != "auto":
        return name
    reasons = []
    for candidate in PREFERRED:
        try:
            get(candidate)
        except BackendUnavailable as error:
            reasons.append(str(error))
        else:
            return candidate
    raise BackendUnavailable("no backend is available: " + "; ".join(reasons))
