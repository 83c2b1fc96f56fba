"""engines/<key>/: whole or absent, one builder at a time, and errors that say what to do."""

import contextlib
import dataclasses
import json
import os
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
VERDICT = GateResult("2 pictures", "", fakes.FIGURES, "PyTorch FP32")
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
    """Build and publish, as the builder does."""
    with store.lock(engines, fingerprint.key, lambda: None), store.workplace(engines, fingerprint.key) as place:
        for name, data in files.items():
            (place / name).write_bytes(data)
        model = ModelInfo("pets", "detect", {0: "cat", 1: "dog"}, stride=32, imgsz=640, shapes=None)
        digests = {name: sha256(place / name) for name in files}
        manifest = Manifest(fingerprint, model, VERDICT, {"when": "now"}, digests)
        assert store.publish(engines, place, manifest) == engines / fingerprint.key
    return manifest


@pytest.fixture
def engines(tmp_path) -> Path:
    return tmp_path / "deep" / "engines"


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system of its own, in memory."""
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


def test_what_is_published_is_found(engines):
    manifest = put(engines)
    assert store.find(engines, FINGERPRINT) == manifest
    assert {path.name: path.read_bytes() for path in (engines / KEY).iterdir() if path.name in FILES} == FILES


def test_only_the_engine_is_left_after_a_build(engines):
    put(engines)
    assert [path.name for path in engines.iterdir() if not path.name.endswith(".lock")] == [KEY]


def test_nothing_is_found_where_nothing_was_built(engines):
    assert store.find(engines, FINGERPRINT) is None
    engines.parent.mkdir()
    engines.touch()
    assert store.find(engines, FINGERPRINT) is None


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Fingerprint)])
def test_an_engine_that_differs_in_anything_is_another_one(engines, field):
    put(engines)
    other = dataclasses.replace(FINGERPRINT, **{field: 4 if field in ("imgsz", "batch") else "other"})
    assert other.key != KEY
    assert store.find(engines, other) is None


def test_manifests_of_before_there_were_shapes_are_other_engines_that_differ_in_nothing_else(engines):
    put(engines, dataclasses.replace(FINGERPRINT, batch=4))
    (path,) = engines.glob("*/manifest.json")
    fields = json.loads(path.read_bytes())
    del fields["fingerprint"]["shapes"], fields["model"]["shapes"]
    fields["model"]["static_shape"] = False
    path.write_text(json.dumps(fields))
    assert store.find(engines, FINGERPRINT) is None
    assert store.difference(engines, FINGERPRINT) == f"{path.parent} was built for another batch 4, now 8"


def test_shapes_come_back_from_the_manifest_as_they_were(engines):
    shapes = ((384, 640), (640, 640))
    manifest = dataclasses.replace(put(engines), model=dataclasses.replace(put(engines).model, shapes=shapes))
    (engines / KEY / MANIFEST).write_text(json.dumps(manifest.to_json()))
    assert store.find(engines, FINGERPRINT) == manifest


def test_keys_are_folder_names_that_people_can_read():
    assert KEY.startswith("pets-openvino-fp32-")
    assert "/" not in KEY


def test_publishing_again_takes_the_place_of_the_old_engine(engines):
    put(engines, files={"old.bin": b"old"})
    manifest = put(engines)
    assert store.find(engines, FINGERPRINT) == manifest
    assert not (engines / KEY / "old.bin").exists()


def edited(folder: Path, **fields: object) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def without(folder: Path, field: str) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != field}))


def replaced_by(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


def of_model(folder: Path, **fields: object) -> None:
    edited(folder, model=json.loads((folder / MANIFEST).read_text())["model"] | fields)


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def foldered(path: Path) -> None:
    path.unlink()
    path.mkdir()


def socketed(path: Path) -> None:
    path.unlink()
    os.mknod(path, stat.S_IFSOCK | 0o644)


def moved_away(path: Path) -> None:
    """Out of the engine's folder, with a link to it in its place."""
    path.rename(path.parents[1] / path.name)
    path.symlink_to(path.parents[1] / path.name)


