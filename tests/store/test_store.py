"""engines/<key>/: complete or absent, one builder at a time, and errors that say what to do."""

import contextlib
import dataclasses
import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fakes
import pytest

from app.errors import StoreError
from app.model import ModelInfo
from app.store import permissions, store
from app.store.manifest import MANIFEST, Damaged, Fingerprint, GateResult, Manifest, sha256

FINGERPRINT = Fingerprint(
    name="pets",
    weights_sha256="0" * 64,
    graph_revision="1",
    evaluation_revision="ef",
    imgsz=640,
    shapes=None,
    batch=8,
    precision="fp32",
    backend="openvino",
    backend_version="2026.4",
    device="cpu",
    calibration="",
)
KEY = FINGERPRINT.key
GATE_RESULT = GateResult("2 images", "", fakes.FIGURES, "PyTorch FP32")
FILES = {"model.bin": b"weights " * 1000, "model.xml": b"<net/>"}
HELPER = """
import pathlib, sys
from app.store import store
with store.lock(pathlib.Path(sys.argv[1]), sys.argv[2], lambda: None):
    print("held", flush=True)
    sys.stdin.read()
    pathlib.Path(sys.argv[1], "left").touch()
"""


def put(engines: Path, fingerprint: Fingerprint = FINGERPRINT, files: dict[str, bytes] = FILES) -> Manifest:
    """Write the files and publish them, like the builder does."""
    with store.lock(engines, fingerprint.key, lambda: None), store.workplace(engines, fingerprint.key) as place:
        for name, data in files.items():
            (place / name).write_bytes(data)
        model = ModelInfo("pets", "detect", {0: "cat", 1: "dog"}, stride=32, imgsz=640, shapes=None)
        digests = {name: sha256(place / name) for name in files}
        manifest = Manifest(fingerprint, model, GATE_RESULT, {"when": "now"}, digests)
        assert store.publish(engines, place, manifest) == engines / fingerprint.key
    return manifest


@pytest.fixture
def engines(tmp_path) -> Path:
    return tmp_path / "deep" / "engines"


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """Mount a file system in memory at the folder."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"{options},mode=755", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    with mounted(tmp_path / "small", "size=64k") as folder:
        yield folder


def test_a_published_engine_is_found(engines):
    manifest = put(engines)
    assert store.find(engines, FINGERPRINT) == manifest
    assert {path.name: path.read_bytes() for path in (engines / KEY).iterdir() if path.name in FILES} == FILES


def test_only_the_engine_remains_after_a_build(engines):
    put(engines)
    assert [path.name for path in engines.iterdir() if not path.name.endswith(".lock")] == [KEY]


def test_find_returns_none_if_no_engine_was_built(engines):
    assert store.find(engines, FINGERPRINT) is None
    engines.parent.mkdir()
    engines.touch()
    assert store.find(engines, FINGERPRINT) is None


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Fingerprint)])
def test_an_engine_with_any_different_fingerprint_field_is_another_engine(engines, field):
    put(engines)
    other = dataclasses.replace(FINGERPRINT, **{field: 4 if field in ("imgsz", "batch") else "other"})
    assert other.key != KEY
    assert store.find(engines, other) is None


def test_a_manifest_without_shapes_is_another_engine_without_a_difference_in_shapes(engines):
    put(engines, dataclasses.replace(FINGERPRINT, batch=4))
    (path,) = engines.glob("*/manifest.json")
    fields = json.loads(path.read_bytes())
    del fields["fingerprint"]["shapes"], fields["model"]["shapes"]
    fields["model"]["static_shape"] = False
    path.write_text(json.dumps(fields))
    assert store.find(engines, FINGERPRINT) is None
    assert store.difference(engines, FINGERPRINT) == f"{path.parent} was built for another batch 4, now 8"


def test_shapes_survive_a_round_trip_through_the_manifest(engines):
    shapes = ((384, 640), (640, 640))
    manifest = dataclasses.replace(put(engines), model=dataclasses.replace(put(engines).model, shapes=shapes))
    (engines / KEY / MANIFEST).write_text(json.dumps(manifest.to_json()))
    assert store.find(engines, FINGERPRINT) == manifest


def test_keys_are_readable_folder_names():
    assert KEY.startswith("pets-openvino-fp32-")
    assert "/" not in KEY


def test_publishing_again_replaces_the_old_engine(engines):
    put(engines, files={"old.bin": b"old"})
    manifest = put(engines)
    assert store.find(engines, FINGERPRINT) == manifest
    assert not (engines / KEY / "old.bin").exists()


def edit(folder: Path, **fields: object) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def remove_field(folder: Path, field: str) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != field}))


def replace_with_link(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


def edit_model(folder: Path, **fields: object) -> None:
    edit(folder, model=json.loads((folder / MANIFEST).read_text())["model"] | fields)


def replace_with_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_with_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_with_socket(path: Path) -> None:
    path.unlink()
    os.mknod(path, stat.S_IFSOCK | 0o644)


def move_out(path: Path) -> None:
    """Move the file out of the engine's folder and put a link to it in its place."""
    path.rename(path.parents[1] / path.name)
    path.symlink_to(path.parents[1] / path.name)


