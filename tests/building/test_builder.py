"""Building: which engines are found again, built again, or never stored."""

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from fakes import rows_of

from app import backends
from app.backends import onnxruntime
from app.building import builder
from app.errors import BackendUnavailable, GateFailed, SettingsError, StoreError, WeightsError
from app.evaluation import datasets
from app.serving import spec as spec_module
from app.serving.spec import BuildRequest
from app.settings import DEMO_WEIGHTS

pytestmark = pytest.mark.usefixtures("needs_engine")

SIDE = 160


@pytest.fixture(autouse=True, scope="module")
def few_scenes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(datasets.SCENES, "detect", 8)
        yield


@pytest.fixture
def build_request(tmp_path) -> BuildRequest:
    """The fastest build: ONNX Runtime at a small size."""
    return BuildRequest(str(DEMO_WEIGHTS), SIDE, 2, "auto", "onnxruntime", tmp_path / "engines")


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    """An engines folder with the engine of that request, for copying."""
    folder = tmp_path_factory.mktemp("stored") / "engines"
    builder.build(BuildRequest(str(DEMO_WEIGHTS), SIDE, 2, "auto", "onnxruntime", folder), lambda _: None)
    return folder


@pytest.fixture
def with_engine(build_request, stored) -> BuildRequest:
    shutil.copytree(stored, build_request.engines)
    return build_request


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.exists() else []


def test_phases_are_reported_in_order_and_the_engine_is_found_again(build_request):
    phases: list[str] = []
    stored = builder.build(build_request, lambda progress: phases.append(progress.phase))
    assert phases == ["graph", "engine", "check", "publish"]
    assert builder.find(build_request) == stored
    again: list[str] = []
    assert builder.build(build_request, lambda progress: again.append(progress.phase)) == stored
    assert again == []


def test_manifest_has_model_gate_result_and_build_details(with_engine):
    manifest = json.loads((builder.find(with_engine).folder / "manifest.json").read_text())
    assert manifest["model"]["imgsz"] == SIDE
    assert manifest["model"]["names"]["0"] == "red circle"
    assert manifest["gate"]["on"] == "8 demo scenes"
    assert manifest["gate"]["figures"]["agreement"] == 1
    assert manifest["gate"]["figures"]["boxes"] > 20
    assert manifest["gate"]["figures"]["map50_95"] == pytest.approx(manifest["gate"]["figures"]["reference_map50_95"])
    assert manifest["built"]["versions"].keys() >= {"torch", "ultralytics", "onnxruntime"}
    assert manifest["files"].keys() == {"model.onnx"}
    assert manifest["gate"]["reference"] == "PyTorch FP32"


@pytest.mark.parametrize(
    "change",
    [{"imgsz": 192}, {"imgsz": None}, {"shapes": ((96, 160),)}, {"batch": 3}, {"backend": "openvino"}],
    ids=str,
)
def test_another_build_request_is_another_engine(with_engine, change):
    assert builder.find(dataclasses.replace(with_engine, **change)) is None


def test_every_shape_is_evaluated_and_the_manifest_lists_the_shapes(build_request):
    shapes = ((96, 160), (160, 160))
    stored = builder.build(dataclasses.replace(build_request, shapes=shapes), lambda _: None)
    assert stored.manifest.gate.figures.images == 2 * 8
    assert stored.manifest.gate.on == "8 demo scenes, the worst of 96x160,160x160"
    assert stored.manifest.files.keys() == {"model.onnx"}
    model = json.loads((stored.folder / "manifest.json").read_text())["model"]
    assert (model["imgsz"], model["shapes"]) == (SIDE, [[96, 160], [160, 160]])
    assert builder.find(dataclasses.replace(build_request, shapes=shapes)) == stored


def test_a_side_that_is_no_multiple_of_the_stride_is_refused(build_request):
    with pytest.raises(WeightsError, match="IMGSZ=96x100: 100 is not a multiple of the model's stride 32: use 96"):
        builder.build(dataclasses.replace(build_request, imgsz=None, shapes=((96, 100), (160, 160))), lambda _: None)


def test_other_weights_under_the_same_name_are_another_engine(with_engine, tmp_path):
    other = tmp_path / DEMO_WEIGHTS.name
    shutil.copy(DEMO_WEIGHTS, other)
    assert builder.find(dataclasses.replace(with_engine, weights=str(other))) is not None
    with other.open("ab") as file:
        file.write(b"\0")
    assert builder.find(dataclasses.replace(with_engine, weights=str(other))) is None


