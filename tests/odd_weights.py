"""Files and folders that users may pass as weights and that cannot be served."""

import json
import os
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from app.settings import DEMO_WEIGHTS

VALID = DEMO_WEIGHTS.read_bytes()


def checkpoint() -> dict[str, Any]:
    return torch.load(DEMO_WEIGHTS, map_location="cpu", weights_only=False)


def model_of(state: dict[str, Any]) -> nn.Module:
    return state.get("ema") or state["model"]


def unknown_module(module: str, name: str) -> nn.Module:
    """Return an object of a class that no library has."""
    for i in range(module.count(".") + 1):
        path = ".".join(module.split(".")[: i + 1])
        sys.modules.setdefault(path, types.ModuleType(path))
    made = type(name, (nn.Module,), {"__module__": module})
    setattr(sys.modules[module], name, made)
    return made()


def saved(path: Path, content: Any, **options: Any) -> None:
    torch.save(content, path, **options)


def with_part(path: Path, part: nn.Module) -> None:
    state = checkpoint()
    model_of(state).model[0].extra = part
    torch.save(state, path)


class Touch:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


def parallel(path: Path, kind: type[nn.Module]) -> None:
    """Save the model inside this class. Skips the `__getstate__` of the class, which needs several processes."""
    state = checkpoint()
    wrapped = kind.__new__(kind)
    nn.Module.__init__(wrapped)
    wrapped.module = model_of(state)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "__getstate__", object.__getstate__, raising=False)
        torch.save({**state, "ema": None, "model": wrapped}, path)


def archive(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as made:
        for name in names:
            made.writestr(name, "content")


def folder(path: Path, *names: str) -> None:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(b"content")


def onnx_of(path: Path, *, location: str = "", edit: Callable[[onnx.ModelProto], None] = lambda _: None) -> None:
    """Save a model of one convolution; if `location` is set, with its weights in that file."""
    weight = onnx.numpy_helper.from_array(torch.zeros(64, 3, 3, 3).numpy(), "w")
    node = onnx.helper.make_node("Conv", ["images", "w"], ["y"])
    ends = [
        onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in (("images", (1, 3, 64, 64)), ("y", None))
    ]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [weight]))
    edit(model)
    external = {"save_as_external_data": True, "location": location, "size_threshold": 0} if location else {}
    onnx.save(model, path, **external)


def relocated(path: Path, location: str) -> None:
    """Save a model whose weights are at a location that must not be read."""
    onnx_of(path, location="x" * len(location))
    path.write_bytes(path.read_bytes().replace(b"x" * len(location), location.encode()))


def cut_data(path: Path) -> None:
    onnx_of(path, location="cut.data")
    (path.parent / "cut.data").write_bytes(b"\0" * 100)


def missing_data(path: Path) -> None:
    onnx_of(path, location="gone.data")
    (path.parent / "gone.data").unlink()


def safetensors(path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))


def torchscript(path: Path) -> None:
    archive(path, "script/data.pkl", "script/constants.pkl", "script/code/__torch__.py")


def state_dict(path: Path) -> None:
    saved(path, model_of(checkpoint()).state_dict())


