"""Permissions of the engines folder, and how files are opened and folders are made."""

import grp
import os
import pwd
import re
import shlex
import subprocess
import threading
from pathlib import Path

import pytest

from app.errors import StoreError
from app.store import permissions

ME = os.geteuid()
OTHER_USER, SERVER = 12345, 10001  # user ids
as_root = pytest.mark.skipif(ME != 0, reason="only root can give files away")


@pytest.fixture
def engines(tmp_path) -> Path:
    folder = tmp_path / "data" / "engines"
    folder.mkdir(parents=True)
    for path in (folder, folder.parent):
        path.chmod(0o755)
    (folder / "key").mkdir(mode=0o755)
    (folder / "key" / "model.bin").touch(mode=0o644)
    return folder


def check(engines: Path) -> None:
    permissions.require_safe(engines / "key" / "model.bin", engines)


def assert_refused_and_repairable(engines: Path, *, path: Path, why: str) -> None:
    """Assert that the path is refused with this reason, and that the command in the message repairs it."""
    with pytest.raises(StoreError, match=re.escape(f"{path} {why}, who could replace")) as refused:
        check(engines)
    assert "or set ENGINES_DIR to another folder" in str(refused.value)
    command = re.search("run `(.*)`", str(refused.value)).group(1)
    subprocess.run(shlex.split(command), check=True)
    check(engines)


def test_files_that_only_this_user_and_root_can_write_are_safe(engines):
    check(engines)
    permissions.require_safe(engines / "not" / "there", engines)
    permissions.require_safe(engines / "key" / "model.bin" / "below", engines)


PLACES = ["data", "data/engines", "data/engines/key", "data/engines/key/model.bin"]


@pytest.mark.parametrize("place", PLACES)
def test_a_path_that_every_user_can_write_is_refused(engines, place):
    path = engines.parents[1] / place
    path.chmod(0o757)
    assert_refused_and_repairable(engines, path=path, why="can be written to by every user")


@pytest.mark.parametrize("place", PLACES)
def test_a_path_that_a_shared_group_can_write_is_refused(engines, place, users):
    path = engines.parents[1] / place
    path.chmod(0o775)
    assert_refused_and_repairable(engines, path=path, why=f"can be written to by the group {users.group}")


@as_root
@pytest.mark.parametrize("place", PLACES)
def test_a_path_of_another_user_is_refused(engines, place):
    path = engines.parents[1] / place
    os.chown(path, OTHER_USER, -1)
    assert_refused_and_repairable(engines, path=path, why=f"belongs to the user {OTHER_USER}")


@as_root
@pytest.mark.parametrize("owner", [0, SERVER])
def test_a_non_root_server_reads_engines_of_root_and_its_own(engines, owner, monkeypatch):
    for path in (engines, *engines.rglob("*")):
        os.chown(path, owner, owner)
    monkeypatch.setattr(os, "geteuid", lambda: SERVER)
    check(engines)


@as_root
def test_root_does_not_load_engines_that_another_user_could_replace(engines):
    os.chown(engines, SERVER, SERVER)
    with pytest.raises(StoreError, match=f"belongs to the user {SERVER}.*chown -R 0 "):
        check(engines)


@as_root
def test_the_owner_of_the_code_may_own_the_engines(engines, tmp_path, monkeypatch):
    """Root in a container where the checkout of a user is mounted."""
    (tmp_path / "code.py").touch()
    for path in (tmp_path / "code.py", engines):
        os.chown(path, OTHER_USER, -1)
    monkeypatch.setattr(permissions, "_CODE", tmp_path / "code.py")
    check(engines)


class Users:
    """A stand-in for the user database. This user is alice or root, and a test sets the group and its members."""

    group = "staff"

    def __init__(self) -> None:
        self.members: list[str] = []
        self.accounts = [("root", 0, 0), ("alice", ME or 1000, 77)]  # name, uid, gid

    def getgrgid(self, gid: int) -> grp.struct_group:
        return grp.struct_group((self.group, "x", gid, self.members))

    def getpwall(self) -> list[pwd.struct_passwd]:
        return [pwd.struct_passwd((name, "x", uid, gid, "", "/", "/bin/sh")) for name, uid, gid in self.accounts]


@pytest.fixture
def users(monkeypatch) -> Users:
    users = Users()
    monkeypatch.setattr(grp, "getgrgid", users.getgrgid)
    monkeypatch.setattr(pwd, "getpwall", users.getpwall)
    return users


@pytest.mark.parametrize("members", [[], ["alice"]])
def test_the_private_group_of_this_user_may_write(engines, users, members, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: ME or 1000)
    if ME == 0:
        os.chown(engines, 1000, 77)
    users.group, users.members = "alice", members
    engines.chmod(0o2775)
    check(engines)
    users.accounts.append(("bob", 1001, engines.stat().st_gid))
    with pytest.raises(StoreError, match=r"by the group alice.*chmod -R g-w"):
        check(engines)


@pytest.mark.parametrize("members", [["bob"], ["alice", "bob"]])
def test_a_group_with_this_users_name_and_other_members_may_not_write(engines, users, members):
    users.group, users.members = "alice", members
    users.accounts.append(("bob", 1001, 1001))
    engines.chmod(0o775)
    with pytest.raises(StoreError, match="by the group alice"):
        check(engines)


def test_an_unknown_group_may_not_write(engines, monkeypatch):
    def unknown(gid: int) -> None:
        raise KeyError(gid)

    monkeypatch.setattr(grp, "getgrgid", unknown)
    engines.chmod(0o775)
    with pytest.raises(StoreError, match=f"by the group {engines.stat().st_gid}"):
        check(engines)


def test_a_sticky_parent_is_safe_and_a_sticky_engines_folder_is_not(engines):
    engines.parent.chmod(0o1777)
    check(engines)
    engines.chmod(0o1777)
    assert_refused_and_repairable(engines, path=engines, why="can be written to by every user")


def test_a_link_is_followed_and_every_folder_on_its_path_is_checked(engines, tmp_path):
    (tmp_path / "way").mkdir(mode=0o755)
    (tmp_path / "way" / "second").symlink_to(engines)
    (tmp_path / "first").symlink_to("way/second")
    check(tmp_path / "first")
    (tmp_path / "way").chmod(0o757)
    assert_refused_and_repairable(tmp_path / "first", path=tmp_path / "way", why="can be written to by every user")
    engines.chmod(0o1777)
    with pytest.raises(StoreError, match=f"{engines} can be written to"):
        check(tmp_path / "first")


@as_root
def test_a_link_of_another_user_is_refused(engines, tmp_path):
    (tmp_path / "link").symlink_to(engines)
    os.chown(tmp_path / "link", OTHER_USER, -1, follow_symlinks=False)
    with pytest.raises(StoreError, match=f"{tmp_path / 'link'} belongs to the user {OTHER_USER}.*chown.*-h"):
        check(tmp_path / "link")


def test_circular_links_are_an_error(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="symbolic links"):
        check(tmp_path / "a")


@pytest.mark.parametrize("umask", [0, 0o002, 0o077])
def test_new_folders_are_writable_only_by_this_user_with_any_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        permissions.make_folder(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        assert path.stat().st_mode & 0o777 == 0o755 & ~umask
    check(tmp_path / "a" / "b")


def test_concurrent_starts_can_make_the_same_folder(tmp_path):
    start, failed = threading.Barrier(8), []

    def make() -> None:
        start.wait()
        try:
            permissions.make_folder(tmp_path / "a" / "b" / "c")
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert permissions.read_plain(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        permissions.read_plain(tmp_path / "file", 4)


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        permissions.open_plain(tmp_path / "pipe")
