"""Files that nobody else can have changed. Engines and weights are code: they run with this user's rights.

The rule is that of SSH's StrictModes: every folder and link on the way from / to a file, and the file itself, belongs
to root, to this user or to the owner of Yolopard's own code, and nobody else can write to it: no other users, except in
a sticky parent such as /tmp, and no group, except the private group of root or of this user.
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

_CODE = Path(__file__)  # whoever owns it decides already what runs here


def require_safe(path: Path, engines: Path) -> None:
    """Raises StoreError, with the command that mends it, if somebody else can change what this path leads to.

    What does not exist yet is safe. `engines` is the setting ENGINES_DIR. Raises OSError.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        path.stat()  # fails for links in a circle, which _steps would follow for ever
    root = engines.resolve()
    for step in _steps(path.absolute()):
        try:
            found = step.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return
        inside = not stat.S_ISLNK(found.st_mode) and step.resolve().is_relative_to(root)
        if danger := _danger(found, sticky_is_safe=not inside):
            what, program, *change = danger
            mend = shlex.join([program, "-R", *change, str(root)] if inside else [program, *change, str(step)])
            raise StoreError(
                f"{step} {what}, who could replace what is loaded from {engines}: run `{mend}`, "
                "or give another folder with ENGINES_DIR"
            )


def make_folder(path: Path) -> None:
    """Make it and its parents, writable only for this user whatever the umask is. Raises OSError."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o755, exist_ok=True)  # another start may make it at the same time
    if not path.is_dir():
        path.mkdir()  # raises the error that tells what is in its place


def close_to_others(path: Path, mode: int) -> None:
    """Take away all rights that are not in `mode`, which the umask may have left open."""
    path.chmod(stat.S_IMODE(path.stat().st_mode) & mode)


def is_plain(path: Path) -> bool:
    """Whether it is a file itself: no folder, link, pipe or device. Raises OSError."""
    return stat.S_ISREG(path.lstat().st_mode)


def open_plain(path: Path) -> BufferedReader:
    """A plain file, opened for reading. Never waits for a pipe, follows no link. Raises OSError."""
    if not is_plain(path):
        raise OSError("it is no plain file")
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    return os.fdopen(handle, "rb")


def read_plain(path: Path, limit: int) -> bytes:
    """The content of a plain file of at most so many bytes. Raises OSError."""
    with open_plain(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(f"it has more than {limit} bytes")
    return content


def _steps(path: Path) -> Iterator[Path]:
    """Every folder and link that the system goes through from / to this path, and the path itself."""
    for step in (*reversed(path.parents), path):
        yield step
        if step.is_symlink():
            yield from _steps(step.parent / step.readlink())


def _danger(found: os.stat_result, *, sticky_is_safe: bool) -> list[str]:
    """Who else can write there, and the words of the command that takes the right away; empty if nobody else can."""
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
    """Whether it is the group of root or of this user alone: of the same name, and without other members."""
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
