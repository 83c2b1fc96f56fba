"""ONNX files, read without the onnx package."""

import numpy as np
import odd_weights
import onnx
import pytest

from app.weights import onnx_file


def test_read_returns_the_same_metadata_as_onnx(exported):
    path = exported("segment", opset=12, dynamic=True)
    found, model = onnx_file.read(path), onnx.load(path)
    assert found.facts == {fact.key: fact.value for fact in model.metadata_props}
    assert (found.shape, found.imgsz, found.data, found.classifies) == (None, 96, {}, False)
    assert onnx_file.read(exported("classify", opset=9)).classifies


def test_a_fixed_input_has_a_shape_and_its_longest_side_is_imgsz(tmp_path):
    def edit(model: onnx.ModelProto) -> None:
        for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 3, 384, 640), strict=True):
            dim.dim_value = size

    odd_weights.onnx_of(tmp_path / "w.onnx", edit=edit)
    found = onnx_file.read(tmp_path / "w.onnx")
    assert (found.shape, found.imgsz) == ((384, 640), 640)


def test_every_data_file_is_listed_with_its_required_bytes(tmp_path):
    odd_weights.onnx_of(tmp_path / "w.onnx", location="w.data")
    assert onnx_file.read(tmp_path / "w.onnx").data == {"w.data": (tmp_path / "w.data").stat().st_size}


def test_damaged_files_raise_only_value_error(tmp_path):
    odd_weights.onnx_of(tmp_path / "w.onnx")
    valid = (tmp_path / "w.onnx").read_bytes()
    for end in range(1, len(valid), 97):
        (tmp_path / "cut.onnx").write_bytes(valid[:end])
        with pytest.raises(ValueError, match=r"it ends too early|it has no graph"):
            onnx_file.read(tmp_path / "cut.onnx")
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(valid)
        for place in (*rng.integers(0, 40, 2), *rng.integers(len(valid) - 200, len(valid), 4)):
            damaged[place] = rng.integers(0, 256)
        (tmp_path / "odd.onnx").write_bytes(damaged)
        try:
            onnx_file.read(tmp_path / "odd.onnx")
        except ValueError:
            continue
