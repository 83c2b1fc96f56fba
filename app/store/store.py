"""engines/<key>/: what the builder made, and the proof that it is whole.

An engine is a folder of files and a manifest.json that is written last, names every file with its sha256, and holds
the fingerprint of all that the engine depends on. A folder appears under its key in one rename: it is whole or absent.
It is read only if nobody else can have changed it, by the rule of app/store/permissions.py.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

from filelock import FileLock, Timeout

from app.errors import StoreError
from app.store import permissions
from app.store.manifest import (
    MANIFEST,
    MAX_BYTES,
    Damaged,
    Fingerprint,
    Manifest,
    StoredEngine,
    read_manifest,
    shortened,
)

log = logging.getLogger("yolopard.store")

_FULL_BYTES = 1 << 20


def find(engines: Path, fingerprint: Fingerprint) -> Manifest | None:
    """The manifest of this engine, every file checked; None when there is no such engine.

    Raises Damaged, and StoreError if somebody else can have changed it.
    """
    folder = engines / fingerprint.key
    with explained(engines):
        permissions.require_safe(folder, engines)
        if not os.path.lexists(folder):
            return None
        if folder.is_symlink() or not folder.is_dir():
            raise Damaged(f"{folder} is no folder")
        present = _present(folder)
        for path in present:
            if not permissions.is_plain(path):
                raise Damaged(f"{path} is no plain file")
            permissions.require_safe(path, engines)
    manifest = read_manifest(folder)
    if manifest.fingerprint != fingerprint:
        raise Damaged(f"{folder / MANIFEST} belongs to another engine")
    for name, digest in manifest.files.items():
        if not _is_file_name(name):
            raise Damaged(f"{folder / MANIFEST} names the file {shortened(name)}, which is no plain file name")
        _require_digest(folder / name, digest)
    if unknown := [path for path in present if path.name not in (MANIFEST, *manifest.files)]:
        raise Damaged(f"{unknown[0]} is not in the manifest")
    return manifest


def _present(folder: Path) -> list[Path]:
    """What is in the folder, except hidden files such as NFS's .nfs0001, which no engine has."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError as error:  # another start builds it again
        raise Damaged(f"{folder} was removed meanwhile") from error


def _is_file_name(name: str) -> bool:
    """Whether it names something in the folder itself, and not the manifest."""
    return name not in ("", MANIFEST) and not name.startswith(".") and not set(name) & set("/\\\0")


def _require_digest(path: Path, digest: str) -> None:
    """Raises Damaged unless it is a plain file with this sha256."""
    try:
        with permissions.open_plain(path) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == digest:
                return
    except OSError:  # it is not there, or the disk cannot read it
        pass
    raise Damaged(f"{path} is missing, cut short or was replaced since it was built")


def match(engines: Path, fingerprint: Fingerprint) -> StoredEngine | None:
    """The newest engine of this fingerprint, whatever images it was calibrated on and whatever code evaluated it.

    Damaged ones are passed over, with a line in the log. Raises StoreError.
    """
    pattern = f"{fingerprint.name}-{fingerprint.backend}-{fingerprint.precision}-*/{MANIFEST}"
    with explained(engines):
        paths = sorted(engines.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in paths:
        try:
            own = read_manifest(path.parent).fingerprint
            wanted = replace(fingerprint, calibration=own.calibration, evaluation_revision=own.evaluation_revision)
            if own == wanted and (manifest := find(engines, own)):
                return StoredEngine(path.parent, manifest)
        except Damaged as damage:
            log.warning("%s: this engine is not used", damage)
    return None


def difference(engines: Path, fingerprint: Fingerprint) -> str | None:
    """In what the stored engine that is most like this one differs from it, in one line; None when there is none."""
    wanted, nearest = asdict(fingerprint), None
    for path in sorted(engines.glob(f"{fingerprint.name}-{fingerprint.backend}-{fingerprint.precision}-*/{MANIFEST}")):
        if path.parent.name == fingerprint.key:
            continue  # its own place, damaged: `find` has told
        try:
            stored = json.loads(permissions.read_plain(path, MAX_BYTES))["fingerprint"]
            fields = [
                f"{name} {shortened(stored.get(name))}, now {value!r}"
                for name, value in wanted.items()
                if stored.get(name) != value
            ]
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
        if fields and (nearest is None or len(fields) < len(nearest[1])):
            nearest = path.parent, fields
    return nearest and f"{nearest[0]} was built for another {'; '.join(nearest[1])}"


def subfolder(engines: Path, name: str) -> Path:
    """The folder of this name beside the engines, if there is one. Raises StoreError if others can change it."""
    folder = engines / name
    with explained(engines):
        for path in (folder, *(folder.iterdir() if folder.is_dir() else ())):
            permissions.require_safe(path, engines)
    return folder


def safe_path(engines: Path, name: str) -> Path:
    """A file beside the engines. Raises StoreError if others can change it."""
    path = engines / name
    with explained(engines):
        permissions.require_safe(path, engines)
    return path


def discard(built: StoredEngine) -> None:
    """Remove an engine that does not load any more."""
    with explained(built.folder.parent):
        shutil.rmtree(built.folder)


@contextlib.contextmanager
def lock(engines: Path, key: str, wait: Callable[[], None]) -> Iterator[None]:
    """Hold the right to build this key; `wait` is called when somebody else holds it.

    The kernel lets go of it when the holder dies, however it dies.
    """
    with explained(engines):
        permissions.require_safe(engines, engines)
        permissions.make_folder(engines)
        guard = FileLock(engines / f".{key}.lock", mode=0o644)
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
        _remove(folder)
        folder.mkdir(mode=0o700)  # what libraries write there has the umask's modes until it is published
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
        (built / MANIFEST).write_text(json.dumps(manifest.to_json(), indent=2) + "\n")
        for name in (*manifest.files, MANIFEST):
            permissions.close_to_others(built / name, 0o644)
            _sync(built / name)
        permissions.close_to_others(built, 0o755)
        _sync(built)
        _remove(target)
        built.rename(target)
        _sync(engines)
    return target


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:  # rmtree would wait for the writer of a pipe
        path.unlink(missing_ok=True)


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
            errno.EACCES: "no permission to read or write there",
            errno.EPERM: "no permission to read or write there",
            errno.EROFS: "the file system is read-only",
            errno.EEXIST: "it is no folder: move it away",
            errno.ENOTDIR: "it is no folder: move it away",
            errno.ENOENT: "it was removed meanwhile: start again",
        }.get(error.errno or 0, error.strerror or str(error))
        raise StoreError(f"{path}: {advice}, or give another folder with ENGINES_DIR") from error
