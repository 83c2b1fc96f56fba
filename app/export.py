"""Weights -> plain Ultralytics ONNX. With backends/pytorch the only room with torch and ultralytics."""

import ast
import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import WeightsError
from app.graph import require_multiples, require_task
from app.model import Shape

if TYPE_CHECKING:
    import torch

OPSET = 19

# Ultralytics reads these when it is imported: no pip installs of its own, no network unless `fetch` is asked for.
os.environ |= {"YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
os.environ.setdefault("YOLO_OFFLINE", "true")


def fetch(name: str, folder: Path) -> Path:
    """Let Ultralytics download weights of its own, such as yolov8n.pt, into the folder; whole or not at all."""
    os.environ["YOLO_OFFLINE"] = "false"
    from ultralytics.utils.downloads import attempt_download_asset

    target = folder / name
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as partial:
        with contextlib.suppress(Exception):  # whatever stopped it, the file is not there
            attempt_download_asset(Path(partial) / name)
        if not (Path(partial) / name).is_file():
            raise WeightsError(
                f"{name} is no file here and Ultralytics could not download it. Without a network, copy it to "
                f"{target} or give its path: WEIGHTS=/path/to/{name}"
            )
        (Path(partial) / name).replace(target)
    return target


def to_plain_onnx(weights: Path, size: int | Shape | None, folder: Path, *, static: bool = False) -> Path:
    """The weights as Ultralytics' own ONNX export, any batch and any H, W; an .onnx file is taken as it is.

    With `static` H and W are fixed, so that anchors are constants.

    `size` is the longest frame side or a frame's height and width in px, None = the side the model was trained at.
    Raises WeightsError.
    """
    if weights.suffix == ".onnx":
        return _fix_shape(weights, size, folder / "static.onnx") if static else weights
    if weights.suffix != ".pt":
        raise WeightsError(f"{weights}: weights are .pt or .onnx files")
    copy = Path(shutil.copy(weights, folder / "weights.pt"))  # the export lies beside its weights
    model = _load(copy, weights)
    stride = int(max(model.model.stride))
    size = size or _trained_imgsz(model.overrides.get("imgsz"), stride)
    require_multiples(size, stride)
    try:
        plain = model.export(format="onnx", imgsz=size, dynamic=not static, simplify=True, opset=OPSET, device="cpu")
    except Exception as error:
        raise WeightsError(f"{weights}: Ultralytics cannot export it: {_first_line(error, copy, weights)}") from error
    return Path(plain)


def _fix_shape(weights: Path, size: int | Shape | None, target: Path) -> Path:
    """The export with H and W fixed and folded, if they were open; as it is if it is fixed or no export at all."""
    import onnx
    import onnxslim

    with contextlib.suppress(Exception):  # whoever reads it next says what is wrong with it
        model = onnx.load(weights)
        source = model.graph.input[0]
        sides = [dim.dim_value for dim in source.type.tensor_type.shape.dim][2:]
        facts = {fact.key: fact.value for fact in model.metadata_props}
        size = size or max(ast.literal_eval(facts["imgsz"]))
        height, width = (size, size) if isinstance(size, int) else size
        if not all(sides):
            onnx.save(onnxslim.slim(model, input_shapes=[f"{source.name}:1,3,{height},{width}"]), target)
            return target
    return weights


def load_module(weights: Path) -> "torch.nn.Module":
    """The fused FP32 model of .pt weights; its forward gives (head, ...), of segment ((head, protos), ...)."""
    module: torch.nn.Module = _load(weights, weights).model.float().fuse().eval()
    return module


def _load(file: Path, weights: Path) -> Any:
    """Ultralytics' YOLO object; errors name the `weights` that the user gave."""
    from ultralytics import YOLO  # type: ignore[attr-defined]
    from ultralytics.nn import tasks

    # weights_only semantics; the environment variable for it counts only before the first import.
    tasks.SAFE_LOAD = True  # type: ignore[attr-defined]
    try:
        model = YOLO(file)
    except Exception as error:
        raise WeightsError(f"{weights}: Ultralytics cannot load it: {_first_line(error, file, weights)}") from error
    require_task(weights, str(model.task))
    if hasattr(model.model, "end2end"):
        # Of two heads the one with NMS, as Ultralytics itself predicts and exports.
        model.model.end2end = False  # type: ignore[union-attr]
    return model


def _trained_imgsz(imgsz: int | list[int] | None, stride: int) -> int:
    side = max(imgsz) if isinstance(imgsz, list) else imgsz or 640
    return -(-side // stride) * stride


def _first_line(error: Exception, copy: Path, weights: Path) -> str:
    text = str(error).replace("ERROR ❌️ ", "").strip() or type(error).__name__
    return text.splitlines()[0].replace(str(copy), str(weights))
