"""What is to be built, and what its fingerprint depends on."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from app import backends
from app.backends import onnxruntime, openvino
from app.serving import spec
from app.serving.spec import Order, fingerprints, sized
from app.errors import SettingsError
from app.settings import DEMO_WEIGHTS
from app.weights.weights import Weights

SQUARE, WIDE = ((640, 640),), ((384, 640),)


class Static:
    STATIC = True


@pytest.fixture
def wanted(tmp_path) -> Order:
    return Order("w.pt", None, 2, "auto", "onnxruntime", tmp_path)


def resolved(wanted: Order, files: Weights, **change: object) -> tuple[object, object]:
    found = sized(dataclasses.replace(wanted, **change), files)
    return found.imgsz, found.shapes


def test_no_size_is_the_models_own(wanted):
    assert resolved(wanted, Weights(Path("w.pt"), 512)) == (512, None)
    assert resolved(wanted, Weights(Path("w.pt"), 512), imgsz=640) == (640, None)


def test_one_square_is_a_size_where_there_are_no_other_frames(wanted, monkeypatch):
    """On ONNX Runtime a size also allows the smallest rectangle, so that a square is something else."""
    files = Weights(Path("w.pt"), 640)
    assert resolved(wanted, files, shapes=SQUARE) == (640, SQUARE)
    assert resolved(wanted, dataclasses.replace(files, classifies=True), shapes=SQUARE) == (640, None)
    monkeypatch.setattr(backends, "get", lambda _: Static())
    assert resolved(wanted, files, shapes=SQUARE) == (640, None)
    assert resolved(wanted, files, shapes=WIDE) == (640, WIDE)
    assert resolved(wanted, files, shapes=(*WIDE, *SQUARE)) == (640, (*WIDE, *SQUARE))


def test_the_only_shape_of_an_export_is_its_size(wanted):
    files = Weights(Path("w.onnx"), 640, WIDE[0])
    assert resolved(wanted, files, shapes=WIDE) == resolved(wanted, files) == (640, None)
    assert resolved(wanted, files, shapes=SQUARE) == (640, SQUARE)


def test_an_engine_of_tensorrt_runs_nowhere_else(wanted):
    with pytest.raises(SettingsError, match=r"w\.engine is a TensorRT engine; BACKEND=onnxruntime cannot run it"):
        fingerprints(wanted, Weights(Path("w.engine"), 640))


@pytest.mark.parametrize(
    "changed",
    [
        *("vision/images.py", "vision/results.py", "vision/masks.py", "vision/formats/jpeg.py"),
        *("evaluation/datasets/__init__.py", "evaluation/datasets/coco.py", "evaluation/gate.py"),
        *("graphs/calibration.py", "weights/metadata.py", "building/builder.py"),
        *("backends/onnxruntime.py", "backends/shapes.py"),
    ],
)
def test_code_that_changes_figures_changes_the_fingerprint(wanted, tmp_path, monkeypatch, changed):
    """images, results, masks and datasets were missing."""
    copy = tmp_path / "app"
    shutil.copytree(Path(order.__file__).parents[1], copy, ignore=shutil.ignore_patterns("__pycache__", "api", "bench"))
    monkeypatch.setattr(order, "__file__", str(copy / "building" / "order.py"))
    backend = str(copy / "backends" / "onnxruntime.py")
    before = order._revision(backend)
    assert order._revision(backend) == before
    with (copy / changed).open("a") as file:
        file.write("\n")
    assert order._revision(backend) != before


def test_fingerprints_of_safer_precisions_follow(wanted):
    files = Weights(DEMO_WEIGHTS, 640)
    found = fingerprints(sized(dataclasses.replace(wanted, precision="int8"), files), files)
    assert [each.precision for each in found] == ["int8", "fp16", "fp32"]
    assert {each.weights_sha256 for each in found} == {files.sha256}
    assert {each.imgsz for each in found} == {640}
    assert len({order._revision(module.__file__) for module in (onnxruntime, openvino)}) == 2
