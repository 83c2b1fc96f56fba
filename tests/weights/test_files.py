"""Identification of weights by their content, without torch and onnx. Files that cannot be served are refused."""

import shutil
import subprocess
import sys

import odd_weights
import onnx
import pytest
from odd_weights import ODD

from app.errors import WeightsError
from app.settings import DEMO, DEMO_WEIGHTS
from app.weights import files


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ODD)
def test_a_file_that_cannot_be_served_is_refused_in_one_line_with_its_path(tmp_path, name):
    make, text = ODD[name]
    path = tmp_path / name
    make(path)
    with pytest.raises(WeightsError) as error:
        files.identify(path)
    assert text in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "touched").exists()


def test_identify_returns_the_size_of_valid_weights():
    assert files.identify(DEMO_WEIGHTS).imgsz == 640
    for task, side in (("segment", 160), ("pose", 160), ("obb", 160), ("classify", 96)):
        found = files.identify(DEMO / f"yolov8-demo-{task}.pt")
        assert (found.imgsz, found.shape, found.classifies) == (side, None, task == "classify")


def test_identify_returns_size_and_shape_of_exports(exported):
    fixed, open_ = (files.identify(exported("detect", opset=12, dynamic=dynamic)) for dynamic in (False, True))
    assert (fixed.imgsz, fixed.shape) == (96, (96, 96))
    assert (open_.imgsz, open_.shape) == (96, None)
    assert files.identify(exported("classify", opset=9)).classifies


def test_identify_returns_size_and_shape_of_an_engine_from_its_header(tmp_path):
    header = b'{"task": "detect", "imgsz": [384, 640]}'
    (tmp_path / "w.engine").write_bytes(len(header).to_bytes(4, "little") + header + b"ftrt" + bytes(99))
    found = files.identify(tmp_path / "w.engine")
    assert (found.imgsz, found.shape) == (640, (384, 640))
    assert files.engine_header(tmp_path / "w.engine")[1] == 4 + len(header)


def test_the_digest_is_of_the_content_and_covers_the_data_files_of_an_export(tmp_path):
    copy = tmp_path / "copy.pt"
    shutil.copy(DEMO_WEIGHTS, copy)
    assert files.identify(copy).sha256 == files.identify(DEMO_WEIGHTS).sha256
    odd_weights.onnx_of(tmp_path / "external.onnx", location="w.data")
    found = files.identify(tmp_path / "external.onnx")
    before = found.sha256
    assert found.data == (tmp_path / "w.data",)
    content = bytearray((tmp_path / "w.data").read_bytes())
    content[10] ^= 1
    (tmp_path / "w.data").write_bytes(content)
    assert files.identify(tmp_path / "external.onnx").sha256 != before


def test_every_data_file_that_an_export_references_is_listed(tmp_path):
    """Data files of initializers and of tensors inside nodes."""

    def edit(model: onnx.ModelProto) -> None:
        for name in ("a.data", "b.data"):
            (tmp_path / name).write_bytes(bytes(16))
            tensor = onnx.TensorProto(name=name, data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
            tensor.external_data.add(key="location", value=name)
            if name == "a.data":
                model.graph.initializer.append(tensor)
            else:
                model.graph.node.append(onnx.helper.make_node("Constant", [], [name], value=tensor))

    odd_weights.onnx_of(tmp_path / "w.onnx", edit=edit)
    assert [path.name for path in files.identify(tmp_path / "w.onnx").data] == ["a.data", "b.data"]


def test_identify_imports_neither_torch_nor_onnx(exported):
    code = "import sys; from pathlib import Path; from app.weights import files"
    code += "; [files.identify(Path(path)) for path in sys.argv[1:]]"
    code += "; assert not {'torch', 'ultralytics', 'onnx', 'onnxruntime'} & sys.modules.keys()"
    paths = [str(DEMO_WEIGHTS), str(exported("detect", opset=12))]
    subprocess.run([sys.executable, "-c", code, *paths], check=True)