DAMAGES = {  # what happened: (the file named, how)
    "no manifest": ("manifest.json", lambda f: (f / "manifest.json").unlink()),
    "empty manifest": ("manifest.json", lambda f: (f / "manifest.json").write_bytes(b"")),
    "manifest of garbage": ("manifest.json", lambda f: (f / "manifest.json").write_bytes(b"\xff\0garbage")),
    "manifest cut short": ("manifest.json", lambda f: os.truncate(f / "manifest.json", 200)),
    "manifest of nothing": ("manifest.json", lambda f: (f / "manifest.json").write_text("null")),
    "manifest of a list": ("manifest.json", lambda f: (f / "manifest.json").write_text("[]")),
    "manifest without files": ("manifest.json", lambda f: without(f, "files")),
    "manifest with an unknown field": ("manifest.json", lambda f: edited(f, what=1)),
    "files of another type": ("manifest.json", lambda f: edited(f, files=["model.bin"])),
    "model of another type": ("manifest.json", lambda f: edited(f, model={"names": ["cat"]})),
    "manifest of another engine": ("manifest.json", lambda f: edited(f, fingerprint=dataclasses.asdict(OTHER))),
    "file missing": ("model.bin", lambda f: (f / "model.bin").unlink()),
    "file cut short": ("model.bin", lambda f: os.truncate(f / "model.bin", 100)),
    "file empty": ("model.xml", lambda f: os.truncate(f / "model.xml", 0)),
    "extra bytes": ("model.bin", lambda f: (f / "model.bin").write_bytes(FILES["model.bin"] + b"\0")),
    "one bit": ("model.bin", lambda f: (f / "model.bin").write_bytes(FILES["model.bin"].replace(b"w", b"v", 1))),
    "another file in its place": ("model.xml", lambda f: (f / "model.bin").replace(f / "model.xml")),
    "manifest of deep JSON": ("manifest.json", lambda f: (f / "manifest.json").write_text('{"files":' * 100_000)),
    "manifest of a long number": ("manifest.json", lambda f: (f / "manifest.json").write_text("1" * 100_000)),
    "manifest of 300 MB": ("manifest.json", lambda f: os.truncate(f / "manifest.json", 300_000_000)),
    "manifest that is a pipe": ("manifest.json", lambda f: piped(f / "manifest.json")),
    "manifest that is a folder": ("manifest.json", lambda f: foldered(f / "manifest.json")),
    "manifest that is a socket": ("manifest.json", lambda f: socketed(f / "manifest.json")),
    "manifest that is a link": ("manifest.json", lambda f: replaced_by(f / "manifest.json", f / "model.xml")),
    "names of another type": ("manifest.json", lambda f: of_model(f, names=["cat"])),
    "names with other keys": ("manifest.json", lambda f: of_model(f, names={"cat": "cat"})),
    "stride of another type": ("manifest.json", lambda f: of_model(f, stride="32")),
    "shapes of another type": ("manifest.json", lambda f: of_model(f, shapes=[[1, 2, 3]])),
    "digest of another type": ("manifest.json", lambda f: edited(f, files={"model.bin": None})),
    "figures of another type": ("manifest.json", lambda f: edited(f, gate={"on": "", "images": "", "figures": [1]})),
    "link to nowhere": ("model.bin", lambda f: replaced_by(f / "model.bin", Path("/nowhere"))),
    "link to the file itself": ("model.bin", lambda f: moved_away(f / "model.bin")),
    "link in a circle": ("model.bin", lambda f: replaced_by(f / "model.bin", Path("model.bin"))),
    "folder in its place": ("model.bin", lambda f: foldered(f / "model.bin")),
    "pipe in its place": ("model.bin", lambda f: piped(f / "model.bin")),
    "socket in its place": ("model.bin", lambda f: socketed(f / "model.bin")),
    "link to a device": ("model.bin", lambda f: replaced_by(f / "model.bin", Path("/dev/zero"))),
    "file that cannot be read": ("model.bin", lambda f: replaced_by(f / "model.bin", Path("/proc/self/mem"))),
    "file that the manifest does not name": ("model.fp16.bin", lambda f: (f / "model.fp16.bin").write_bytes(b"x")),
}
OTHER = dataclasses.replace(FINGERPRINT, batch=1)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_and_the_file_is_named(engines, damage):
    put(engines)
    name, happen = DAMAGES[damage]
    happen(engines / KEY)
    if damage == "another file in its place":
        name = "model.bin"  # gone, and first in the manifest
    with pytest.raises(Damaged, match=f"{KEY}/{name} "):
        store.find(engines, FINGERPRINT)
    manifest = put(engines)
    assert store.find(engines, FINGERPRINT) == manifest


