"""Resolving a build request, and what the fingerprint of its engine depends on."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from app import backends
from app.backends import onnxruntime, openvino
from app.building import builder
from app.errors import SettingsError
from app.serving import spec as spec_module
from app.serving.spec import BuildRequest, resolve, revision
from app.settings import DEMO_WEIGHTS
from app.weights.files import Weights

SQUARE, WIDE = ((640, 640),), ((384, 640),)


class Static:
    STATIC = True
    PRECISIONS = ("fp32",)


@pytest.fixture
def wanted(tmp_path) -> BuildRequest:
    return BuildRequest("w.pt", None, 2, "auto", "onnxruntime", tmp_path)


@pytest.fixture
def resolved(wanted, monkeypatch):
    """Return a function that resolves given weights and returns their longest side and shapes."""
    monkeypatch.setattr(Weights, "sha256", "0")

    def run(files: Weights, **change: object) -> tuple[object, object]:
        monkeypatch.setattr(spec_module, "identify", lambda _: files)
        found = resolve(dataclasses.replace(wanted, **change), files.path)
        return found.imgsz, found.shapes

    return run


def test_imgsz_defaults_to_the_size_of_the_model(resolved):
    assert resolved(Weights(Path("w.pt"), 512)) == (512, None)
    assert resolved(Weights(Path("w.pt"), 512), imgsz=640) == (640, None)


def test_one_square_shape_becomes_imgsz_if_the_backend_has_no_other_shapes(resolved, monkeypatch):
    """On ONNX Runtime an imgsz also allows smaller rectangles, so that a square shape differs from it."""
    files = Weights(Path("w.pt"), 640)
    assert resolved(files, shapes=SQUARE) == (640, SQUARE)
    assert resolved(dataclasses.replace(files, classifies=True), shapes=SQUARE) == (640, None)
    monkeypatch.setattr(backends, "get", lambda _: Static())
    assert resolved(files, shapes=SQUARE) == (640, None)
    assert resolved(files, shapes=WIDE) == (640, WIDE)
    assert resolved(files, shapes=(*WIDE, *SQUARE)) == (640, (*WIDE, *SQUARE))


def test_the_only_shape_of_an_export_becomes_its_imgsz(resolved):
    files = Weights(Path("w.onnx"), 640, WIDE[0])
    assert resolved(files, shapes=WIDE) == resolved(files) == (640, None)
    assert resolved(files, shapes=SQUARE) == (640, SQUARE)


def test_a_tensorrt_engine_is_refused_by_other_backends(resolved):
    with pytest.raises(SettingsError, match=r"w\.engine is an engine of tensorrt; BACKEND=onnxruntime cannot run it"):
        resolved(Weights(Path("w.engine"), 640))


@pytest.mark.parametrize(
    "changed",
    [
        *("vision/preprocess.py", "vision/postprocess.py", "vision/masks.py", "vision/formats/jpeg.py"),
        *("evaluation/datasets/__init__.py", "evaluation/datasets/coco.py", "evaluation/gate.py"),
        *("graphs/calibration.py", "weights/metadata.py", "building/builder.py"),
        *("backends/onnxruntime.py", "backends/shapes.py"),
    ],
)
def test_a_change_of_code_that_affects_accuracy_changes_the_fingerprint(wanted, tmp_path, monkeypatch, changed):
    """The code of images, results, masks and datasets was missing from the fingerprint."""
    copy = tmp_path / "app"
    shutil.copytree(
        Path(spec_module.__file__).parents[1], copy, ignore=shutil.ignore_patterns("__pycache__", "api", "bench")
    )
    monkeypatch.setattr(spec_module, "__file__", str(copy / "serving" / "spec.py"))
    monkeypatch.setattr(spec_module.inspect, "getsourcefile", lambda _: str(copy / "backends" / "onnxruntime.py"))
    spec = resolve(wanted, DEMO_WEIGHTS)

    def keys() -> list[str]:
        return [each.key for each in builder._fingerprints(spec)]

    before = keys()
    assert keys() == before
    with (copy / changed).open("a") as file:
        file.write("\n")
    assert not set(keys()) & set(before)


def test_the_fingerprints_of_safer_precisions_follow_the_requested_one(wanted):
    spec = resolve(dataclasses.replace(wanted, weights=str(DEMO_WEIGHTS), precision="int8"), DEMO_WEIGHTS)
    found = builder._fingerprints(spec)
    assert [each.precision for each in found] == ["int8", "fp16", "fp32"]
    assert {each.weights_sha256 for each in found} == {spec.sha256}
    assert {each.imgsz for each in found} == {640}


def test_each_backend_has_its_own_revision():
    files = [spec_module._files(backend) for backend in (onnxruntime, openvino)]
    assert len({revision((), *each) for each in files}) == 2
