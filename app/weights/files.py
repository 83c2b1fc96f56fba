"""Identifies a user's weights files by their content: the kind, and the frame size.

Runs no code of a file; needs neither torch nor onnx. For a file that cannot be served, raises an error of one line with
its name, the reason and the advice.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import WeightsError
from app.model import Shape
from app.weights import checkpoint, metadata, onnx_file, signatures

_LIBRARIES = ("torch.", "torchvision.", "ultralytics.", "numpy.", "collections.", "pathlib.", "clip.", "timm.")
_STANDARD = ("builtins.", "__builtin__.", "copyreg.", "copy_reg.", "_codecs.", "datetime.", "types.")
_KINDS = {".pt": "PyTorch weights", ".onnx": "an ONNX model", ".engine": "a TensorRT engine"}


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of a supported kind. Only building the graph shows whether they can be served."""

    path: Path
    imgsz: int  # of the model, px
    shape: Shape | None = None  # height and width, px, if only one is supported; None: any
    classifies: bool = False
    data: tuple[Path, ...] = ()  # external data files

    @property
    def sha256(self) -> str:
        """The sha256 of a single file; for several, a digest of their sha256."""
        digests = [_sha256(path) for path in (self.path, *self.data)]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def identify(path: Path) -> Weights:
    """Identify a weights file. Raises WeightsError, with what the file is and what to do, if it is not supported."""
    if path.is_dir():
        raise WeightsError(f"{path} is {signatures.of_folder(path)}")
    if foreign := signatures.of_file(path):
        raise WeightsError(f"{path} {foreign}")
    kind = _kind(path)
    if kind != path.suffix:
        raise WeightsError(f"{path} holds {_KINDS[kind]}: rename it to {path.with_suffix(kind).name}")
    return {".pt": _pytorch, ".onnx": _onnx, ".engine": _engine}[kind](path)


def engine_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return Ultralytics' JSON header of an .engine and the offset of the plan; ({}, 0) if there is no header.

    The file begins with the length of the header in 4 bytes.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(4), "little")
        if 0 < size < path.stat().st_size:
            try:
                header = json.loads(file.read(size))
            except ValueError:
                return {}, 0
            if isinstance(header, dict):
                return header, 4 + size
    return {}, 0


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(4)
    if head.startswith((b"PK\3\4", b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5")):
        return ".pt"
    if head.startswith(b"\x08") and head[1] < 32:  # the first field, the version of the format
        return ".onnx"
    if engine_header(path)[0] or path.suffix == ".engine":
        return ".engine"
    raise WeightsError(f"{path} is not a known kind of file: weights are .pt or .onnx, or an .engine by Ultralytics")


def _engine(path: Path) -> Weights:
    """Read the sizes of the header only; the TensorRT backend checks the rest."""
    header, _ = engine_header(path)
    return Weights(path, metadata.largest(header.get("imgsz"), metadata.IMGSZ), metadata.shape(header.get("imgsz")))


def _onnx(path: Path) -> Weights:
    try:
        found = onnx_file.read(path)
    except ValueError as error:
        raise WeightsError(f"{path} is cut short or damaged ({error}): copy or export it again") from error
    data = []
    for name, size in sorted(found.data.items()):
        file = path.parent / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise WeightsError(f"{path} has weights in {name}, outside of its folder: save it with its data next to it")
        if not file.is_file():
            raise WeightsError(f"{path} has its weights in {name}, which is not next to it: copy that file too")
        if file.stat().st_size < size:
            raise WeightsError(f"{file}, which belongs to {path}, is cut short: it needs {size} bytes. Copy it again")
        data.append(file)
    return Weights(path, found.imgsz, found.shape, found.classifies, tuple(data))


def _pytorch(path: Path) -> Weights:
    try:
        found = checkpoint.read(path)
    except checkpoint.NotPickled as error:
        raise WeightsError(f"{path} is cut short or damaged ({error}): copy or download it again") from error
    if problem := _problem(found, path):
        raise WeightsError(f"{path} {problem}")
    return Weights(path, found.imgsz, classifies=found.classifies)


def _problem(found: checkpoint.Checkpoint, path: Path) -> str:
    """Return why a checkpoint is not supported, and what to do; "" if it is supported."""
    if problem := _foreign_classes(found):
        return problem
    model = found.model.rpartition(".")[2]
    if model in ("DataParallel", "DistributedDataParallel"):
        return (
            f"holds its model inside {model}: where it was saved, unwrap the model and save it again with "
            f"ckpt['model'] = ckpt['model'].module; ckpt['ema'] = None; torch.save(ckpt, '{path.name}')"
        )
    if not model:
        what = "a state dict, tensors without their model" if checkpoint.holds_tensors(found.root) else "no model"
        return f"holds {what}: save the whole checkpoint, like Ultralytics' training or YOLO(...).save('{path.name}')"
    if not found.model.startswith("ultralytics.nn.") or not isinstance(found.root, dict):
        return f"holds a bare {model}, not a checkpoint by Ultralytics: save it with YOLO(...).save('{path.name}')"
    if found.legacy:
        return "is in the format before PyTorch 1.6: load it with torch.load and save it again with torch.save"
    return ""


def _foreign_classes(found: checkpoint.Checkpoint) -> str:
    """Return which classes of unsupported packages it needs, and what to do; "" if none."""
    foreign = sorted(name for name in found.classes if not name.startswith((*_LIBRARIES, *_STANDARD)))
    if any(name.startswith(("models.", "utils.")) for name in foreign):
        return (
            "is a checkpoint of YOLOv5 or YOLOv7, or of a similar project, whose networks are not supported: use "
            "weights of Ultralytics' YOLOv8 or later, such as yolov5nu.pt"
        )
    if foreign:
        return (
            f"needs {', '.join(foreign[:3])}, which is not part of Ultralytics, and third-party code is not run: "
            "export it to ONNX where that code is installed, and use the .onnx"
        )
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