FOREIGN_NAMES = [
    "", ".", "..", "../model.bin", "sub/model.bin", "/etc/hostname", "model\0.bin", "..\\model.bin", ".hidden",
    "manifest.json", "x" * 10_000, "line\nbreak/", "\x1b[2J/",
]  # fmt: skip


@pytest.mark.parametrize("name", FOREIGN_NAMES)
def test_a_manifest_that_names_something_outside_its_folder_is_refused(engines, name):
    put(engines)
    (engines / "model.bin").write_bytes(b"x")
    (engines / KEY / "sub").mkdir(exist_ok=True)
    (engines / KEY / "sub").rmdir()
    files = {FILE: sha256(engines / KEY / FILE) for FILE in FILES}
    edited(engines / KEY, files=files | {name: sha256(engines / "model.bin")})
    with pytest.raises(Damaged, match=r"not a plain file name|missing") as refused:
        store.find(engines, FINGERPRINT)
    assert len(str(refused.value)) < 500 or name == "x" * 10_000
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("kind", ["link", "file", "pipe"])
def test_a_key_that_is_no_folder_is_damage_and_a_build_takes_its_place(engines, tmp_path, kind):
    put(engines)
    (engines / KEY).rename(tmp_path / "elsewhere")
    {"link": lambda p: p.symlink_to(tmp_path / "elsewhere"), "file": Path.touch, "pipe": os.mkfifo}[kind](engines / KEY)
    with pytest.raises(Damaged, match=f"{KEY} is not a folder"):
        store.find(engines, FINGERPRINT)
    manifest = put(engines)
    assert store.find(engines, FINGERPRINT) == manifest
    assert (tmp_path / "elsewhere").is_dir()


@pytest.mark.parametrize("place", ["", KEY, f"{KEY}/model.bin", f"{KEY}/manifest.json"])
def test_an_engine_that_others_can_write_to_is_refused_and_nothing_is_built_there(engines, place):
    put(engines)
    (engines / place).chmod(0o777)
    with pytest.raises(StoreError, match=f"{place} can be written to by every user.*chmod -R go-w") as refused:
        store.find(engines, FINGERPRINT)
    assert not isinstance(refused.value, Damaged)  # which would be built again
    if not place:
        with pytest.raises(StoreError, match="can be written to"):
            put(engines)


def test_an_engines_folder_that_others_can_write_to_is_refused_before_anything_is_built(engines):
    engines.mkdir(parents=True)
    engines.chmod(0o777)
    with pytest.raises(StoreError, match="can be written to by every user"):
        store.find(engines, FINGERPRINT)


@pytest.mark.parametrize("umask", [0, 0o002, 0o077])
def test_what_is_published_belongs_to_this_user_alone_whatever_the_umask(engines, umask):
    before = os.umask(umask)
    try:
        put(engines)
    finally:
        os.umask(before)
    for path in (engines.parent, engines, *engines.rglob("*")):
        assert not path.stat().st_mode & 0o022, path
    assert store.find(engines, FINGERPRINT)


