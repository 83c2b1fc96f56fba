"""Settings of one model: weights, engine, accuracy gate."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

from app.model import Shape, format_shapes, parse_shapes
from app.settings.places import DEMO_WEIGHTS

MIN_SIDE, MAX_SIDE = 32, 8192  # of a frame, px
MAX_SHAPES = 16
UNSUPPORTED_BACKENDS = {".onnx": ("pytorch",), ".engine": ("openvino", "onnxruntime", "pytorch")}  # by weights suffix


def _read_imgsz(value: Any) -> Any:
    """Parse "640" to 640, and "640x640,384x640" to sorted shapes, so that their order does not change the engine.

    Returns other types unchanged. Raises ValueError.
    """
    if not isinstance(value, str):
        return value
    if re.fullmatch(r"\d+", value):
        return _require_side(int(value))
    if not re.fullmatch(r"\d+x\d+(,\d+x\d+)*", value):
        raise ValueError("give the longest side in px, such as 640, or HEIGHTxWIDTH,... such as 640x640,384x640")
    shapes = sorted(parse_shapes(value))
    for side in (side for shape in shapes for side in shape):
        _require_side(side)
    if repeated := [shape for i, shape in enumerate(shapes) if shape in shapes[:i]]:
        raise ValueError(f"{format_shapes(repeated[0])} is given twice")
    if len(shapes) > MAX_SHAPES:
        raise ValueError(f"give at most {MAX_SHAPES} shapes: each may need an engine of its own")
    return tuple(shapes)


def _require_side(side: int) -> int:
    if not MIN_SIDE <= side <= MAX_SIDE:
        raise ValueError(f"a side is {MIN_SIDE} to {MAX_SIDE} px, not {side}")
    return side


def _write_imgsz(value: int | tuple[Shape, ...] | None) -> str | int | None:
    """Return the text or number that `_read_imgsz` accepts, for a server that the bench starts."""
    return format_shapes(*value) if isinstance(value, tuple) else value


Imgsz = Annotated[
    Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE)] | tuple[Shape, ...] | None,
    BeforeValidator(_read_imgsz),
    PlainSerializer(_write_imgsz),
]


class ModelSettings(BaseModel):
    """Frozen and validated; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str = Field(str(DEMO_WEIGHTS), description=".pt or .onnx file, or an Ultralytics name such as yolov8n.pt")
    imgsz: Imgsz = Field(
        None,
        description="640: smallest rectangles with sides of at most 640 px; 640x640,384x640: only these heights and "
        "widths; if unset, smallest rectangles up to the model's own size",
    )
    batch: int = Field(8, ge=1, le=1024, description="maximum number of images in one batch")
    precision: Literal["auto", "fp32", "fp16", "int8"] = Field(
        "auto", description="auto, fp32, fp16 or int8; auto = fp16 on TensorRT, fp32 on the CPU"
    )
    backend: Literal["auto", "tensorrt", "openvino", "onnxruntime", "pytorch", "simulated"] = Field(
        "auto",
        description="auto, tensorrt, openvino, onnxruntime, pytorch or simulated; auto = the first available one",
    )
    simulated_ms: str = Field("0,0", description="a,b: BACKEND=simulated takes a + b * n ms for a batch of n images")
    fallback: Literal["none", "onnxruntime", "pytorch"] = Field(
        "none", description="none, onnxruntime or pytorch: the backend to use, with warnings, if BACKEND fails"
    )
    decode: Literal["exact", "fast"] = Field(
        "exact", description="exact or fast; fast decodes large JPEGs at 1/2, 1/4 or 1/8, which moves boxes a little"
    )
    instances: int | None = Field(
        None, ge=1, le=64, description="batches at a time; if unset, 2 on TensorRT, one per core on OpenVINO, else 1"
    )
    max_wait_ms: float = Field(
        0, ge=0, le=10_000, description="maximum wait for a fuller batch while an instance is free"
    )
    gate_dir: Path | None = Field(None, description="images, preferably labelled, to evaluate every engine on")
    gate_fp32: float = Field(0.99, ge=0, le=1, description="minimum share of PyTorch's boxes that fp32 must find")
    gate_fp16: float = Field(0.98, ge=0, le=1, description="minimum share of PyTorch's boxes that fp16 must find")
    gate_int8: float = Field(0.9, ge=0, le=1, description="the same for int8, used if there are no labels")
    gate_map_loss: float = Field(0.01, ge=0, le=1, description="maximum loss of mAP50-95 if there are labels")
    calibration_dir: Path | None = Field(None, description="images for the calibration of int8")
    compare: Literal["none", "pytorch"] = Field(
        "none", description="none or pytorch: backend of a second engine, for ?engine= and ?compare=1"
    )
    shadow: float = Field(0, ge=0, le=1, description="share of the images that the second engine also predicts")

    @field_validator("weights")
    @classmethod
    def _not_empty(cls, weights: str) -> str:
        if not weights:
            raise ValueError("give a file or a name")
        return weights

    @field_validator("simulated_ms")
    @classmethod
    def _two_numbers(cls, value: str) -> str:
        if not re.fullmatch(r"\d+(\.\d+)?,\d+(\.\d+)?", value):
            raise ValueError("give two numbers, milliseconds per batch and per image, such as 5,6.9")
        return value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.fallback == self.backend:
            raise ValueError(f"FALLBACK={self.fallback} is BACKEND={self.backend} itself: name another one")
        if self.compare == self.backend:
            raise ValueError(f"COMPARE={self.compare} is BACKEND={self.backend} itself: there is nothing to compare")
        if self.shadow and self.compare == "none":
            raise ValueError(f"SHADOW={self.shadow:g} needs a second engine: give COMPARE=pytorch too")
        for setting in ("backend", "fallback", "compare"):
            if getattr(self, setting) in UNSUPPORTED_BACKENDS.get(Path(self.weights).suffix, ()):
                text = f"{setting.upper()}={getattr(self, setting)} cannot run {self.weights}"
                raise ValueError(f"{text}: give the .pt that it was exported from, or leave {setting.upper()} out")
        return self

    @property
    def shapes(self) -> tuple[Shape, ...] | None:
        """(height, width) of the allowed frames, px; None = the smallest rectangles."""
        return self.imgsz if isinstance(self.imgsz, tuple) else None

    @property
    def longest_side(self) -> int | None:
        """Longest side of all frames, px; None = the model's own size."""
        return max(map(max, self.imgsz)) if isinstance(self.imgsz, tuple) else self.imgsz
