"""Weights -> plain ONNX: the refusals and their messages. Valid weights: test_serving_graph.py."""

import pickle
from pathlib import Path

import pytest

from app.errors import WeightsError
from app.graphs import export


def test_other_files_are_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"weights are \.pt or \.onnx files"):
        export.to_plain_onnx(tmp_path / "model.engine", None, tmp_path)


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path(self.target),))


def test_pickled_code_in_weights_is_never_run_even_if_ultralytics_was_imported_before(tmp_path):
    import torch
    import ultralytics.nn.tasks

    ultralytics.nn.tasks.SAFE_LOAD = False  # its state if it was imported before

    payload = Payload()
    payload.target = str(tmp_path / "was-run")
    torch.save({"model": payload}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match=r"evil\.pt"):
        export.to_plain_onnx(tmp_path / "evil.pt", None, tmp_path)
    assert not (tmp_path / "was-run").exists()
    assert pickle.dumps(payload)  # the payload is valid


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("ultralytics.utils.downloads.attempt_download_asset", str)
    with pytest.raises(WeightsError, match="Without a network, copy it to") as error:
        export.fetch("yolov8n.pt", tmp_path)
    assert "WEIGHTS=/path/to/yolov8n.pt" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_downloaded_weights_are_stored_complete_under_their_name(tmp_path, monkeypatch):
    monkeypatch.setattr("ultralytics.utils.downloads.attempt_download_asset", lambda path: path.write_bytes(b"all"))
    assert export.fetch("yolov8n.pt", tmp_path) == tmp_path / "yolov8n.pt"
    assert (tmp_path / "yolov8n.pt").read_bytes() == b"all"