def test_a_build_under_way_cannot_be_entered_by_others(engines):
    with store.lock(engines, KEY, lambda: None), store.workplace(engines, KEY) as place:
        assert place.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", ["weights", ".cache"])
def test_weights_and_caches_that_others_can_write_to_are_refused(engines, name):
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
def test_other_engines_that_are_damaged_do_not_stop_the_search_for_a_difference(engines, other):
    put(engines, OTHER)
    near = engines / f"{KEY.rpartition('-')[0]}-0"
    near.mkdir()
    if other == "pipe":
        os.mkfifo(near / MANIFEST)
    else:
        text = {"large": '{"fingerprint":{"name":"' + "x" * 2_000_000 + '"}}', "deep": "[" * 100_000}.get(other, "[]")
        (near / MANIFEST).write_text(text)
    assert store.difference(engines, FINGERPRINT) == f"{engines / OTHER.key} was built for another batch 1, now 8"


def test_a_difference_is_one_short_line(engines):
    put(engines, OTHER)
    edited(engines / OTHER.key, fingerprint=dataclasses.asdict(FINGERPRINT) | {"device": "\n\x1b[2J" + "x" * 100_000})
    assert len(store.difference(engines, FINGERPRINT)) < 400
    assert store.difference(engines, FINGERPRINT).isprintable()


def test_a_workplace_is_empty_whatever_a_killed_build_left(engines):
    with store.lock(engines, KEY, lambda: None), store.workplace(engines, KEY) as place:
        where = place
    (where / "sub").mkdir(parents=True)
    (where / "sub" / "half.bin").write_bytes(b"half")
    with store.lock(engines, KEY, lambda: None), store.workplace(engines, KEY) as place:
        assert place == where
        assert list(place.iterdir()) == []


def test_a_failed_build_leaves_nothing_and_its_error_is_its_own(engines):
    with pytest.raises(TypeError):
        put(engines, files={"half.bin": b"half", "model.bin": None})
    assert [path.name for path in engines.iterdir()] == [f".{KEY}.lock"]
    assert store.find(engines, FINGERPRINT) is None


def test_a_workplace_is_no_engine(engines):
    with store.lock(engines, KEY, lambda: None), store.workplace(engines, KEY) as place:
        assert place.parent == engines
        assert place != engines / KEY
        assert store.find(engines, FINGERPRINT) is None


@contextlib.contextmanager
def held_elsewhere(engines: Path, key: str = KEY) -> Iterator[subprocess.Popen]:
    """The lock in another process, until its standard input is closed."""
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


def test_a_lock_keeps_other_processes_out_and_waiting_is_told(engines):
    with held_elsewhere(engines) as process:
        waits = []

        def wait() -> None:
            waits.append((engines / "left").exists())
            process.stdin.close()

        with store.lock(engines, KEY, wait):
            assert waits == [False]
            assert (engines / "left").exists()


def test_a_lock_dies_with_a_killed_holder(engines):
    with held_elsewhere(engines) as process:
        waits = []

        def wait() -> None:
            waits.append(process.poll())
            process.send_signal(signal.SIGKILL)

        with store.lock(engines, KEY, wait):
            assert waits == [None]
            assert process.wait() == -signal.SIGKILL
            assert not (engines / "left").exists()


def test_a_lock_that_is_free_does_not_wait(engines):
    for _ in range(2):
        with store.lock(engines, KEY, lambda: pytest.fail("waited")):
            pass


def test_locks_of_other_engines_are_free(engines):
    with held_elsewhere(engines, OTHER.key), store.lock(engines, KEY, lambda: pytest.fail("waited")):
        pass