DAMAGES = {  # name: (the file named in the error, the function that damages the folder)
    "no manifest": ("manifest.json", lambda f: (f / "manifest.json").unlink()),
    "empty manifest": ("manifest.json", lambda f: (f / "manifest.json").write_bytes(b"")),
    "manifest of garbage": ("manifest.json", lambda f: (f / "manifest.json").write_bytes(b"\xff\0garbage")),
    "manifest cut short": ("manifest.json", lambda f: os.truncate(f / "manifest.json", 200)),
    "manifest of null": ("manifest.json", lambda f: (f / "manifest.json").write_text("null")),
    "manifest of a list": ("manifest.json", lambda f: (f / "manifest.json").write_text("[]")),
    "manifest without files": ("manifest.json", lambda f: remove_field(f, "files")),
    "manifest with an unknown field": ("manifest.json", lambda f: edit(f, what=1)),
    "files of another type": ("manifest.json", lambda f: edit(f, files=["model.bin"])),
    "model of another type": ("manifest.json", lambda f: edit(f, model={"names": ["cat"]})),
    "manifest of another engine": ("manifest.json", lambda f: edit(f, fingerprint=dataclasses.asdict(OTHER))),
    "file missing": ("model.bin", lambda f: (f / "model.bin").unlink()),
    "file cut short": ("model.bin", lambda f: os.truncate(f / "model.bin", 100)),
    "file empty": ("model.xml", lambda f: os.truncate(f / "model.xml", 0)),
    "extra bytes": ("model.bin", lambda f: (f / "model.bin").write_bytes(FILES["model.bin"] + b"\0")),
    "one bit": ("model.bin", lambda f: (f / "model.bin").write_bytes(FILES["model.bin"].replace(b"w", b"v", 1))),
    "another file in its place": ("model.xml", lambda f: (f / "model.bin").replace(f / "model.xml")),
    "manifest of deep JSON": ("manifest.json", lambda f: (f / "manifest.json").write_text('{"files":' * 100_000)),
    "manifest of a long number": ("manifest.json", lambda f: (f / "manifest.json").write_text("1" * 100_000)),
    "manifest of 300 MB": ("manifest.json", lambda f: os.truncate(f / "manifest.json", 300_000_000)),
    "manifest that is a pipe": ("manifest.json", lambda f: replace_with_pipe(f / "manifest.json")),
    "manifest that is a folder": ("manifest.json", lambda f: replace_with_folder(f / "manifest.json")),
    "manifest that is a socket": ("manifest.json", lambda f: replace_with_socket(f / "manifest.json")),
    "manifest that is a link": ("manifest.json", lambda f: replace_with_link(f / "manifest.json", f / "model.xml")),
    "names of another type": ("manifest.json", lambda f: edit_model(f, names=["cat"])),
    "names with other keys": ("manifest.json", lambda f: edit_model(f, names={"cat": "cat"})),
    "stride of another type": ("manifest.json", lambda f: edit_model(f, stride="32")),
    "shapes of another type": ("manifest.json", lambda f: edit_model(f, shapes=[[1, 2, 3]])),
    "digest of another type": ("manifest.json", lambda f: edit(f, files={"model.bin": None})),
    "figures of another type": ("manifest.json", lambda f: edit(f, gate={"on": "", "images": "", "figures": [1]})),
    "link to nowhere": ("model.bin", lambda f: replace_with_link(f / "model.bin", Path("/nowhere"))),
    "link to the file itself": ("model.bin", lambda f: move_out(f / "model.bin")),
    "link in a circle": ("model.bin", lambda f: replace_with_link(f / "model.bin", Path("model.bin"))),
    "folder in its place": ("model.bin", lambda f: replace_with_folder(f / "model.bin")),
    "pipe in its place": ("model.bin", lambda f: replace_with_pipe(f / "model.bin")),
    "socket in its place": ("model.bin", lambda f: replace_with_socket(f / "model.bin")),
    "link to a device": ("model.bin", lambda f: replace_with_link(f / "model.bin", Path("/dev/zero"))),
    "file that cannot be read": ("model.bin", lambda f: replace_with_link(f / "model.bin", Path("/proc/self/mem"))),
    "file that the manifest does not name": ("model.fp16.bin", lambda f: (f / "model.fp16.bin").write_bytes(b"x")),
}
OTHER = dataclasses.replace(FINGERPRINT, batch=1)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_engine_is_detected_and_the_file_is_named(engines, damage):
    put(engines)
    name, apply = DAMAGES[damage]
    apply(engines / KEY)
    if damage == "another file in its place":
        name = "model.bin"  # missing, and first in the manifest
    with pytest.raises(Damaged, match=f"{KEY}/{name} "):
        store.find(engines, FINGERPRINT)
    manifest = put(engines)
    assert store.find(engines, FINGERPRINT) == manifest


