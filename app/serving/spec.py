"""Resolves a build request: weights, backend, frame shapes and the precisions to try."""

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

PACKAGES = ("graphs", "vision", "weights")  # of app/: a change in their code may change an engine's outputs

_SAFER = ("int8", "fp16", "fp32")  # each is safer than the ones before it


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """The engine that the settings request."""

    weights: str  # a path, or a name that Ultralytics can download
    imgsz: int | None  # longest side of a frame, px; None = the model's own
    batch: int
    precision: str  # auto | fp32 | fp16 | int8
    backend: str  # auto | a module of app/backends
    engines: Path
    shapes: tuple[Shape, ...] | None = None  # of frames; None = the smallest rectangle, or imgsz x imgsz
    instances: int | None = None  # None = the backend's own
    gate: Path | None = None  # images to evaluate the engine on
    calibration: Path | None = None  # images to calibrate int8 on
    limits: Limits = field(default_factory=Limits)

    @property
    def name(self) -> str:
        return Path(self.weights).stem


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """A build request in which everything that depends on the weights and on this machine is resolved."""

    name: str  # of the model
    weights: Weights
    sha256: str  # of the weights
    imgsz: int
    shapes: tuple[Shape, ...] | None
    batch: int
    backend: str
    precisions: tuple[str, ...]  # the requested one, then the safer ones
    engines: Path
    instances: int | None
    gate: Path | None
    calibration: Path | None
    limits: Limits

    @property
    def path(self) -> Path:
        """The file of the weights."""
        return self.weights.path

    @property
    def reference(self) -> str:
        """Text that names the reference of the accuracy gate."""
        return "PyTorch FP32" if self.path.suffix == ".pt" else "ONNX Runtime FP32 on the plain export"

    @property
    def prebuilt(self) -> bool:
        """True if the weights are an engine already."""
        return backends.owner(self.path) is not None

    def fingerprint(self, precision: str, *, calibration: str = "", evaluation: str = "") -> Fingerprint:
        """Return the fingerprint at this precision. Only the builder knows `calibration` and `evaluation`."""
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


def local_weights(request: BuildRequest) -> Path | None:
    """Return the path of the weights here; None if they must be downloaded. Raises WeightsError."""
    if (path := Path(request.weights)).exists():
        return path
    if path.name != request.weights or path.suffix != ".pt":
        raise WeightsError(f"{request.weights}: no such file")
    downloaded = store.safe_path(request.engines, f"weights/{request.weights}")
    return downloaded if downloaded.is_file() else None


def resolve(request: BuildRequest, path: Path) -> BuildSpec:
    """Return the spec of the request for the weights at `path`. Raises a SetupError."""
    files = identify(path)
    name, backend = _backend(request, path)
    imgsz, shapes = _frames(request, files, backend)
    return BuildSpec(
        name=request.name,
        weights=files,
        sha256=files.sha256,
        imgsz=imgsz,
        shapes=shapes,
        batch=request.batch,
        backend=name,
        precisions=_precisions(request, path, name, backend),
        engines=request.engines,
        instances=request.instances,
        gate=request.gate,
        calibration=request.calibration,
        limits=request.limits,
    )


def revision(packages: tuple[str, ...], *files: Path) -> str:
    """Return a digest of the code of these packages and of the files, used instead of a version number."""
    app = Path(__file__).parents[1]
    own = [path for package in packages for path in sorted((app / package).rglob("*.py"))]
    return hashlib.sha256("".join(map(sha256, (*own, *files))).encode()).hexdigest()[:16]


def _files(backend: Backend) -> list[Path]:
    """Return the source files of a backend: all of a package, or a module and shapes.py."""
    path = Path(inspect.getsourcefile(backend) or "")  # type: ignore[arg-type]  # a module
    return sorted(path.parent.glob("*.py")) if path.name == "backend.py" else [path, path.with_name("shapes.py")]


def _backend(request: BuildRequest, path: Path) -> tuple[str, Backend]:
    """Return the name and the module of the backend that runs the engine. Raises SettingsError."""
    owner = backends.owner(path)
    name = backends.choose(owner if owner and request.backend == "auto" else request.backend)
    if owner not in (None, name):
        raise SettingsError(f"{path} is an engine of {owner}; BACKEND={name} cannot run it")
    return name, backends.get(name)


def _frames(request: BuildRequest, files: Weights, backend: Backend) -> tuple[int, tuple[Shape, ...] | None]:
    """Return the longest side and the shapes; shapes are None if the longest side already defines the frames.

    A single shape then has the same fingerprint as the size alone. This holds only where a size allows no other frame:
    with a size, every backend that is not STATIC also takes the smallest rectangle.
    """
    shapes = request.shapes or ()
    if not shapes:
        return request.imgsz or files.imgsz, None
    square = len(set(shapes[0])) == 1 and (files.classifies or backend.STATIC)
    only = len(shapes) == 1 and (shapes[0] == files.shape if files.shape else square)
    return max(map(max, shapes)), None if only else shapes


def _precisions(request: BuildRequest, path: Path, name: str, backend: Backend) -> tuple[str, ...]:
    """Return the requested precision and the safer ones; for a prebuilt engine only its own. Raises SettingsError."""
    if backends.owner(path):
        own = backend.precision_of(path)
        if request.precision not in ("auto", own):
            raise SettingsError(f"{path} is an {own} engine, not PRECISION={request.precision}")
        return (own,)
    requested = backend.PRECISIONS[0] if request.precision == "auto" else request.precision
    if requested not in backend.PRECISIONS:
        raise SettingsError(f"PRECISION={requested} does not exist on {name}: use {' or '.join(backend.PRECISIONS)}")
    return tuple(precision for precision in _SAFER[_SAFER.index(requested) :] if precision in backend.PRECISIONS)
