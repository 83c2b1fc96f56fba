"""Every knob. A setting NAME is YOLOPARD_NAME in the environment and --name on the command line."""

import ipaddress
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from app.errors import SettingsError
from app.model import Shape, spell, unspell

PREFIX = "YOLOPARD_"
DEMO = Path(__file__).parents[1] / "models" / "demo"
DEMO_WEIGHTS = DEMO / "yolov8n-demo.pt"
ENGINES_DIR = Path(__file__).parents[1] / "engines"
LEAST_SIDE, MOST_SIDE = 32, 8192  # of a frame, px
MOST_SHAPES = 16
UNABLE = {".onnx": ("pytorch",), ".engine": ("openvino", "onnxruntime", "pytorch")}  # to run such weights
PROTOCOLS = ("v1", "kserve", "platform", "deepstack", "roboflow")


def _split(value: Any) -> Any:
    return tuple(filter(None, (each.strip() for each in value.split(",")))) if isinstance(value, str) else value


_KEY = re.compile(r"[!-~]{16,}")  # printable ASCII: what a header can carry
_HOST = re.compile(r"[a-z0-9.-]+(:\d+)?")
_NAME = re.compile(r"[a-z0-9.-]+|\[[0-9a-f:.]+\]")
Listed = Annotated[tuple[str, ...], BeforeValidator(_split), PlainSerializer(",".join)]


