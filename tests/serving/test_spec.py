"""What engine is wanted, and what its fingerprint depends on."""

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
    """Longest side and shapes, for weights that were looked into already."""
    monkeypatch.setattr(Weights, "sha256", "0")

    def run(files: Weights, **change: object) -> tuple[object, object]:
        monkeypatch.setattr(spec_module, "identify", lambda _: files)
        found = resolve(dataclasses.replace(wanted, **change), files.path)
        return found.imgsz, found.shapes

    return run


def test_no_size_is_the_models_own(resolved):
    assert resolved(Weights(Path("w.pt"), 512)) == (512, None)
    assert resolved(Weights(Path("w.pt"), 512), imgsz=640) == (640, None)


def test_one_square_is_a_size_where_there_are_no_other_frames(resolved, monkeypatch):
    """On ONNX Runtime a size also allows the smallest rectangle, so that a square is something else."""
    files = Weights(Path("w.pt"), 640)
    assert resolved(files, shapes=SQUARE) == (640, SQUARE)
    assert resolved(dataclasses.replace(files, classifies=True), shapes=SQUARE) == (640, None)
    monkeypatch.setattr(backends, "get", lambda _: Static())
    assert resolved(files, shapes=SQUARE) == (640, None)
    assert resolved(files, shapes=WIDE) == (640, WIDE)
    assert resolved(files, shapes=(*WIDE, *SQUARE)) == (640, (*WIDE, *SQUARE))


def test_the_only_shape_of_an_export_is_its_size(resolved):
    files = Weights(Path("w.onnx"), 640, WIDE[0])
    assert resolved(files, shapes=WIDE) == resolved(files) == (640, None)
    assert resolved(files, shapes=SQUARE) == (640, SQUARE)


def test_an_engine_of_tensorrt_runs_nowhere_else(resolved):
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
def test_code_that_changes_figures_changes_the_fingerprint(wanted, tmp_path, monkeypatch, changed):
    """images, results, masks and datasets were missing."""
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


def test_fingerprints_of_safer_precisions_follow(wanted):
    spec = resolve(dataclasses.replace(wanted, weights=str(DEMO_WEIGHTS), precision="int8"), DEMO_WEIGHTS)
    found = builder._fingerprints(spec)
    assert [each.precision for each in found] == ["int8", "fp16", "fp32"]
    assert {each.weights_sha256 for each in found} == {spec.sha256}
    assert {each.imgsz for each in found} == {640}


def test_each_backend_has_a_revision_of_its_own():
    files = [spec_module._files(backend) for backend in (onnxruntime, openvino)]
    assert len({revision((), *each) for each in files}) == 2