FOREIGN_NAMES = [
    "", ".", "..", "../model.bin", "sub/model.bin", "/etc/hostname", "model\0.bin", "..\\model.bin", ".hidden",
    "manifest.json", "x" * 10_000, "line\nbreak/", "\x1b[2J/",
]  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN_NAMES)
def test_a_manifest_that_names_a_file_outside_its_folder_is_refused(engines, name):
    put(engines)
    (engines / "model.bin").write_bytes(b"x")
    (engines / KEY / "sub").mkdir(exist_ok=True)
    (engines / KEY / "sub").rmdir()
    files = {FILE: sha256(engines / KEY / FILE) for FILE in FILES}
    edit(engines / KEY, files=files | {name: sha256(engines / "model.bin")})
    with pytest.raises(Damaged, match=r"not a plain file name|missing") as refused:
        store.find(engines, FINGERPRINT)
    assert len(str(refused.value)) < 500 or name == "x" * 10_000
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("kind", ["link", "file", "pipe"])
def test_a_key_that_is_not_a_folder_is_damaged_and_a_build_replaces_it(engines, tmp_path, kind):
    put(engines)
    (engines / KEY).rename(tmp_path / "elsewhere")
    {"link": lambda p: p.symlink_to(tmp_path / "elsewhere"), "file": Path.touch, "pipe": os.mkfifo}[kind](engines / KEY)
    with pytest.raises(Damaged, match=f"{KEY} is not a folder"):
        store.find(engines, FINGERPRINT)
    manifest = put(engines)
    assert store.find(engines, FINGERPRINT) == manifest
    assert (tmp_path / "elsewhere").is_dir()


@pytest.mark.parametrize("place", ["", KEY, f"{KEY}/model.bin", f"{KEY}/manifest.json"])
def test_an_engine_that_others_can_write_is_refused_and_not_rebuilt(engines, place):
    put(engines)
    (engines / place).chmod(0o777)
    with pytest.raises(StoreError, match=f"{place} can be written to by every user.*chmod -R go-w") as refused:
        store.find(engines, FINGERPRINT)
    assert not isinstance(refused.value, Damaged)  # a damaged engine would be built again
    if not place:
        with pytest.raises(StoreError, match="can be written to"):
            put(engines)


def test_an_engines_folder_that_others_can_write_is_refused_before_a_build(engines):
    engines.mkdir(parents=True)
    engines.chmod(0o777)
    with pytest.raises(StoreError, match="can be written to by every user"):
        store.find(engines, FINGERPRINT)


@pytest.mark.parametrize("umask", [0, 0o002, 0o077])
def test_a_published_engine_is_writable_only_by_this_user_with_any_umask(engines, umask):
    before = os.umask(umask)
    try:
        put(engines)
    finally:
        os.umask(before)
    for path in (engines.parent, engines, *engines.rglob("*")):
        assert not path.stat().st_mode & 0o022, path
    assert store.find(engines, FINGERPRINT)


def test_the_folder_of_a_running_build_is_closed_to_other_users(engines):
    with store.lock(engines, KEY, lambda: None), store.workplace(engines, KEY) as place:
        assert place.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["weights", ".cache"])
def test_weights_and_caches_that_others_can_write_are_refused(engines, name):
    folder = store.subfolder(engines, name)
    assert not folder.exists()
    permissions.make_folder(folder)
    (folder / "file").touch(mode=0o644)
    assert store.subfolder(engines, name) == folder
    for path in (folder / "file", folder):
        path.chmod(0o777)
        with pytest.raises(StoreError, match=f"{path} can be written to by every user"):
            store.subfolder(engines, name)
        path.chmod(0o755)


