"""Reads PyTorch checkpoints without torch and without running any code of the pickle.

Each class and function of the pickle is replaced by a stand-in without behaviour, so that only the structure is read:
the classes and the attributes of the model.
"""

import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from app.weights import metadata

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # start of files by torch.save before PyTorch 1.6
_STORAGES = {"FloatStorage": np.float32, "HalfStorage": np.float16, "DoubleStorage": np.float64}


class NotPickled(ValueError):
    """The file was not written by torch.save, or is damaged."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The contents of a file by torch.save."""

    classes: frozenset[str]  # of the pickle, functions too, as module.name
    root: Any  # outermost object, made of stand-ins and plain values
    model: str  # class of the model; "" if there is no model
    attributes: dict[str, Any] = field(default_factory=dict)  # of the model
    stride: int = metadata.STRIDE
    legacy: bool = False  # True: in the format before PyTorch 1.6

    @property
    def imgsz(self) -> int:
        """The longest side of the training frames in px, rounded up to a multiple of the stride."""
        args = self.root.get("train_args") if isinstance(self.root, dict) else None
        return metadata.trained_size(args.get("imgsz") if isinstance(args, dict) else None, self.stride)

    @property
    def classifies(self) -> bool:
        """True for classification models."""
        return self.attributes.get("task") == "classify" or self.model.endswith("ClassificationModel")


class _StandIn:
    """Replaces an object of the pickle. Keeps the arguments and the state, and does nothing else."""

    path = ""

    def __new__(cls, *_: Any, **__: Any) -> "_StandIn":
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **_: Any) -> None:
        self.arguments, self.state = arguments, dict[str, Any]()

    def __call__(self, *_: Any) -> "_StandIn":
        return _StandIn()

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignore an entry; pickles of dict-like classes call this."""

    def append(self, value: Any) -> None:
        """Ignore an item; pickles of list-like classes call this."""

    def extend(self, values: Any) -> None:
        """Ignore items; pickles of list-like classes call this."""

    def add(self, value: Any) -> None:
        """Ignore an item; pickles of set-like classes call this."""


class _Reader(pickle.Unpickler):
    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.classes: dict[str, type] = {}

    def find_class(self, module_name: str, global_name: str) -> Any:
        path = f"{module_name}.{global_name}"
        if path == "collections.OrderedDict":
            return OrderedDict
        return self.classes.setdefault(path, type(global_name, (_StandIn,), {"path": path}))

    def persistent_load(self, pid: Any) -> Any:
        return pid[1] if pid[0] == "module" else pid  # legacy format: ("module", class, source)


def read(path: Path) -> Checkpoint:
    """Read a checkpoint. Raises NotPickled if torch.save did not write the file, or if it is cut short."""
    try:
        if not zipfile.is_zipfile(path):
            return _read_legacy(path)
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as file:
                reader = _Reader(file)  # type: ignore[arg-type]
                root = reader.load()
            return _describe(root, reader, archive, name.removesuffix("data.pkl"))
    except Exception as error:  # a damaged pickle can fail in any way
        raise NotPickled(f"{type(error).__name__}: {error}") from error


def _read_legacy(path: Path) -> Checkpoint:
    with path.open("rb") as file:
        if _Reader(file).load() != _LEGACY_MAGIC:
            raise NotPickled("torch.save did not write it")
        for _ in range(2):  # protocol version and system info
            _Reader(file).load()
        reader = _Reader(file)
        return _describe(reader.load(), reader, None, "")


def _describe(root: Any, reader: _Reader, archive: zipfile.ZipFile | None, folder: str) -> Checkpoint:
    model = (root.get("ema") or root.get("model")) if isinstance(root, dict) else root
    classes = frozenset(reader.classes)
    if not isinstance(model, _StandIn) or _is_tensor(model):
        return Checkpoint(classes, root, "", legacy=archive is None)
    stride = _max_of_tensor(model.state.get("stride"), archive, folder) if archive else None
    return Checkpoint(classes, root, model.path, model.state, stride or metadata.STRIDE, archive is None)


def holds_tensors(content: Any) -> bool:
    """Return True for a dict of tensors, or a dict with such a dict in it."""
    entries = list(content.values()) if isinstance(content, dict) else []
    entries += [value for entry in entries if isinstance(entry, dict) for value in entry.values()]
    return any(map(_is_tensor, entries))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, _StandIn) and value.path.startswith("torch._utils._rebuild")


def _max_of_tensor(value: Any, archive: zipfile.ZipFile, folder: str) -> int | None:
    """Return the maximum of a float tensor; None for anything else."""
    if not (_is_tensor(value) and value.path.endswith("_rebuild_tensor_v2")):
        return None
    (_, storage, key, *_), offset, shape = value.arguments[:3]
    dtype = _STORAGES.get(storage.__name__)
    if dtype is None:
        return None
    values = np.frombuffer(archive.read(f"{folder}data/{key}"), dtype)
    return int(values[offset : offset + int(np.prod(shape))].max(initial=0))
