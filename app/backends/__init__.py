"""One file an engine kind. A missing wheel hurts only who asks for that kind."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.errors import BackendUnavailable

PREFERRED = ("openvino", "onnxruntime", "pytorch")  # for BACKEND=auto; the first that is available


class Engine(Protocol):
    """A loaded engine. `infer` is called from `lanes` threads at a time, each with its own lane number."""

    def infer(self, lane: int, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 [n, H, W, 3] RGB frames -> rows, float32 [n, K, 6] (app/graph.py)."""

    def close(self) -> None:
        """Give the device's memory back."""


class Backend(Protocol):
    """What a backend's module offers."""

    PRECISIONS: Sequence[str]  # the safest first

    def version(self) -> str:
        """Of the library; part of the fingerprint."""

    def build(self, weights: Path, graph: Path, folder: Path) -> None:
        """Write the engine's files for the serving graph (and the weights it came from) into the folder."""

    def load(self, folder: Path, lanes: int, threads: int) -> Engine:
        """Open what `build` wrote, for `lanes` concurrent batches on `threads` cores in all."""


def get(name: str) -> Backend:
    """The backend of this name. Raises BackendUnavailable with the reason."""
    try:
        backend: Backend = importlib.import_module(f"app.backends.{name}")
        backend.version()
    except ImportError as error:
        raise BackendUnavailable(
            f"BACKEND={name} cannot be used: {error}. Install it: pip install 'yolopard[{name}]'"
        ) from error
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