@pytest.mark.parametrize("other", ["pipe", "large", "deep", "list"])
def test_damaged_engines_are_skipped_in_the_search_for_a_difference(engines, other):
    put(engines, OTHER)
    near = engines / f"{KEY.rpartition('-')[0]}-0"
    near.mkdir()
    if other == "pipe":
        os.mkfifo(near / MANIFEST)
    else:
        text = {"large": '{"fingerprint":{"name":"' + "x" * 2_000_000 + '"}}', "deep": "[" * 100_000}.get(other, "[]")
        (near / MANIFEST).write_text(text)
    assert store.difference(engines, FINGERPRINT) == f"{engines / OTHER.key} was built for another batch 1, now 8"


@pytest.mark.parametrize("batches", [(2, 4), (4, 2)])
def test_a_difference_is_that_to_the_most_similar_engine(engines, batches):
    """The stored engines are read in the order of their keys, so each is the first one once."""
    similar = dataclasses.replace(FINGERPRINT, batch=batches[0])
    other = dataclasses.replace(FINGERPRINT, batch=batches[1], device="another")
    for fingerprint in (similar, other):
        put(engines, fingerprint)
    assert (
        store.difference(engines, FINGERPRINT)
        == f"{engines / similar.key} was built for another batch {batches[0]}, now 8"
    )


def test_the_engine_itself_is_skipped_in_the_search_for_a_difference(engines):
    for fingerprint in (FINGERPRINT, *(dataclasses.replace(FINGERPRINT, batch=batch) for batch in (1, 2, 3, 4))):
        put(engines, fingerprint)
    shutil.rmtree(engines / KEY)
    (engines / KEY).mkdir()
    (engines / KEY / MANIFEST).write_text("{}")
    assert "was built for another batch" in store.difference(engines, FINGERPRINT)


def test_an_unexpected_error_names_the_file_and_the_reason(engines):
    with (
        pytest.raises(StoreError, match=r"^/some/file: Input/output error, or set"),
        store.explained(engines),
    ):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "/some/file")
    with pytest.raises(StoreError, match=rf"^{engines}: the disk is full"), store.explained(engines):
        raise OSError(errno.ENOSPC, "no space")
    with pytest.raises(StoreError, match=rf"^{engines}: without a number"), store.explained(engines):
        raise OSError("without a number")


def test_a_difference_is_one_short_line(engines):
    put(engines, OTHER)
    edit(engines / OTHER.key, fingerprint=dataclasses.asdict(FINGERPRINT) | {"device": "\n\x1b[2J" + "x" * 100_000})
    assert len(store.difference(engines, FINGERPRINT)) < 400
    assert store.difference(engines, FINGERPRINT).isprintable()


def test_a_workplace_is_empty_after_a_killed_build(engines):
    with store.lock(engines, KEY, lambda: None), store.workplace(engines, KEY) as place:
        where = place
    (where / "sub").mkdir(parents=True)
    (where / "sub" / "half.bin").write_bytes(b"half")
    with store.lock(engines, KEY, lambda: None), store.workplace(engines, KEY) as place:
        assert place == where
        assert list(place.iterdir()) == []


def test_a_failed_build_leaves_no_files_and_keeps_its_error(engines):
    with pytest.raises(TypeError):
        put(engines, files={"half.bin": b"half", "model.bin": None})
    assert [path.name for path in engines.iterdir()] == [f".{KEY}.lock"]
    assert store.find(engines, FINGERPRINT) is None


def test_a_workplace_is_not_found_as_an_engine(engines):
    with store.lock(engines, KEY, lambda: None), store.workplace(engines, KEY) as place:
        assert place.parent == engines
        assert place != engines / KEY
        assert store.find(engines, FINGERPRINT) is None


@contextlib.contextmanager
def held_by_another_process(engines: Path, key: str = KEY) -> Iterator[subprocess.Popen]:
    """Hold the lock in another process until its standard input is closed."""
    command = [sys.executable, "-c", HELPER, str(engines), key]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        watchdog = threading.Timer(20, process.kill)
        watchdog.start()
        try:
            assert process.stdout.readline() == b"held\n"
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def test_a_lock_excludes_other_processes_and_reports_the_wait(engines):
    with held_by_another_process(engines) as process:
        waits = []

        def wait() -> None:
            waits.append((engines / "left").exists())
            process.stdin.close()

        with store.lock(engines, KEY, wait):
            assert waits == [False]
            assert (engines / "left").exists()


def test_a_lock_is_released_when_its_holder_is_killed(engines):
    with held_by_another_process(engines) as process:
        waits = []

        def wait() -> None:
            waits.append(process.poll())
            process.send_signal(signal.SIGKILL)

        with store.lock(engines, KEY, wait):
            assert waits == [None]
            assert process.wait() == -signal.SIGKILL
            assert not (engines / "left").exists()


