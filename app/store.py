"""engines/<key>/: what the builder made, and the proof that it is whole.

An engine is a folder of files and a manifest.json that is written last, names every file with its sha256, and holds
the fingerprint of all that the engine depends on. A folder appears under its key in one rename: it is whole or absent.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from app.errors import StoreError
from app.model import ModelInfo
from app.parity import Figures, Limits

MANIFEST = "manifest.json"

_FULL_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """All that an engine depends on. Anything different is another engine."""

    name: str
    weights_sha256: str
    graph_revision: str  # of the code that makes the graph
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
class Verdict:
    """How an engine was judged. Whether that is enough is asked anew at every start, with the limits of that day."""

    on: str  # the images, in words
    images: str  # their digest, if they are a folder's
    figures: Figures | None  # None: there was nothing to compare with
    reference: str = ""  # what it was compared with, in words

    def to_json(self) -> dict[str, Any]:
        figures = self.figures and self.figures.to_json()
        return {"on": self.on, "images": self.images, "reference": self.reference, "figures": figures}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Verdict":
        return cls(**fields | {"figures": fields["figures"] and Figures(**fields["figures"])})

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
    gate: Verdict
    built: dict[str, Any]  # when, where, with what: for people, nothing depends on it
    files: dict[str, str]  # file name: sha256

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"model": self.model.to_json(), "gate": self.gate.to_json()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Manifest":
        parts = {
            "fingerprint": Fingerprint(**fields["fingerprint"]),
            "model": ModelInfo.from_json(fields["model"]),
            "gate": Verdict.from_json(fields["gate"]),
            "files": dict(fields["files"]),
        }
        return cls(**fields | parts)


@dataclass(frozen=True, slots=True)
class Built:
    """An engine in the store."""

    folder: Path
    manifest: Manifest


class Damaged(StoreError):
    """A stored engine is not what its manifest says. The message names the file."""


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find(engines: Path, fingerprint: Fingerprint) -> Manifest | None:
    """The manifest of this engine, every file checked; None when there is no such engine. Raises Damaged."""
    folder = engines / fingerprint.key
    if not folder.is_dir():
        return None
    try:
        manifest = Manifest.from_json(json.loads((folder / MANIFEST).read_bytes()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"{folder / MANIFEST} is missing or unreadable") from error
    if manifest.fingerprint != fingerprint:
        raise Damaged(f"{folder / MANIFEST} belongs to another engine")
    for name, digest in manifest.files.items():
        if not _holds(folder / name, digest):
            raise Damaged(f"{folder / name} is missing, cut short or was replaced since it was built")
    return manifest


def difference(engines: Path, fingerprint: Fingerprint) -> str | None:
    """In what the stored engine that is most like this one differs from it, in one line; None when there is none."""
    wanted, nearest = asdict(fingerprint), None
    for path in sorted(engines.glob(f"{fingerprint.name}-{fingerprint.backend}-{fingerprint.precision}-*/{MANIFEST}")):
        if path.parent.name == fingerprint.key:
            continue  # its own place, damaged: `find` has told
        try:
            stored = json.loads(path.read_bytes())["fingerprint"]
            fields = [
                f"{name} {stored.get(name)!r}, now {value!r}"
                for name, value in wanted.items()
                if stored.get(name) != value
            ]
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
        if fields and (nearest is None or len(fields) < len(nearest[1])):
            nearest = path.parent, fields
    return nearest and f"{nearest[0]} was built for another {'; '.join(nearest[1])}"


def discard(built: Built) -> None:
    """Remove an engine that does not load any more."""
    with explained(built.folder.parent):
        shutil.rmtree(built.folder)


def _holds(path: Path, digest: str) -> bool:
    try:
        return sha256(path) == digest
    except OSError:  # not there, or the disk cannot read it
        return False


@contextlib.contextmanager
def lock(engines: Path, key: str, wait: Callable[[], None]) -> Iterator[None]:
    """Hold the right to build this key; `wait` is called when somebody else holds it.

    The kernel lets go of it when the holder dies, however it dies.
    """
    with explained(engines):
        engines.mkdir(parents=True, exist_ok=True)
        guard = FileLock(engines / f".{key}.lock")
        try:
            guard.acquire(timeout=0)
        except Timeout:
            wait()
            guard.acquire()
    try:
        yield
    finally:
        guard.release()


@contextlib.contextmanager
def workplace(engines: Path, key: str) -> Iterator[Path]:
    """An empty folder to build this key in; under the key's lock, so what is left of a killed build can go."""
    folder = engines / f".{key}.building"
    with explained(engines):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        except Exception as error:  # exporters and engines have many words for a full disk
            if shutil.disk_usage(engines).free < _FULL_BYTES:
                raise OSError(errno.ENOSPC, "disk full", str(engines)) from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def publish(engines: Path, built: Path, manifest: Manifest) -> Path:
    """Write the manifest into the built folder and move it to its key, in place of what may be there."""
    target = engines / manifest.fingerprint.key
    with explained(engines):
        for name in manifest.files:
            _sync(built / name)
        (built / MANIFEST).write_text(json.dumps(manifest.to_json(), indent=2) + "\n")
        _sync(built / MANIFEST)
        _sync(built)
        shutil.rmtree(target, ignore_errors=True)
        built.rename(target)
        _sync(engines)
    return target


def _sync(path: Path) -> None:
    """To the disk, so that a power cut cannot leave a manifest without its files."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def explained(engines: Path) -> Iterator[None]:
    """Turn what the file system refuses into one line that names the file and says what to do."""
    try:
        yield
    except OSError as error:
        path = error.filename or engines
        advice = {
            errno.ENOSPC: "the disk is full: free some space",
            errno.EDQUOT: "the disk quota is used up: free some space",
            errno.EACCES: "no permission to write there",
            errno.EPERM: "no permission to write there",
            errno.EROFS: "the file system is read-only",
            errno.EEXIST: "it is no folder: move it away",
            errno.ENOTDIR: "it is no folder: move it away",
            errno.ENOENT: "it was removed meanwhile: start again",
        }.get(error.errno or 0, error.strerror or str(error))
        raise StoreError(f"{path}: {advice}, or give another folder with ENGINES_DIR") from error