def test_another_version_of_the_backend_or_of_the_graph_code_is_another_engine(with_engine, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(onnxruntime, "version", lambda: "0.0")
        assert builder.find(with_engine) is None
    with monkeypatch.context() as patch:
        patch.setattr(spec_module, "revision", lambda *_: "other")
        assert builder.find(with_engine) is None
    assert builder.find(with_engine) is not None


def test_the_default_size_and_the_same_explicit_size_are_one_engine(tmp_path, exported):
    """Earlier IMGSZ=640 and no IMGSZ took two builds of minutes each."""
    request = BuildRequest(str(exported("obb", opset=12)), None, 2, "auto", "onnxruntime", tmp_path / "engines")
    stored = builder.build(request, lambda _: None)
    for change in ({"imgsz": 96}, {"imgsz": 96, "shapes": ((96, 96),)}):
        assert builder.find(dataclasses.replace(request, **change)) == stored
    assert stored.manifest.fingerprint.imgsz == 96


def test_a_changed_external_data_file_is_another_engine(tmp_path, exported):
    """Earlier the engine of the old weights was served."""
    path = tmp_path / "external.onnx"
    onnx.save(onnx.load(exported("obb", opset=12)), path, save_as_external_data=True, location="external.onnx.data")
    request = BuildRequest(str(path), None, 2, "auto", "onnxruntime", tmp_path / "engines")
    assert builder.build(request, lambda _: None) == builder.find(request)
    data = bytearray((tmp_path / "external.onnx.data").read_bytes())
    data[-1] ^= 1
    (tmp_path / "external.onnx.data").write_bytes(data)
    assert builder.find(request) is None


def test_an_engine_whose_reference_found_nothing_logs_that_at_every_start(tmp_path, exported, caplog):
    gray = tmp_path / "gray"
    gray.mkdir()
    cv2.imwrite(str(gray / "gray.png"), np.full((96, 96, 3), 114, np.uint8))
    request = BuildRequest(
        str(exported("obb", opset=12)), None, 2, "auto", "onnxruntime", tmp_path / "engines", gate=gray
    )
    for start in (lambda: builder.build(request, lambda _: None), lambda: builder.find(request)):
        caplog.clear()
        assert start().manifest.gate.figures.boxes == 0
        assert "ONNX Runtime FP32 on the plain export finds nothing in 1 images of" in caplog.text
        assert "GATE_DIR" in caplog.text


def test_finding_an_engine_needs_neither_torch_nor_ultralytics_nor_onnx(with_engine, monkeypatch):
    for name in ("torch", "ultralytics", "onnx", "app.graphs.serving_graph", "app.graphs.export"):
        monkeypatch.setitem(sys.modules, name, None)
    assert builder.find(with_engine) is not None


def test_a_damaged_engine_is_built_again_and_one_log_line_names_the_file(with_engine, caplog):
    stored = builder.find(with_engine)
    (stored.folder / "model.onnx").write_bytes(b"swapped")
    with caplog.at_level(logging.WARNING):
        assert builder.find(with_engine) is None
    (line,) = caplog.messages
    assert str(stored.folder / "model.onnx") in line
    assert "building the engine again" in line
    caplog.clear()
    assert builder.build(with_engine, lambda _: None).folder == stored.folder
    assert (stored.folder / "model.onnx").stat().st_size > 1000


class WrongEngine:
    """ONNX Runtime with an engine that changes frames or rows."""

    PRECISIONS = ("fp32",)
    INSTANCES = 1
    STATIC = False

    def __init__(self, frames=lambda frames: frames, rows=lambda rows: rows):
        self.frames, self.rows = frames, rows
        self.version, self.build, self.device = onnxruntime.version, onnxruntime.build, onnxruntime.device

    def load(self, folder, instances, threads):
        engine = onnxruntime.load(folder, instances, threads)
        correct = engine.infer
        engine.infer = lambda instance, frames: [
            (rows,) for rows in self.rows(rows_of(correct(instance, self.frames(np.stack(frames)))))
        ]
        return engine


CHANGES = {
    "BGR for RGB": {"frames": lambda frames: frames[..., ::-1]},
    "off by one pad": {"frames": lambda frames: np.roll(frames, 1, axis=2)},
    "wrong scale": {"frames": lambda frames: frames // 2},
    "classes shifted": {"rows": lambda rows: rows + np.float32([0, 0, 0, 0, 0, 1])},
    "boxes moved": {"rows": lambda rows: rows + np.float32([1, 0, 1, 0, 0, 0])},
    "scores raised": {"rows": lambda rows: rows + np.float32([0, 0, 0, 0, 0.01, 0])},
    "not a number": {"rows": lambda rows: rows * np.float32(np.nan)},
    "first image for all": {"rows": lambda rows: np.repeat(rows[:1], len(rows), axis=0)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_engine_with_wrong_boxes_is_not_stored(build_request, monkeypatch, change):
    backend = WrongEngine(**CHANGES[change])
    monkeypatch.setattr(backends, "get", lambda _: backend)
    monkeypatch.setattr(spec_module.inspect, "getsourcefile", lambda _: onnxruntime.__file__)
    monkeypatch.setattr(backends, "choose", lambda _: "onnxruntime")
    with pytest.raises(GateFailed, match="no precision of the engine gives the boxes of PyTorch FP32"):
        builder.build(build_request, lambda _: None)
    (refused,) = visible(build_request.engines)
    assert [path.name for path in (build_request.engines / refused).iterdir()] == ["manifest.json"]
    with pytest.raises(GateFailed):  # known from the stored result, without a build
        builder.find(build_request)


def test_onnx_weights_are_built_and_checked_without_torch(build_request, tmp_path, monkeypatch):
    from app.graphs import export

    plain = export.to_plain_onnx(DEMO_WEIGHTS, SIDE, tmp_path)
    for name in ("torch", "ultralytics"):
        monkeypatch.setitem(sys.modules, name, None)
    stored = builder.build(dataclasses.replace(build_request, weights=str(plain)), lambda _: None)
    assert stored.manifest.gate.figures.rows_agreement == 1
    assert "sample images" in stored.manifest.gate.on
    assert stored.manifest.gate.reference == "ONNX Runtime FP32 on the plain export"
    assert stored.manifest.model.name == "weights"


def test_pytorch_backend_refuses_onnx_weights(build_request, tmp_path):
    from app.graphs import export

    plain = export.to_plain_onnx(DEMO_WEIGHTS, SIDE, tmp_path)
    with pytest.raises(WeightsError, match=r"BACKEND=pytorch needs \.pt weights, not "):
        builder.build(dataclasses.replace(build_request, weights=str(plain), backend="pytorch"), lambda _: None)


def test_building_without_the_build_extra_names_the_pip_command(build_request, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    for name in ("app.graphs.export", "app.graphs.serving_graph"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.delattr(name, raising=False)
    with pytest.raises(BackendUnavailable, match=r"pip install 'yolopard\[build\]'"):
        builder.build(build_request, lambda _: None)


def test_unsupported_precision_is_refused_with_the_supported_ones(build_request):
    with pytest.raises(SettingsError, match="PRECISION=fp16 does not exist on pytorch: use fp32"):
        builder.find(dataclasses.replace(build_request, backend="pytorch", precision="fp16"))


def test_downloaded_weights_that_other_users_can_write_to_are_refused(build_request):
    (build_request.engines / "weights").mkdir(parents=True)
    weights = build_request.engines / "weights" / "yolov8n.pt"
    weights.write_bytes(DEMO_WEIGHTS.read_bytes())
    weights.chmod(0o666)
    with pytest.raises(StoreError, match=r"yolov8n\.pt can be written to by every user.*chmod -R go-w"):
        builder.find(dataclasses.replace(build_request, weights="yolov8n.pt"))


def test_invalid_weights_are_refused_before_anything_is_built(build_request, tmp_path, monkeypatch):
    """A clone without https://git-lfs.com has pointers."""
    (tmp_path / "w.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    monkeypatch.setitem(sys.modules, "torch", None)
    for run in (builder.find, lambda request: builder.build(request, lambda _: None)):
        with pytest.raises(WeightsError, match=r"w\.pt is a Git LFS pointer"):
            run(dataclasses.replace(build_request, weights=str(tmp_path / "w.pt")))
    with pytest.raises(WeightsError, match="is a folder: use the file"):
        builder.find(dataclasses.replace(build_request, weights=str(DEMO_WEIGHTS.parent)))
    with pytest.raises(WeightsError, match=r"gone\.onnx: no such file"):  # .onnx weights are never downloaded
        builder.find(dataclasses.replace(build_request, weights="gone.onnx"))


def test_missing_weights_file_is_named(build_request):
    with pytest.raises(WeightsError, match=r"no/such/file\.pt: no such file"):
        builder.find(dataclasses.replace(build_request, weights="no/such/file.pt"))


def test_an_engines_folder_that_is_a_file_is_refused_with_the_setting(build_request):
    build_request.engines.write_text("")
    with pytest.raises(StoreError, match=f"{build_request.engines}: .*ENGINES_DIR"):
        builder.build(build_request, lambda _: None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize("mib", [4, 10, 20])
def test_a_full_disk_at_any_step_is_reported_with_a_remedy(build_request, mib):
    build_request.engines.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=755", "tmpfs", str(build_request.engines)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with pytest.raises(StoreError, match="the disk is full: free some space, or set ENGINES_DIR to another folder"):
            builder.build(build_request, lambda _: None)
        assert visible(build_request.engines) == []
    finally:
        subprocess.run(["umount", str(build_request.engines)], check=True)


def test_a_failed_build_stores_nothing(build_request, monkeypatch):
    def broken(*_):
        raise RuntimeError("half way")

    monkeypatch.setattr(onnxruntime, "build", broken)
    with pytest.raises(RuntimeError):
        builder.build(build_request, lambda _: None)
    assert [path.name for path in build_request.engines.iterdir() if not path.name.endswith(".lock")] == []
    assert builder.find(build_request) is None