def test_a_full_disk_is_told_while_building(small_disk):
    with pytest.raises(StoreError, match=rf"{small_disk}.*the disk is full.*ENGINES_DIR"):
        put(small_disk, files={"model.bin": bytes(1_000_000)})
    assert store.find(small_disk, FINGERPRINT) is None
    assert not [path for path in small_disk.rglob("*") if path.stat().st_size]


def test_a_full_disk_is_told_when_a_library_has_another_word_for_it(small_disk):
    with pytest.raises(StoreError, match="the disk is full"), store.workplace(small_disk, KEY):
        raise RuntimeError("Unable to save model")


def publish_on_the_last_byte(engines: Path, manifest: Manifest) -> None:
    with store.workplace(engines, KEY) as place:
        with contextlib.suppress(OSError), (place / "fill").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(512))
        store.publish(engines, place, dataclasses.replace(manifest, files={}))


def test_a_full_disk_is_told_while_publishing_and_the_old_engine_stays(small_disk):
    old = put(small_disk)
    with pytest.raises(StoreError, match="the disk is full"):
        publish_on_the_last_byte(small_disk, old)
    assert store.find(small_disk, FINGERPRINT) == old


def test_a_read_only_place_is_told(tmp_path):
    with mounted(tmp_path / "fixed", "ro") as folder:
        for engines in (folder, folder / "engines"):
            with pytest.raises(StoreError, match=rf"{folder}.*read-only.*ENGINES_DIR"):
                put(engines)


@pytest.mark.parametrize("engines", ["file", "file/engines"])
def test_a_file_where_the_folder_should_be_is_told(tmp_path, engines):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=rf"{tmp_path / 'file'}.*ENGINES_DIR"):
        put(tmp_path / engines)


def test_an_engine_whose_reference_found_something_carries_no_warning():
    nothing = dataclasses.replace(VERDICT, figures=dataclasses.replace(fakes.FIGURES, boxes=0))
    assert VERDICT.nothing_found() == ""
    assert nothing.nothing_found().startswith("PyTorch FP32 finds nothing in 2 pictures")
    assert "GATE_DIR" in nothing.nothing_found()
    assert GateResult("nothing", "", None).nothing_found() == ""


def elsewhere(**changes: str) -> Fingerprint:
    """As FINGERPRINT, of an engine that was built where more was known."""
    return dataclasses.replace(FINGERPRINT, **changes)


def test_an_engine_matches_however_it_was_calibrated_and_evaluated(engines):
    assert store.match(engines, FINGERPRINT) is None
    other = elsewhere(calibration="48 scenes", evaluation_revision="new")
    manifest = put(engines, other)
    found = store.match(engines, FINGERPRINT)
    assert (found.folder, found.manifest) == (engines / other.key, manifest)


@pytest.mark.parametrize("change", [{"graph_revision": "2"}, {"weights_sha256": "1" * 64}, {"device": "gpu"}])
def test_an_engine_of_other_code_weights_or_device_does_not_match(engines, change):
    put(engines, elsewhere(**change))
    assert store.match(engines, FINGERPRINT) is None


def test_of_several_that_match_the_newest_is_taken(engines):
    for at, revision in enumerate(("b", "a")):
        put(engines, elsewhere(evaluation_revision=revision))
        path = engines / elsewhere(evaluation_revision=revision).key / MANIFEST
        os.utime(path, (at, at))
    assert store.match(engines, FINGERPRINT).manifest.fingerprint.evaluation_revision == "a"


def test_a_damaged_engine_is_passed_over_and_told(engines, caplog):
    """It was passed over in silence, and the server said that there is none."""
    put(engines)
    put(engines, elsewhere(evaluation_revision="damaged"))
    path = engines / elsewhere(evaluation_revision="damaged").key / "model.bin"
    path.write_bytes(b"cut")
    assert store.match(engines, FINGERPRINT).manifest.fingerprint == FINGERPRINT
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{path} is missing, cut short or was replaced since it was built: this engine is not used"
    )
