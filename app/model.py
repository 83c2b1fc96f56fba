"""What a model is, apart from any engine: the facts that its weights carry."""

from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Read from the model's own metadata."""

    name: str
    task: str
    names: dict[int, str]  # class id: class name
    stride: int  # every frame side is a multiple of it
    imgsz: int  # longest side of a frame, px
    static_shape: bool  # True: the graph takes imgsz x imgsz only

    def to_json(self) -> dict[str, Any]:
        fields = {field: getattr(self, field) for field in self.__slots__}
        return fields | {"names": {str(i): name for i, name in self.names.items()}}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        return cls(**fields | {"names": {int(i): name for i, name in fields["names"].items()}})