class Settings(BaseModel):
    """Frozen and validated; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: str = Field(str(DEMO_WEIGHTS), description=".pt or .onnx file, or an Ultralytics name such as yolov8n.pt")
    imgsz: int | None = Field(
        None, ge=LEAST_SIDE, le=MOST_SIDE, description="longest side of a frame, px; the model's own if unset"
    )
    shapes: tuple[Shape, ...] | None = Field(
        None, description="HEIGHTxWIDTH,...: the shapes that frames may have, such as 640x640,384x640,640x384"
    )
    batch: int = Field(8, ge=1, le=1024, description="most images in one batch")
    precision: Literal["auto", "fp32", "fp16", "int8"] = Field(
        "auto", description="auto, fp32, fp16 or int8; auto = fp16 on TensorRT, fp32 on the CPU"
    )
    backend: Literal["auto", "tensorrt", "openvino", "onnxruntime", "pytorch", "simulated"] = Field(
        "auto",
        description="auto, tensorrt, openvino, onnxruntime, pytorch or simulated; auto = the first real one here",
    )
    simulated_ms: str = Field("0,0", description="a,b: BACKEND=simulated takes a + b * n ms for a batch of n images")
    fallback: Literal["none", "onnxruntime", "pytorch"] = Field(
        "none", description="none, onnxruntime or pytorch: what serves, loudly, when the backend cannot"
    )
    engines_dir: Path = Field(ENGINES_DIR, description="where built engines are kept")
    build_memory_bytes: int | None = Field(
        None,
        ge=1,
        description="most that a build may hold; nine tenths of this machine's or container's memory if unset",
    )
    rect: bool = Field(True, description="letterbox to the smallest rectangle, as Ultralytics does; false = square")
    decode: Literal["exact", "fast"] = Field(
        "exact", description="exact or fast: large JPEGs are decoded at 1/2, 1/4 or 1/8, and boxes move a little"
    )
    lanes: int | None = Field(
        None, ge=1, le=64, description="batches at a time; 2 on TensorRT, one a core on OpenVINO, else 1, if unset"
    )
    threads: int | None = Field(None, ge=1, le=1024, description="cores to use; all that the process may, if unset")

    gate_dir: Path | None = Field(None, description="images, best with labels, that every engine is judged on")
    gate_fp32: float = Field(0.99, ge=0, le=1, description="least share of PyTorch's boxes that fp32 must find")
    gate_fp16: float = Field(0.98, ge=0, le=1, description="least share of PyTorch's boxes that fp16 must find")
    gate_int8: float = Field(0.9, ge=0, le=1, description="the same for int8, where there are no labels")
    gate_map_loss: float = Field(0.01, ge=0, le=1, description="most mAP50-95 that may be lost, where there are labels")
    calibration_dir: Path | None = Field(None, description="images that int8 is calibrated on")

    compare: Literal["none", "pytorch"] = Field(
        "none", description="none or pytorch: a second engine beside the first, for ?engine= and ?compare=1"
    )
    shadow: float = Field(0, ge=0, le=1, description="share of the images that the second engine looks at as well")

    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    protocols: Listed = Field(
        PROTOCOLS, description=f"the ones that are served, of {', '.join(PROTOCOLS)}, with commas between them"
    )
    api_keys: Listed = Field((), repr=False, description="KEY,...: one of them must be shown; nobody is asked if unset")
    allow_anonymous: bool = Field(False, description="no key is asked for although HOST is not this machine's alone")
    allow_urls: Listed = Field((), description="HOST or HOST:PORT,...: where images may be fetched from; none if unset")
    cors_origins: Listed = Field(
        (), description="ORIGIN,...: whose pages may ask from a browser, such as https://example.com; none if unset"
    )
    allow_hosts: Listed = Field(
        (),
        description="HOST,...: further names in the Host header, without a port, that a server without keys on a "
        "loopback address answers to",
    )
    grpc_port: int | None = Field(
        None, ge=1, le=65535, description="port for the gRPC of KServe, such as 8001; closed if unset"
    )
    max_wait_ms: float = Field(0, ge=0, le=10_000, description="longest wait for a fuller batch while a lane is free")
    max_pending: int = Field(256, ge=1, description="requests in the house; more are refused with 503")
    deadline_ms: float = Field(
        30_000, gt=0, le=3_600_000, description="longest time of a request; its X-Deadline-Ms can only shorten it"
    )
    max_body_bytes: int = Field(20 * 1024 * 1024, ge=1, description="of one request")
    max_tensor_bytes: int = Field(
        96 * 1024 * 1024, ge=1, description="of one KServe request: sixteen images of 640x640 in FP32"
    )
    max_json_bytes: int = Field(8 * 1024 * 1024, ge=1, description="of the JSON or urlencoded form in one request")
    max_pixels: int = Field(50_000_000, ge=1, description="of one image")
    max_side: int = Field(65_535, ge=1, description="of one image, px")
    max_files: int = Field(64, ge=1, description="of one request")
    max_inflight_bytes: int | None = Field(
        None,
        ge=1,
        description="of all requests at a time: bodies, inflated bodies, messages, answers; an eighth of the memory, "
        "128 MiB to 1 GiB, if unset",
    )
    max_inflight_pixels: int | None = Field(
        None,
        ge=1,
        description="of all images at a time; one for each 32 bytes of memory, 64 to 512 million, if unset",
    )
    max_connections: int = Field(
        1024, ge=1, description="HTTP connections at a time; fewer where the process may not open so many files"
    )
    max_connections_per_peer: int = Field(512, ge=1, description="HTTP connections at a time from one address")
    max_head_bytes: int = Field(32 * 1024, ge=1024, description="of a request's line and headers")
    head_timeout_ms: float = Field(
        10_000, gt=0, le=3_600_000, description="from the connection, or a request's first byte, to its whole head"
    )
    keep_alive_ms: float = Field(10_000, gt=0, le=3_600_000, description="how long an idle connection stays open")
    send_timeout_ms: float = Field(
        10_000, gt=0, le=3_600_000, description="after which a client that takes nothing of its answer is cut off"
    )
    min_bytes_per_s: int = Field(
        1024, ge=0, description="least rate at which a body comes and an answer is taken, seen over 5 s"
    )

    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="debug, info, warning or error: the least that is logged"
    )
    log_format: Literal["text", "json"] = Field("text", description="text or json, of the log's lines")
    access_log: bool = Field(False, description="one line a request")

    @field_validator("weights")
    @classmethod
    def _not_empty(cls, weights: str) -> str:
        if not weights:
            raise ValueError("give a file or a name")
        return weights

    @field_validator("protocols")
    @classmethod
    def _known(cls, protocols: tuple[str, ...]) -> tuple[str, ...]:
        if not protocols or not set(protocols) <= set(PROTOCOLS):
            raise ValueError(f"give some of {', '.join(PROTOCOLS)}, with commas between them")
        return protocols

    @field_validator("api_keys")
    @classmethod
    def _hard_to_guess(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(_KEY.fullmatch, keys)):
            raise ValueError("a key is 16 or more printable ASCII characters without spaces and commas")
        return keys

    @field_validator("allow_urls")
    @classmethod
    def _hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(_HOST.fullmatch, hosts)):
            raise ValueError(
                "give host names in lower case, with a port if it is not the usual one: no scheme, no path"
            )
        return hosts

    @field_validator("allow_hosts")
    @classmethod
    def _names(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(_NAME.fullmatch, hosts)):
            raise ValueError("give host names or addresses in lower case, without scheme, port and path")
        return hosts

    @field_validator("simulated_ms")
    @classmethod
    def _two_numbers(cls, value: str) -> str:
        if not re.fullmatch(r"\d+(\.\d+)?,\d+(\.\d+)?", value):
            raise ValueError("give two numbers of milliseconds, a batch's and an image's, such as 5,6.9")
        return value

    @field_serializer("shapes")
    def _spelled(self, shapes: tuple[Shape, ...] | None) -> str | None:
        """As it was given, for a server that the bench starts."""
        return spell(*shapes) if shapes else None

    @field_validator("shapes", mode="before")
    @classmethod
    def _in_order(cls, value: str | None) -> list[Shape] | None:
        """The same shapes in another order are the same engine."""
        if value is None:
            return None
        if not re.fullmatch(r"\d+x\d+(,\d+x\d+)*", value):
            raise ValueError("give HEIGHTxWIDTH in px, several with commas between them, such as 640x640,384x640")
        shapes = sorted(unspell(value))
        if wrong := [side for shape in shapes for side in shape if not LEAST_SIDE <= side <= MOST_SIDE]:
            raise ValueError(f"a side is {LEAST_SIDE} to {MOST_SIDE} px, not {wrong[0]}")
        if twice := [shape for i, shape in enumerate(shapes) if shape in shapes[:i]]:
            raise ValueError(f"{spell(twice[0])} is there twice")
        if len(shapes) > MOST_SHAPES:
            raise ValueError(f"at most {MOST_SHAPES} shapes, since each may be an engine of its own")
        return shapes

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.shapes and self.imgsz not in (None, self.longest_side):
            longest = f"the longest side of SHAPES={spell(*self.shapes)} is {self.longest_side}"
            raise ValueError(f"IMGSZ={self.imgsz}, but {longest}: leave IMGSZ out")
        if self.shapes and not self.rect:
            raise ValueError(f"RECT=false and SHAPES={spell(*self.shapes)} both say what frames there are: give one")
        if self.fallback == self.backend:
            raise ValueError(f"FALLBACK={self.fallback} is BACKEND={self.backend} itself: name another one")
        if self.compare == self.backend:
            raise ValueError(f"COMPARE={self.compare} is BACKEND={self.backend} itself: there is nothing to compare")
        if self.shadow and self.compare == "none":
            raise ValueError(f"SHADOW={self.shadow:g} needs a second engine: give COMPARE=pytorch too")
        for setting in ("backend", "fallback", "compare"):
            if getattr(self, setting) in UNABLE.get(Path(self.weights).suffix, ()):
                text = f"{setting.upper()}={getattr(self, setting)} cannot run {self.weights}"
                raise ValueError(f"{text}: give the .pt that it was exported from, or leave {setting.upper()} out")
        return self

    def require_keys(self) -> None:
        """Raises SettingsError where others than this machine could ask, and neither keys nor anonymity are given."""
        if not (self.api_keys or self.allow_anonymous or _is_loopback(self.host)):
            raise SettingsError(
                f"HOST={self.host} lets others in: give API_KEYS, one for each client, or ALLOW_ANONYMOUS=1"
            )

    @property
    def hosts(self) -> frozenset[str] | None:
        """Names that a request's Host header may hold; None = any.

        A page on the internet whose name resolves to 127.0.0.1 (DNS rebinding) could otherwise use a server that asks
        no key and trusts in being reached from this machine only.
        """
        if self.api_keys or not _is_loopback(self.host):
            return None
        return frozenset({"localhost", "127.0.0.1", "[::1]", self.host, f"[{self.host}]", *self.allow_hosts})

    @property
    def longest_side(self) -> int | None:
        """Of all frames, px; None = the model's own."""
        return max(map(max, self.shapes)) if self.shapes else self.imgsz

    @classmethod
    def read(cls, options: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> Self:
        """From the command line's options by name, before the environment. Raises SettingsError."""
        named = {name.removeprefix(PREFIX): value for name, value in environ.items() if name.startswith(PREFIX)}
        if wrong := [name for name in named if name != name.upper()]:
            raise SettingsError(f"{PREFIX}{wrong[0]}: no such setting; names are upper case in the environment")
        values = {name.lower(): value for name, value in named.items()} | dict(options)
        try:
            return cls(**values)  # type: ignore[arg-type]  # strings, which pydantic converts
        except ValidationError as error:
            raise SettingsError(_explain(error)) from error


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        name, text = str(problem["loc"][0]) if problem["loc"] else "", problem["msg"].removeprefix("Value error, ")
        if not name:  # of several settings, which it names
            lines.append(text)
        elif problem["type"] == "extra_forbidden":
            known = ", ".join(field.upper() for field in Settings.model_fields)
            lines.append(f"{name.upper()}: no such setting; there are {known}")
        else:
            given = "..." if name == "api_keys" else problem["input"]
            lines.append(f"{name.upper()}={given}: {text}")
    return "; ".join(lines)
