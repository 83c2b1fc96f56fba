"""manifest.json: describes an engine, everything that it depends on, and its gate result."""

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
MAX_BYTES = 1 << 20  # a manifest with a thousand classes has 40 KB


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Everything that an engine depends on. Two engines are the same if their fingerprints are equal."""

    name: str
    weights_sha256: str
    graph_revision: str  # digest of the code for graphs, images and detections
    evaluation_revision: str  # digest of the code for building and evaluation
    imgsz: int  # longest side of a frame, px
    shapes: str | None  # requested, such as "384x640,640x640"; None = the smallest rectangle, or the only shape
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
    """The evaluation of an engine. Every start compares the accuracy report with the limits that are set then."""

    on: str  # the images, as text
    images: str  # their digest, if they are from a folder
    figures: AccuracyReport | None  # the accuracy report; None = there was no reference
    reference: str = ""  # what it was compared with, as text

    def to_json(self) -> dict[str, Any]:
        figures = self.figures and self.figures.to_json()
        return {"on": self.on, "images": self.images, "reference": self.reference, "figures": figures}

    def shortcomings(self, precision: str, limits: Limits) -> list[str]:
        """Return the reasons why the engine must not be served; empty = it may be served."""
        return self.figures.shortcomings(precision, limits) if self.figures else []

    def nothing_found(self) -> str:
        """Return a warning if the reference finds nothing in the images, else ""."""
        if self.figures is None or self.figures.boxes:
            return ""
        return (
            f"{self.reference} finds nothing in {self.on}, so the gate only compared rows before NMS: set GATE_DIR to "
            "images like those to be served"
        )


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest next to an engine's files. It has no files if the gate refused the engine."""

    fingerprint: Fingerprint
    model: ModelInfo
    gate: GateResult
    built: dict[str, Any]  # time, machine, versions: only shown, never compared
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
    """A stored engine does not match its manifest. The message names the file."""


def sha256(path: Path) -> str:
    """Return the hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest in a folder without checking the files. Raises Damaged."""
    path = folder / MANIFEST
    try:
        return _MANIFEST.validate_json(permissions.read_plain(path, MAX_BYTES), strict=True, extra="forbid")
    except OSError as error:
        raise Damaged(f"{path} is missing or unreadable ({error.strerror or error})") from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the file"
        raise Damaged(f"{path} is not a valid manifest ({shortened(where)}: {shortened(problem['msg'])})") from error


def shortened(text: object) -> str:
    """Return the repr for a log line, without control characters and at most 80 characters long."""
    shown = repr(text)
    return shown if len(shown) <= 80 else f"{shown[:79]}…"
