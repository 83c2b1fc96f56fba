"""Engines of Ultralytics' `yolo export format=engine`, told by their header."""

from pathlib import Path

from app.errors import SettingsError, WeightsError
from app.model import ModelInfo, Shape, format_shapes
from app.weights import metadata
from app.weights.files import engine_header


def describe(path: Path, name: str, imgsz: int | None, shapes: tuple[Shape, ...] | None) -> ModelInfo:
    """What the header of an Ultralytics .engine says of its model. Raises WeightsError, SettingsError for its shape."""
    header, _ = engine_header(path)
    if missing := {"task", "names", "stride", "imgsz"} - header.keys():
        raise WeightsError(f"{path} is not an engine by Ultralytics: its header lacks {', '.join(sorted(missing))}")
    if header["task"] != "detect":
        raise WeightsError(
            f"{path} is a {header['task']} engine; of Ultralytics' own only those of detect are served: give the .pt"
        )
    own = metadata.shape(header["imgsz"])
    if own is None:
        raise WeightsError(f"{path} says that its frames are {header['imgsz']}: that is no height and width")
    side = max(own)
    if shapes not in (None, (own,)) or imgsz not in (None, side):
        requested = f"IMGSZ={format_shapes(*shapes)}" if shapes else f"IMGSZ={imgsz}"
        raise SettingsError(f"{path} was exported for {format_shapes(own)} only, not {requested}")
    stride = metadata.largest(header["stride"], metadata.STRIDE)
    return ModelInfo(name, "detect", metadata.names(header["names"], None), stride, side, (own,))


def precision_of(path: Path) -> str:
    """What an Ultralytics .engine was exported in, by its header."""
    exported = engine_header(path)[0].get("args") or {}
    return "int8" if exported.get("int8") else "fp16" if exported.get("half") else "fp32"
