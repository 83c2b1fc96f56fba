"""manifest.json: what an engine is, what it depends on, and how it was evaluated."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from app.errors import StoreError
from app.model import ModelInfo
from app.store import permissions
from app.store.accuracy import AccuracyReport, Limits

MANIFEST = "manifest.json"
MAX_BYTES = 1 << 20  # the manifest of a thousand classes has 40 KB


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """All that an engine depends on. Anything different is another engine."""

    name: str
    weights_sha256: str
    graph_revision: str  # of the code that makes the graph, and of images and detections
    evaluation_revision: str  # of the code that builds and evaluates
    imgsz: int  # longest side of a frame, px
    shapes: str | None  # asked for, such as "384x640,640x640"; None = the smallest rectangle, or the engine's only one
    batch: int
    precision: str
    backend: str
    backend_version: str
    device: str
    calibration: str  # digest of the images that int8 was calibrated on; "" otherwise

    @property
    def key(self) -> str:
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{self.name}-{self.backend}-{self.precision}-{digest[:12]}"


@dataclass(frozen=True, slots=True)
class GateResult:
    """How an engine was evaluated. Whether that is enough is asked anew at every start, with the limits of that day."""

    on: str  # the images, in words
    images: str  # their digest, if they are a folder's
    figures: AccuracyReport | None  # None: there was nothing to compare with
    reference: str = ""  # what it was compared with, in words

    def to_json(self) -> dict[str, Any]:
        figures = self.figures and self.figures.to_json()
        return {"on": self.on, "images": self.images, "reference": self.reference, "figures": figures}

    def shortcomings(self, precision: str, limits: Limits) -> list[str]:
        """Why the engine must not be served."""
        return self.figures.shortcomings(precision, limits) if self.figures else []

    def nothing_found(self) -> str:
        """A warning where the engine passed on images that say little; "" where they say enough."""
        if self.figures is None or self.figures.boxes:
            return ""
        return (
            f"{self.reference} finds nothing in {self.on}, so that the gate compared the rows before NMS alone: give "
            "images like those to be served with GATE_DIR"
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """What stands beside an engine's files, or in their place where the gate refused the engine."""

    fingerprint: Fingerprint
    model: ModelInfo
    gate: GateResult
    built: dict[str, Any]  # when, where, with what: for people, nothing depends on it
    files: dict[str, str]  # file name: sha256

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"model": self.model.to_json(), "gate": self.gate.to_json()}


_MANIFEST = TypeAdapter(Manifest)


@dataclass(frozen=True, slots=True)
class StoredEngine:
    """An engine in the store."""

    folder: Path
    manifest: Manifest


class Damaged(StoreError):
    """A stored engine is not what its manifest says. The message names the file."""


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """The manifest in this folder, whose files are not checked. Raises Damaged."""
    path = folder / MANIFEST
    try:
        return _MANIFEST.validate_json(permissions.read_plain(path, MAX_BYTES), strict=True, extra="forbid")
    except OSError as error:
        raise Damaged(f"{path} is missing or unreadable ({error.strerror or error})") from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the file"
        raise Damaged(f"{path} is no manifest ({shortened(where)}: {shortened(problem['msg'])})") from error


def shortened(text: object) -> str:
    """For a log line: without control characters, and of no more than 80 characters."""
    shown = repr(text)
    return shown if len(shown) <= 80 else f"{shown[:79]}…"