# file name -> function that makes it, text of the message after the file name
ODD: dict[str, tuple[Callable[[Path], object], str]] = {
    "lfs.pt": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n"), "git lfs pull"),
    "lfs.onnx": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "is a Git LFS pointer"),
    "annex.pt": (lambda p: p.write_text("/annex/objects/MD5-s1--0\n"), "git annex get"),
    "page.pt": (lambda p: p.write_text("\n<!DOCTYPE html><html><title>Sign in</title>"), "is a web page"),
    "denied.pt": (lambda p: p.write_text('<?xml version="1.0"?><Error/>'), "is a text in XML or HTML"),
    "message.pt": (lambda p: p.write_text('{"message": "Not Found"}'), "is a text in JSON"),
    "text.pt": (lambda p: p.write_text("Entry not found"), "is a text that begins with 'Entry not found', not weights"),
    "text16.pt": (lambda p: p.write_text("Entry not found", "utf-16"), "is a text that begins with 'Entry not found'"),
    "network.pt": (lambda p: p.write_text("nc: 80\nbackbone:\n  - [-1, 1, Conv]\n"), "describes a network"),
    "empty.pt": (lambda p: p.write_bytes(b""), "is empty: download"),
    "empty.onnx": (lambda p: p.write_bytes(b""), "is empty: download"),
    "one-byte.pt": (lambda p: p.write_text("\n"), "holds nothing in its 1 bytes"),
    "zeros.onnx": (lambda p: p.write_bytes(bytes(900)), "holds nothing in its 900 bytes"),
    "cut.pt": (lambda p: p.write_bytes(VALID[:100_000]), "is cut short"),
    "cut-by-ten.pt": (lambda p: p.write_bytes(VALID[:-10]), "is cut short"),
    "cut.onnx": (lambda p: [onnx_of(p), p.write_bytes(p.read_bytes()[:-9])], "is cut short or damaged"),
    "noise.pt": (lambda p: p.write_bytes(b"\xfe\x03\x91" * 500), "is not a known kind of file"),
    "noise.onnx": (lambda p: p.write_bytes(b"\xfe\x03\x91" * 500), "is not a known kind of file"),
    "state-dict.pt": (state_dict, "holds a state dict"),
    "nested-state-dict.pt": (lambda p: saved(p, {"state_dict": {"w": torch.ones(1)}}), "holds a state dict"),
    "nothing.pt": (lambda p: saved(p, {"epoch": 1}), "holds no model"),
    "bare.pt": (lambda p: saved(p, model_of(checkpoint())), "holds a bare DetectionModel"),
    "data-parallel.pt": (lambda p: parallel(p, nn.DataParallel), "holds its model inside DataParallel"),
    "distributed.pt": (
        lambda p: parallel(p, nn.parallel.DistributedDataParallel),
        "ckpt['model'] = ckpt['model'].module",
    ),
    "legacy.pt": (lambda p: saved(p, checkpoint(), _use_new_zipfile_serialization=False), "before PyTorch 1.6"),
    "yolov5.pt": (
        lambda p: saved(p, {"model": unknown_module("models.yolo", "Model")}),
        "is a checkpoint of YOLOv5 or YOLOv7",
    ),
    "yolov5-legacy.pt": (
        lambda p: saved(p, {"model": unknown_module("models.yolo", "Model")}, _use_new_zipfile_serialization=False),
        "is a checkpoint of YOLOv5 or YOLOv7",
    ),
    "custom.pt": (lambda p: with_part(p, unknown_module("my.blocks", "Attention")), "needs my.blocks.Attention"),
    "code.pt": (lambda p: saved(p, {"model": Touch(p.parent / "touched")}), "third-party code is not run"),
    "pickle.pt": (lambda p: p.write_bytes(pickle.dumps(Touch(p.parent / "touched"))), "is cut short or damaged"),
    "torchscript.pt": (torchscript, "is a TorchScript file"),
    "tensors.safetensors": (safetensors, "is a safetensors file"),
    "tensors.pt": (safetensors, "is a safetensors file"),
    "download.pt": (lambda p: archive(p, "weights/best.pt"), "unpack it and use weights/best.pt"),
    "keras.pt": (lambda p: archive(p, "config.json", "model.weights.h5"), "is a Keras model"),
    "no-zip.pt": (lambda p: p.write_bytes(b"PK\3\4" + bytes(range(200))), "or a damaged ZIP archive"),
    "packed.pt": (lambda p: p.write_bytes(b"\x1f\x8b\x08" + bytes(range(90))), "is a gzip archive: unpack it"),
    "model.tflite": (lambda p: p.write_bytes(b"\x1c\0\0\0TFL3" + bytes(90)), "is a TensorFlow Lite model"),
    "photo.pt": (lambda p: p.write_bytes(b"\xff\xd8\xff\xe0" + bytes(90)), "is a JPEG image"),
    "plan.engine": (lambda p: p.write_bytes(b"ftrt" + bytes(90)), "is a TensorRT plan without Ultralytics' header"),
    "renamed.onnx": (lambda p: p.write_bytes(VALID), "holds PyTorch weights: rename it to renamed.pt"),
    "best.pth": (lambda p: p.write_bytes(VALID), "holds PyTorch weights: rename it to best.pt"),
    "renamed.pt": (onnx_of, "holds an ONNX model: rename it to renamed.onnx"),
    "no-data.onnx": (missing_data, "has its weights in gone.data, which is not next to it"),
    "cut-data.onnx": (cut_data, "is cut short: it needs 6912 bytes"),
    "above.onnx": (lambda p: relocated(p, "../other.data"), "has weights in ../other.data, outside of its folder"),
    "absolute.onnx": (lambda p: relocated(p, "/etc/other.data"), "has weights in /etc/other.data, outside"),
    "x_openvino_model": (lambda p: folder(p, "x.xml", "x.bin", "metadata.yaml"), "is a folder of `format=openvino`"),
    "x_saved_model": (lambda p: folder(p, "saved_model.pb", "metadata.yaml"), "is a folder of `format=saved_model`"),
    "x_ncnn_model": (lambda p: folder(p, "model.ncnn.param", "metadata.yaml"), "is a folder of `format=ncnn`"),
    "train": (lambda p: folder(p, "args.yaml", "weights/best.pt"), "train/weights/best.pt"),
    "nothing": (lambda p: p.mkdir(), "is a folder: use the .pt or .onnx"),
}
