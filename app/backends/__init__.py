"""One file an engine kind. A missing wheel or device hurts only who asks for that kind."""

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from app.errors import BackendUnavailable
from app.model import ModelInfo, Shape
from app.vision.postprocess import Outputs
from app.vision.preprocess import Pixels

PREBUILT = {".engine": "tensorrt"}  # weights files that are engines of a backend already
_MODULES = {"tensorrt": "tensorrt.backend"}  # of backends that are packages
PREFERRED = ("tensorrt", "openvino", "onnxruntime", "pytorch")  # for BACKEND=auto; the first that is available


class Engine(Protocol):
    """A loaded engine. `infer` is called from `instances` threads at a time, each with its own instance number."""

    def infer(self, instance: int, frames: Sequence[Pixels], *, low_latency: bool = False) -> list[Outputs]:
        """N frames, uint8 [H, W, 3] RGB of one shape -> the outputs of each, in the order of serving_graph.py.

        `alone` tells that no other batch runs or waits: all cores may work on this one.
        """

    def device_seconds(self, instance: int) -> float | None:
        """What the device itself took for the instance's last batch; None where that is not told apart."""

    def close(self) -> None:
        """Give the device's memory back."""


@dataclass(frozen=True, slots=True)
class BuildContext:
    """What an engine is made of."""

    weights: Path
    graphs: Sequence[Path]  # serving graphs in FP32: where the backend is STATIC one for each of the model's shapes
    model: ModelInfo
    precision: str
    batch: int
    instances: int
    calibration: Callable[[Sequence[Shape] | None], Iterator[Pixels]]  # frames for int8, each of the best shape
    folder: Path  # for the engine's files
    cache: Path  # outlives the build, is shared by all
    report: Callable[[str], None]  # what is being done, for people


class Backend(Protocol):
    """What a backend's module offers. The last two are those of backends that have files in PREBUILT."""

    PRECISIONS: Sequence[str]  # the first is what "auto" takes
    INSTANCES: int | None  # unless INSTANCES says otherwise; None: one a core
    ONE_DEVICE: bool  # True: the instances take turns on it; False: each has cores of its own
    STATIC: bool  # True: compiled for each shape of frame, imgsz x imgsz unless there are others

    def require(self) -> None:
        """Raise BackendUnavailable unless its device is there."""

    def version(self) -> str:
        """Of the library; part of the fingerprint."""

    def device(self) -> str:
        """What an engine is bound to; part of the fingerprint."""

    def build(self, context: BuildContext) -> dict[str, Any]:
        """Write the engine's files into the recipe's folder; facts for the manifest. Raises a SetupError."""

    def load(self, folder: Path, instances: int, threads: int) -> Engine:
        """Open what `build` wrote, for `instances` batches at a time on `threads` cores in all.

        Raises EngineStale when it has to be built again.
        """

    def describe(self, path: Path, name: str, imgsz: int | None, shapes: tuple[Shape, ...] | None) -> ModelInfo:
        """The model of a prebuilt engine. Raises WeightsError, SettingsError for frames that it has not."""

    def precision_of(self, path: Path) -> str:
        """Of a prebuilt engine."""


def instances(backend: Backend, requested: int | None, threads: int) -> int:
    """How many batches an engine works on at a time."""
    return requested or backend.INSTANCES or threads


def owner(path: Path) -> str | None:
    """The backend whose engine this file is already; None for weights that an engine is built from."""
    return PREBUILT.get(path.suffix)


def get(name: str) -> Backend:
    """The backend of this name. Raises BackendUnavailable with the reason."""
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
    """The name itself, or for "auto" the first of PREFERRED that is available here."""
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
