"""The files of a user's weights: of what kind they are, by their content, and which size of frame they are for.

Nothing of a file is run, and neither torch nor onnx is needed. A file that cannot be served is refused in one line that
names it and says what to do.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.errors import WeightsError
from app.model import Shape
from app.weights import checkpoint, metadata, onnx_file, signatures

_OURS = ("torch.", "torchvision.", "ultralytics.", "numpy.", "collections.", "pathlib.", "clip.", "timm.")
_PLAIN = ("builtins.", "__builtin__.", "copyreg.", "copy_reg.", "_codecs.", "datetime.", "types.")
_KINDS = {".pt": "PyTorch weights", ".onnx": "an ONNX model", ".engine": "a TensorRT engine"}


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights of a kind that may be served; whether they can be is known when a graph is made of them."""

    path: Path
    imgsz: int  # the model's own, px
    shape: Shape | None = None  # height and width of the only frames that they are for, px; None: any
    classifies: bool = False
    data: tuple[Path, ...] = ()  # more files that belong to them

    @property
    def sha256(self) -> str:
        """Digest of all their files; of a single file its sha256."""
        digests = [_sha256(path) for path in (self.path, *self.data)]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def identify(path: Path) -> Weights:
    """Look into a file. Raises WeightsError, which says what it is instead, and what to do."""
    if path.is_dir():
        raise WeightsError(f"{path} is {signatures.of_folder(path)}")
    if foreign := signatures.of_file(path):
        raise WeightsError(f"{path} {foreign}")
    kind = _kind(path)
    if kind != path.suffix:
        raise WeightsError(f"{path} holds {_KINDS[kind]}: rename it to {path.with_suffix(kind).name}")
    return {".pt": _pytorch, ".onnx": _onnx, ".engine": _engine}[kind](path)


def engine_header(path: Path) -> tuple[dict[str, Any], int]:
    """What Ultralytics writes before the plan of an .engine, JSON behind its length in 4 bytes, and where the plan
    begins; nothing and 0 if there is no header.
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
    if head.startswith(b"\x08") and head[1] < 32:  # the version of the format, which is the first field
        return ".onnx"
    if engine_header(path)[0] or path.suffix == ".engine":
        return ".engine"
    raise WeightsError(f"{path} is of no known kind: weights are .pt or .onnx files, or an .engine by Ultralytics")


def _engine(path: Path) -> Weights:
    """The TensorRT backend says what is wrong with the rest of it."""
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
            raise WeightsError(f"{path} has weights in {name}, outside of its folder: save it with its data beside it")
        if not file.is_file():
            raise WeightsError(f"{path} has its weights in {name}, which is not beside it: copy that file too")
        if file.stat().st_size < size:
            raise WeightsError(f"{file}, which belongs to {path}, is cut short: it needs {size} bytes. Copy it again")
        data.append(file)
    return Weights(path, found.imgsz, found.shape, found.classifies, tuple(data))


def _pytorch(path: Path) -> Weights:
    try:
        found = checkpoint.read(path)
    except checkpoint.NotPickled as error:
        raise WeightsError(f"{path} is cut short or damaged ({error}): copy or download it again") from error
    if wrong := _unfit(found, path):
        raise WeightsError(f"{path} {wrong}")
    return Weights(path, found.imgsz, classifies=found.classifies)


def _unfit(found: checkpoint.Checkpoint, path: Path) -> str:
    """Why such a checkpoint is not served, and what to do; "" if it is."""
    if strange := _strange(found):
        return strange
    model = found.model.rpartition(".")[2]
    if model in ("DataParallel", "DistributedDataParallel"):
        return (
            f"holds its model inside {model}: where it was saved, save it without, by "
            f"ckpt['model'] = ckpt['model'].module; ckpt['ema'] = None; torch.save(ckpt, '{path.name}')"
        )
    if not model:
        what = "a state dict, tensors without their model" if checkpoint.holds_tensors(found.root) else "no model"
        return f"holds {what}: save the whole of it, as Ultralytics' training and YOLO(...).save('{path.name}') do"
    if not found.model.startswith("ultralytics.nn.") or not isinstance(found.root, dict):
        return f"holds a bare {model}, not a checkpoint by Ultralytics: save it with YOLO(...).save('{path.name}')"
    if found.legacy:
        return "is in the format before PyTorch 1.6: load it with torch.load and save it again with torch.save"
    return ""


def _strange(found: checkpoint.Checkpoint) -> str:
    """Which classes of others it needs, and what to do; "" if none."""
    strange = sorted(name for name in found.classes if not name.startswith((*_OURS, *_PLAIN)))
    if any(name.startswith(("models.", "utils.")) for name in strange):
        return (
            "is a checkpoint of YOLOv5 or YOLOv7 or of a project like them, whose networks are others: train or take "
            "weights of Ultralytics' YOLOv8 or later, such as yolov5nu.pt"
        )
    if strange:
        return (
            f"needs {', '.join(strange[:3])}, which Ultralytics has not, and the code of others is not run: export it "
            "to ONNX where that code is, and give the .onnx"
        )
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
