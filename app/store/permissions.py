"""Checks that no other user can change a file. Engines and weights are code: they run with this user's rights.

The rule is that of SSH's StrictModes. The file, and every folder and link on the path from / to it, must belong to
root, to this user or to the owner of Yolopard's code, and must not be writable for others: neither for other users,
except in a sticky parent such as /tmp, nor for a group, except the private group of root or of this user.
"""

import contextlib
import grp
import os
import pwd
import shlex
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from app.errors import StoreError

_CODE = Path(__file__)  # its owner already controls what runs here


def require_safe(path: Path, engines: Path) -> None:
    """Raise StoreError, with the command that corrects the permissions, if another user can change the file at `path`.

    A path that does not exist is safe. `engines` is the setting ENGINES_DIR. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.stat()  # raises for cyclic links, which _steps would follow forever
    root = engines.resolve()
    for step in _steps(path.absolute()):
        try:
            found = step.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return
        inside = not stat.S_ISLNK(found.st_mode) and step.resolve().is_relative_to(root)
        if danger := _danger(found, sticky_is_safe=not inside):
            what, program, *change = danger
            command = shlex.join([program, "-R", *change, str(root)] if inside else [program, *change, str(step)])
            raise StoreError(
                f"{step} {what}, who could replace what is loaded from {engines}: run `{command}`, "
                "or set ENGINES_DIR to another folder"
            )


def make_folder(path: Path) -> None:
    """Make a folder and its parents, writable only for this user with any umask. Raises OSError."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o755, exist_ok=True)  # another process may make it at the same time
    if not path.is_dir():
        path.mkdir()  # raises the OSError for what is there instead


def close_to_others(path: Path, mode: int) -> None:
    """Remove all permissions that are not in `mode`; the umask may have allowed more."""
    path.chmod(stat.S_IMODE(path.stat().st_mode) & mode)


def is_plain(path: Path) -> bool:
    """Return True for a regular file, False for a folder, link, pipe or device. Raises OSError."""
    return stat.S_ISREG(path.lstat().st_mode)


def open_plain(path: Path) -> BufferedReader:
    """Open a regular file for reading. Does not block on a pipe or follow a link. Raises OSError."""
    if not is_plain(path):
        raise OSError("it is not a regular file")
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    return os.fdopen(handle, "rb")


def read_plain(path: Path, limit: int) -> bytes:
    """Return the content of a regular file. Raises OSError, also if it has more than `limit` bytes."""
    with open_plain(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(f"it has more than {limit} bytes")
    return content


def _steps(path: Path) -> Iterator[Path]:
    """Yield every folder and link that is resolved from / to `path`, and `path` itself."""
    for step in (*reversed(path.parents), path):
        yield step
        if step.is_symlink():
            yield from _steps(step.parent / step.readlink())


def _danger(found: os.stat_result, *, sticky_is_safe: bool) -> list[str]:
    """Return who else can write there, followed by the command that prevents it; empty if nobody else can."""
    link, user = stat.S_ISLNK(found.st_mode), os.geteuid()
    if found.st_uid not in (0, user, _CODE.stat().st_uid):
        return [f"belongs to the user {_name_of_user(found.st_uid)}", "chown", *(["-h"] if link else []), str(user)]
    if link or (sticky_is_safe and found.st_mode & stat.S_ISVTX):
        return []
    if found.st_mode & stat.S_IWOTH:
        return ["can be written to by every user", "chmod", "go-w"]
    if found.st_mode & stat.S_IWGRP and not _is_private(found.st_gid):
        return [f"can be written to by the group {_name_of_group(found.st_gid)}", "chmod", "g-w"]
    return []


def _is_private(gid: int) -> bool:
    """Return True for the private group of root or of this user: it has the same name and no other members."""
    users = pwd.getpwall()
    own = {user.pw_name for user in users if user.pw_uid in (0, os.geteuid())}
    try:
        group = grp.getgrgid(gid)
    except KeyError:
        return False
    members = {*group.gr_mem, *(user.pw_name for user in users if user.pw_gid == gid)}
    return group.gr_name in own and members <= own


def _name_of_user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _name_of_group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
