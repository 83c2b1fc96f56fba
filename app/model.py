"""What a model is, apart from any engine: the facts that its weights carry."""

from dataclasses import dataclass
from typing import Any

Shape = tuple[int, int]  # height, width of a frame, px

TASKS = ("detect", "segment", "pose", "classify", "obb")  # as Ultralytics names them


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Read from the model's own metadata."""

    name: str
    task: str
    names: dict[int, str]  # class id: class name
    stride: int  # every frame side is a multiple of it
    imgsz: int  # longest side of a frame, px
    shapes: tuple[Shape, ...] | None  # that frames may have; None: multiples of the stride, up to imgsz
    kpt_shape: tuple[int, int] | None = None  # of pose: keypoints of an object, and 2 (x y) or 3 (x y visible)
    end_to_end: bool = False  # its rows are the detections: there is nothing left for NMS

    def to_json(self) -> dict[str, Any]:
        fields = {field: getattr(self, field) for field in self.__slots__}
        return fields | {"names": {str(i): name for i, name in self.names.items()}}


def format_shapes(*shapes: Shape) -> str:
    """As in the setting IMGSZ: 384x640,640x640."""
    return ",".join(f"{height}x{width}" for height, width in shapes)


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """What `spell` has written."""
    sides = (shape.split("x") for shape in text.split(",") if shape)
    return tuple((int(height), int(width)) for height, width in sides)
