"""What engine is wanted, resolved once: its weights, its backend, its frames and the precisions to try."""

import hashlib
import inspect
from dataclasses import dataclass, field
from pathlib import Path

from app import backends
from app.backends import Backend
from app.errors import SettingsError, WeightsError
from app.model import Shape, format_shapes
from app.store import store
from app.store.accuracy import Limits
from app.store.manifest import Fingerprint, sha256
from app.weights.files import Weights, identify

PACKAGES = ("graphs", "vision", "weights")  # of app/: whatever changes there may change what an engine gives

_SAFER = ("int8", "fp16", "fp32")  # each is safer than the ones before it


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What settings ask for."""

    weights: str  # a path, or a name that Ultralytics can download
    imgsz: int | None  # longest side of a frame, px; None = the model's own
    batch: int
    precision: str  # auto | fp32 | fp16 | int8
    backend: str  # auto | a module of app/backends
    engines: Path
    shapes: tuple[Shape, ...] | None = None  # that frames may have; None = the smallest rectangle, or imgsz x imgsz
    instances: int | None = None  # None = the backend's own
    gate: Path | None = None  # images to evaluate the engine on
    calibration: Path | None = None  # images to calibrate int8 on
    limits: Limits = field(default_factory=Limits)

    @property
    def name(self) -> str:
        return Path(self.weights).stem


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """The order with all that it leaves to the weights and to this machine."""

    name: str  # of the model
    weights: Weights
    sha256: str  # of the weights
    imgsz: int
    shapes: tuple[Shape, ...] | None
    batch: int
    backend: str
    precisions: tuple[str, ...]  # the one asked for, then the safer ones
    engines: Path
    instances: int | None
    gate: Path | None
    calibration: Path | None
    limits: Limits

    @property
    def path(self) -> Path:
        """Of the weights."""
        return self.weights.path

    @property
    def reference(self) -> str:
        """With what the engine is compared, in words."""
        return "PyTorch FP32" if self.path.suffix == ".pt" else "ONNX Runtime FP32 on the plain export"

    @property
    def prebuilt(self) -> bool:
        """Whether the weights are an engine already."""
        return backends.owner(self.path) is not None

    def fingerprint(self, precision: str, *, calibration: str = "", evaluation: str = "") -> Fingerprint:
        """Of the engine of this precision. `calibration` and `evaluation` are known where engines are built."""
        backend = backends.get(self.backend)
        return Fingerprint(
            name=self.name,
            weights_sha256=self.sha256,
            graph_revision=revision(PACKAGES, *_files(backend)),
            evaluation_revision=evaluation,
            imgsz=self.imgsz,
            shapes=format_shapes(*self.shapes) if self.shapes else None,
            batch=self.batch,
            precision=precision,
            backend=self.backend,
            backend_version=backend.version(),
            device=backend.device(),
            calibration=calibration,
        )


def local_weights(order: BuildRequest) -> Path | None:
    """Where the weights lie on this machine; None if they have to be downloaded. Raises WeightsError."""
    if (path := Path(order.weights)).exists():
        return path
    if path.name != order.weights or path.suffix != ".pt":
        raise WeightsError(f"{order.weights}: no such file")
    downloaded = store.safe_path(order.engines, f"weights/{order.weights}")
    return downloaded if downloaded.is_file() else None


def resolve(order: BuildRequest, path: Path) -> BuildSpec:
    """The order for the weights at this path. Raises a SetupError."""
    files = identify(path)
    name, backend = _backend(order, path)
    imgsz, shapes = _frames(order, files, backend)
    return BuildSpec(
        name=order.name,
        weights=files,
        sha256=files.sha256,
        imgsz=imgsz,
        shapes=shapes,
        batch=order.batch,
        backend=name,
        precisions=_precisions(order, path, name, backend),
        engines=order.engines,
        instances=order.instances,
        gate=order.gate,
        calibration=order.calibration,
        limits=order.limits,
    )


def revision(packages: tuple[str, ...], *files: Path) -> str:
    """Digest of these packages' code and of the files: nobody can forget to raise it."""
    app = Path(__file__).parents[1]
    own = [path for package in packages for path in sorted((app / package).rglob("*.py"))]
    return hashlib.sha256("".join(map(sha256, (*own, *files))).encode()).hexdigest()[:16]


def _files(backend: Backend) -> list[Path]:
    """Of a backend, which is a module with what it shares with others, or a package."""
    path = Path(inspect.getsourcefile(backend) or "")  # type: ignore[arg-type]  # a module
    return sorted(path.parent.glob("*.py")) if path.name == "backend.py" else [path, path.with_name("shapes.py")]


def _backend(order: BuildRequest, path: Path) -> tuple[str, Backend]:
    """What runs the engine, by its name and as it is."""
    owner = backends.owner(path)
    name = backends.choose(owner if owner and order.backend == "auto" else order.backend)
    if owner not in (None, name):
        raise SettingsError(f"{path} is an engine of {owner}; BACKEND={name} cannot run it")
    return name, backends.get(name)


def _frames(order: BuildRequest, files: Weights, backend: Backend) -> tuple[int, tuple[Shape, ...] | None]:
    """The longest side and the shapes, so that whoever asks for the size that the weights have finds the same engine.

    A single shape is a size where no other frames are possible: all backends but those of fixed shapes also take the
    smallest rectangle for a size.
    """
    shapes = order.shapes or ()
    if not shapes:
        return order.imgsz or files.imgsz, None
    square = len(set(shapes[0])) == 1 and (files.classifies or backend.STATIC)
    only = len(shapes) == 1 and (shapes[0] == files.shape if files.shape else square)
    return max(map(max, shapes)), None if only else shapes


def _precisions(order: BuildRequest, path: Path, name: str, backend: Backend) -> tuple[str, ...]:
    """The one asked for and those that are safer; of an engine only its own."""
    if backends.owner(path):
        own = backend.precision_of(path)
        if order.precision not in ("auto", own):
            raise SettingsError(f"{path} is an {own} engine, not PRECISION={order.precision}")
        return (own,)
    requested = backend.PRECISIONS[0] if order.precision == "auto" else order.precision
    if requested not in backend.PRECISIONS:
        raise SettingsError(f"PRECISION={requested} does not exist on {name}: use {' or '.join(backend.PRECISIONS)}")
    return tuple(precision for precision in _SAFER[_SAFER.index(requested) :] if precision in backend.PRECISIONS)
