"""A PyTorch checkpoint, looked into without torch and without running anything that its pickle names.

Every class and function of the pickle becomes an inert stand-in, so the structure can be read: which classes there are,
and what the model says of itself.
"""

import pickle
import zipfile
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from app.weights import metadata

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first in what torch.save wrote before PyTorch 1.6
_STORAGES = {"FloatStorage": np.float32, "HalfStorage": np.float16, "DoubleStorage": np.float64}


class NotPickled(ValueError):
    """The file is none that torch.save writes."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a file of torch.save holds."""

    classes: frozenset[str]  # and functions, by module and name, that the pickle names
    root: Any  # its outermost object, of stand-ins and plain values
    model: str  # class of the model; "" if there is none
    attributes: dict[str, Any] = field(default_factory=dict)  # of the model
    stride: int = metadata.STRIDE
    legacy: bool = False  # in the format before PyTorch 1.6

    @property
    def imgsz(self) -> int:
        """The side of the frames that it was trained on, px."""
        args = self.root.get("train_args") if isinstance(self.root, dict) else None
        return metadata.trained_size(args.get("imgsz") if isinstance(args, dict) else None, self.stride)

    @property
    def classifies(self) -> bool:
        """Whether it is for whole images."""
        return self.attributes.get("task") == "classify" or self.model.endswith("ClassificationModel")


class _StandIn:
    """An object of a class of the pickle. It keeps what it is given and does nothing with it."""

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
        """Of classes that are like dict."""

    def append(self, value: Any) -> None:
        """Of classes that are like list."""

    def extend(self, values: Any) -> None:
        """The same."""

    def add(self, value: Any) -> None:
        """Of classes that are like set."""


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
        return pid[1] if pid[0] == "module" else pid  # of the legacy format: a class with its source


def read(path: Path) -> Checkpoint:
    """Raises NotPickled for what torch.save has not written, or not to its end."""
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
            raise NotPickled("torch.save has not written it")
        for _ in range(2):  # the version and facts of the system
            _Reader(file).load()
        reader = _Reader(file)
        return _describe(reader.load(), reader, None, "")


def _describe(root: Any, reader: _Reader, archive: zipfile.ZipFile | None, folder: str) -> Checkpoint:
    model = (root.get("ema") or root.get("model")) if isinstance(root, dict) else root
    classes = frozenset(reader.classes)
    if not isinstance(model, _StandIn) or _is_tensor(model):
        return Checkpoint(classes, root, "", legacy=archive is None)
    stride = _tensor(model.state.get("stride"), archive, folder) if archive else None
    return Checkpoint(classes, root, model.path, model.state, stride or metadata.STRIDE, archive is None)


def holds_tensors(content: Any) -> bool:
    """Whether it is a dict of tensors, or one that has such a dict in it."""
    entries = list(content.values()) if isinstance(content, dict) else []
    entries += [value for entry in entries if isinstance(entry, dict) for value in entry.values()]
    return any(map(_is_tensor, entries))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, _StandIn) and value.path.startswith("torch._utils._rebuild")


def _tensor(value: Any, archive: zipfile.ZipFile, folder: str) -> int | None:
    """The greatest value of a tensor of floats; None for anything else."""
    if not (_is_tensor(value) and value.path.endswith("_rebuild_tensor_v2")):
        return None
    (_, storage, key, *_), offset, shape = value.arguments[:3]
    dtype = _STORAGES.get(storage.__name__)
    if dtype is None:
        return None
    values = np.frombuffer(archive.read(f"{folder}data/{key}"), dtype)
    return int(values[offset : offset + int(np.prod(shape))].max(initial=0))
