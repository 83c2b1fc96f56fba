"""Facts about a model that its weights carry, independent of any engine."""

from dataclasses import dataclass
from typing import Any

Shape = tuple[int, int]  # height, width of a frame, px

TASKS = ("detect", "segment", "pose", "classify", "obb")  # as Ultralytics names them


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Facts from the model's metadata."""

    name: str
    task: str
    names: dict[int, str]  # class id: class name
    stride: int  # every frame side is a multiple of it
    imgsz: int  # longest side of a frame, px
    shapes: tuple[Shape, ...] | None  # allowed frame shapes; None: multiples of the stride, up to imgsz
    kpt_shape: tuple[int, int] | None = None  # pose: keypoints per object, and 2 (x y) or 3 (x y visible)
    end_to_end: bool = False  # the output rows are the detections, without NMS

    def to_json(self) -> dict[str, Any]:
        fields = {field: getattr(self, field) for field in self.__slots__}
        return fields | {"names": {str(i): name for i, name in self.names.items()}}


def format_shapes(*shapes: Shape) -> str:
    """Return shapes in the form of the setting IMGSZ: 384x640,640x640."""
    return ",".join(f"{height}x{width}" for height, width in shapes)


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """Parse the form of `format_shapes`. Raises ValueError if it is malformed."""
    sides = (shape.split("x") for shape in text.split(",") if shape)
    return tuple((int(height), int(width)) for height, width in sides)