def test_a_free_lock_is_taken_without_a_wait(engines):
    for _ in range(2):
        with store.lock(engines, KEY, lambda: pytest.fail("waited")):
            pass


def test_a_lock_of_another_engine_causes_no_wait(engines):
    with held_by_another_process(engines, OTHER.key), store.lock(engines, KEY, lambda: pytest.fail("waited")):
        pass


def test_a_full_disk_during_a_build_is_reported(small_disk):
    with pytest.raises(StoreError, match=rf"{small_disk}.*the disk is full.*ENGINES_DIR"):
        put(small_disk, files={"model.bin": bytes(1_000_000)})
    assert store.find(small_disk, FINGERPRINT) is None
    assert not [path for path in small_disk.rglob("*") if path.stat().st_size]


def test_a_full_disk_is_reported_if_a_library_raises_another_error(small_disk):
    with pytest.raises(StoreError, match="the disk is full"), store.workplace(small_disk, KEY):
        raise RuntimeError("Unable to save model")


def publish_on_the_last_byte(engines: Path, manifest: Manifest) -> None:
    with store.workplace(engines, KEY) as place:
        with contextlib.suppress(OSError), (place / "fill").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(512))
        store.publish(engines, place, dataclasses.replace(manifest, files={}))


def test_a_full_disk_during_publishing_is_reported_and_the_old_engine_stays(small_disk):
    old = put(small_disk)
    with pytest.raises(StoreError, match="the disk is full"):
        publish_on_the_last_byte(small_disk, old)
    assert store.find(small_disk, FINGERPRINT) == old


def test_a_read_only_folder_is_reported(tmp_path):
    with mounted(tmp_path / "fixed", "ro") as folder:
        for engines in (folder, folder / "engines"):
            with pytest.raises(StoreError, match=rf"{folder}.*read-only.*ENGINES_DIR"):
                put(engines)


@pytest.mark.parametrize("engines", ["file", "file/engines"])
def test_a_file_in_the_place_of_the_folder_is_reported(tmp_path, engines):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=rf"{tmp_path / 'file'}.*ENGINES_DIR"):
        put(tmp_path / engines)


def test_nothing_found_warns_only_if_the_reference_found_no_boxes():
    no_boxes = dataclasses.replace(GATE_RESULT, figures=dataclasses.replace(fakes.FIGURES, boxes=0))
    assert GATE_RESULT.nothing_found() == ""
    assert no_boxes.nothing_found().startswith("PyTorch FP32 finds nothing in 2 images")
    assert "GATE_DIR" in no_boxes.nothing_found()
    assert GateResult("nothing", "", None).nothing_found() == ""


def fingerprint_with(**changes: str) -> Fingerprint:
    """Return FINGERPRINT with changed fields."""
    return dataclasses.replace(FINGERPRINT, **changes)


def test_an_engine_matches_with_any_calibration_and_evaluation(engines):
    assert store.match(engines, FINGERPRINT) is None
    other = fingerprint_with(calibration="48 scenes", evaluation_revision="new")
    manifest = put(engines, other)
    found = store.match(engines, FINGERPRINT)
    assert (found.folder, found.manifest) == (engines / other.key, manifest)


@pytest.mark.parametrize("change", [{"graph_revision": "2"}, {"weights_sha256": "1" * 64}, {"device": "gpu"}])
def test_an_engine_of_another_graph_weights_or_device_does_not_match(engines, change):
    put(engines, fingerprint_with(**change))
    assert store.match(engines, FINGERPRINT) is None


def test_the_newest_matching_engine_is_taken(engines):
    for at, revision in enumerate(("b", "a")):
        put(engines, fingerprint_with(evaluation_revision=revision))
        path = engines / fingerprint_with(evaluation_revision=revision).key / MANIFEST
        os.utime(path, (at, at))
    assert store.match(engines, FINGERPRINT).manifest.fingerprint.evaluation_revision == "a"


def test_a_damaged_engine_is_skipped_and_logged(engines, caplog):
    """It was skipped without a log line, and the server reported that there is no engine."""
    put(engines)
    put(engines, fingerprint_with(evaluation_revision="damaged"))
    path = engines / fingerprint_with(evaluation_revision="damaged").key / "model.bin"
    path.write_bytes(b"cut")
    assert store.match(engines, FINGERPRINT).manifest.fingerprint == FINGERPRINT
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{path} is missing, cut short or was replaced since it was built: this engine is not used"
    )
