"""Stores engines in engines/<key>/, and checks that they are complete.

An engine is a folder of files with a manifest.json, which is written last. It has the sha256 of every file and the
fingerprint of everything that the engine depends on. One rename publishes the folder under its key, so it is complete
or absent. It is only read if no other user can have changed it (app/store/permissions.py).
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

_MIN_FREE_BYTES = 1 << 20  # with less free space a failed build is reported as a full disk


def find(engines: Path, fingerprint: Fingerprint) -> Manifest | None:
    """Return the manifest of this engine with every file checked; None if there is no such engine.

    Raises Damaged, and StoreError if another user can have changed the engine.
    """
    folder = engines / fingerprint.key
    with explained(engines):
        permissions.require_safe(folder, engines)
        if not os.path.lexists(folder):
            return None
        if folder.is_symlink() or not folder.is_dir():
            raise Damaged(f"{folder} is not a folder")
        present = _present(folder)
        for path in present:
            if not permissions.is_plain(path):
                raise Damaged(f"{path} is not a regular file")
            permissions.require_safe(path, engines)
    manifest = read_manifest(folder)
    if manifest.fingerprint != fingerprint:
        raise Damaged(f"{folder / MANIFEST} belongs to another engine")
    for name, digest in manifest.files.items():
        if not _is_file_name(name):
            raise Damaged(f"{folder / MANIFEST} names the file {shortened(name)}, which is not a plain file name")
        _require_digest(folder / name, digest)
    if unknown := [path for path in present if path.name not in (MANIFEST, *manifest.files)]:
        raise Damaged(f"{unknown[0]} is not in the manifest")
    return manifest


def _present(folder: Path) -> list[Path]:
    """Return the paths in the folder, except hidden files such as .nfs0001 of NFS. Raises Damaged."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except FileNotFoundError as error:  # another process is building it again
        raise Damaged(f"{folder} was removed meanwhile") from error


def _is_file_name(name: str) -> bool:
    """Return True for the name of a visible file in the folder itself, other than the manifest."""
    return name not in ("", MANIFEST) and not name.startswith(".") and not set(name) & set("/\\\0")


def _require_digest(path: Path, digest: str) -> None:
    """Raise Damaged unless the path is a regular file with this sha256."""
    try:
        with permissions.open_plain(path) as file:
            if hashlib.file_digest(file, "sha256").hexdigest() == digest:
                return
    except OSError:  # the file is missing or unreadable
        pass
    raise Damaged(f"{path} is missing, cut short or was replaced since it was built")


def match(engines: Path, fingerprint: Fingerprint) -> StoredEngine | None:
    """Return the newest engine with this fingerprint, ignoring its calibration images and evaluation code; or None.

    Logs damaged engines and skips them. Raises StoreError.
    """
    pattern = f"{fingerprint.name}-{fingerprint.backend}-{fingerprint.precision}-*/{MANIFEST}"
    with explained(engines):
        paths = sorted(engines.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in paths:
        try:
            own = read_manifest(path.parent).fingerprint
            expected = replace(fingerprint, calibration=own.calibration, evaluation_revision=own.evaluation_revision)
            if own == expected and (manifest := find(engines, own)):
                return StoredEngine(path.parent, manifest)
        except Damaged as damage:
            log.warning("%s: this engine is not used", damage)
    return None


def difference(engines: Path, fingerprint: Fingerprint) -> str | None:
    """Return a line on how the most similar stored engine differs from the fingerprint; None if there is no engine."""
    requested, nearest = asdict(fingerprint), None
    for path in sorted(engines.glob(f"{fingerprint.name}-{fingerprint.backend}-{fingerprint.precision}-*/{MANIFEST}")):
        if path.parent.name == fingerprint.key:
            continue  # the engine itself, which is damaged: `find` has reported it
        try:
            stored = json.loads(permissions.read_plain(path, MAX_BYTES))["fingerprint"]
            fields = [
                f"{name} {shortened(stored.get(name))}, now {value!r}"
                for name, value in requested.items()
                if stored.get(name) != value
            ]
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
        if fields and (nearest is None or len(fields) < len(nearest[1])):
            nearest = path.parent, fields
    return nearest and f"{nearest[0]} was built for another {'; '.join(nearest[1])}"


def subfolder(engines: Path, name: str) -> Path:
    """Return the path of a folder in `engines`. Raises StoreError if other users can change it or its files."""
    folder = engines / name
    with explained(engines):
        for path in (folder, *(folder.iterdir() if folder.is_dir() else ())):
            permissions.require_safe(path, engines)
    return folder


def safe_path(engines: Path, name: str) -> Path:
    """Return the path of a file in `engines`. Raises StoreError if other users can change it."""
    path = engines / name
    with explained(engines):
        permissions.require_safe(path, engines)
    return path


def discard(stored: StoredEngine) -> None:
    """Remove an engine that no longer loads. Raises StoreError."""
    with explained(stored.folder.parent):
        shutil.rmtree(stored.folder)


@contextlib.contextmanager
def lock(engines: Path, key: str, wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock for building this key; the kernel releases it after a crash. Calls `wait` before it has to wait."""
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
    """Yield an empty folder to build this key in. Hold the key's lock: files of a killed build are removed."""
    folder = engines / f".{key}.building"
    with explained(engines):
        _remove(folder)
        folder.mkdir(mode=0o700)  # until it is published, its files have the modes of the umask
        try:
            yield folder
        except Exception as error:  # exporters and engines report a full disk in many ways
            if shutil.disk_usage(engines).free < _MIN_FREE_BYTES:
                raise OSError(errno.ENOSPC, "disk full", str(engines)) from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def publish(engines: Path, folder: Path, manifest: Manifest) -> Path:
    """Write the manifest into the folder and move it to its key, replacing any other; return the new path."""
    target = engines / manifest.fingerprint.key
    with explained(engines):
        (folder / MANIFEST).write_text(json.dumps(manifest.to_json(), indent=2) + "\n")
        for name in (*manifest.files, MANIFEST):
            permissions.close_to_others(folder / name, 0o644)
            _sync(folder / name)
        permissions.close_to_others(folder, 0o755)
        _sync(folder)
        _remove(target)
        folder.rename(target)
        _sync(engines)
    return target


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:  # rmtree would block on a pipe
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Write a file to the disk, so that a power failure cannot leave a manifest without its files."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def explained(engines: Path) -> Iterator[None]:
    """Convert an OSError to a StoreError of one line with the file and the advice."""
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
            errno.EEXIST: "it is not a folder: move it away",
            errno.ENOTDIR: "it is not a folder: move it away",
            errno.ENOENT: "it was removed meanwhile: start again",
        }.get(error.errno or 0, error.strerror or str(error))
        raise StoreError(f"{path}: {advice}, or set ENGINES_DIR to another folder") from error
