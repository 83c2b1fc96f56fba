"""Exports weights to plain Ultralytics ONNX.

Only this module, backends/pytorch and evaluation/mean_ap import torch or ultralytics.
"""

import contextlib
import importlib
import logging
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import WeightsError
from app.graphs import normalize
from app.graphs.describe import dims, require_multiples, require_task
from app.model import Shape
from app.weights import checkpoint, metadata

if TYPE_CHECKING:
    import torch

log = logging.getLogger("yolopard.export")

# Ultralytics reads these at import: no pip installs, and no network until `fetch` is called.
os.environ |= {"YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
os.environ.setdefault("YOLO_OFFLINE", "true")


def fetch(name: str, folder: Path) -> Path:
    """Download Ultralytics weights, such as yolov8n.pt, into the folder, and return their path. Raises WeightsError.

    A partial download is removed.
    """
    os.environ["YOLO_OFFLINE"] = "false"
    from ultralytics.utils.downloads import attempt_download_asset

    target = folder / name
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as partial:
        with contextlib.suppress(Exception):  # after any error the file is missing
            attempt_download_asset(Path(partial) / name)
        if not (Path(partial) / name).is_file():
            raise WeightsError(
                f"{name} does not exist, and Ultralytics could not download it. Without a network, copy it to "
                f"{target} or set its path: WEIGHTS=/path/to/{name}"
            )
        (Path(partial) / name).replace(target)
    return target


def to_plain_onnx(weights: Path, size: int | Shape | None, folder: Path, *, static: bool = False) -> Path:
    """Return the path of a plain ONNX export with dynamic batch, H and W; an .onnx file is returned as it is.

    With `static` H and W are fixed, so that anchors are constants. `size` is the longest frame side, or height and
    width, in px; None = the side that the model was trained with. Raises WeightsError.
    """
    if weights.suffix == ".onnx":
        return _fix_shape(weights, size, folder / "static.onnx") if static else weights
    if weights.suffix != ".pt":
        raise WeightsError(f"{weights}: weights are .pt or .onnx files")
    copy = Path(shutil.copy(weights, folder / "weights.pt"))  # Ultralytics writes the export next to its weights
    model = _load(copy, weights)
    if problem := _complete_names(model.model):
        log.warning("%s: %s", weights, problem)
    stride = int(max(model.model.stride))
    size = size or metadata.trained_size(model.overrides.get("imgsz"), stride)
    require_multiples(size, stride)
    try:
        exported = model.export(
            format="onnx", imgsz=size, dynamic=not static, simplify=True, opset=normalize.OPSET, device="cpu"
        )
    except Exception as error:
        raise WeightsError(f"{weights}: Ultralytics cannot export it: {_first_line(error, copy, weights)}") from error
    return Path(exported)


def _fix_shape(weights: Path, size: int | Shape | None, target: Path) -> Path:
    """Return an export with fixed H and W, constants folded: `target`, or `weights` itself if its sides are fixed."""
    import onnx
    import onnxslim

    model = normalize.read(weights, weights)
    source = model.graph.input[0]
    if all(dims(source)[2:]):
        return weights
    facts = {fact.key: fact.value for fact in model.metadata_props}
    size = size or metadata.largest(facts.get("imgsz"), metadata.IMGSZ)
    height, width = (size, size) if isinstance(size, int) else size
    require_multiples(size, metadata.largest(facts.get("stride"), metadata.STRIDE))
    onnx.save(onnxslim.slim(model, input_shapes=[f"{source.name}:1,3,{height},{width}"]), target)
    return target


def load_module(weights: Path) -> "torch.nn.Module":
    """Return the fused FP32 model of .pt weights. Its forward returns (head, ...); segment: ((head, protos), ...)."""
    module: torch.nn.Module = _load(weights, weights).model.float().fuse().eval()
    _complete_names(module)
    return module


def _load(file: Path, weights: Path) -> Any:
    """Return Ultralytics' YOLO object of `file`. Raises WeightsError, which names the user's `weights`."""
    from ultralytics import YOLO  # type: ignore[attr-defined]
    from ultralytics.nn import tasks

    # Same as weights_only; its environment variable only works before the first import.
    tasks.SAFE_LOAD = True  # type: ignore[attr-defined]
    try:
        model = YOLO(file)
    except Exception as error:
        reason = _unknown_classes(file) or _first_line(error, file, weights)
        raise WeightsError(f"{weights}: Ultralytics cannot load it: {reason}") from error
    require_task(weights, str(model.task))
    if hasattr(model.model, "end2end"):
        # Use the head that needs NMS if there are two, as Ultralytics predicts and exports.
        model.model.end2end = False  # type: ignore[union-attr]
    return model


def _complete_names(module: Any) -> str:
    """Set a name for each class of the module; return a text on what was wrong with its names, "" if nothing.

    Ultralytics only exports classes with names, and fails if ids are missing.
    """
    head = module.model[-1]
    classes = head.linear.out_features if hasattr(head, "linear") else head.nc
    given = getattr(module, "names", None)
    module.names = metadata.names(given, classes)
    return metadata.names_problem(given, classes)


def _unknown_classes(file: Path) -> str:
    """Return a text on Ultralytics classes in the checkpoint that this version lacks (from modified copies); or ""."""
    try:
        classes = checkpoint.read(file).classes
    except checkpoint.NotPickled:
        return ""
    named = sorted(name for name in classes if name.startswith("ultralytics.nn."))
    unknown = [name for name in named if not hasattr(_module(name.rpartition(".")[0]), name.rpartition(".")[2])]
    if not unknown:
        return ""
    return f"version {version('ultralytics')} has no {', '.join(unknown[:3])}. Export it to ONNX where it was trained"


def _module(name: str) -> Any:
    with contextlib.suppress(ImportError):
        return importlib.import_module(name)
    return None


def _first_line(error: Exception, copy: Path, weights: Path) -> str:
    text = str(error).replace("ERROR ❌️ ", "").strip() or type(error).__name__
    return text.splitlines()[0].replace(str(copy), str(weights))
