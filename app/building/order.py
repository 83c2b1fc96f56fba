"""What is to be built, and the fingerprints of the engines that this may end in."""

import hashlib
import inspect
from dataclasses import dataclass, field, replace
from pathlib import Path

from app import backends
from app.backends import Backend
from app.errors import SettingsError
from app.evaluation import datasets
from app.model import Shape, spell
from app.settings import DEMO
from app.store import store
from app.store.accuracy import Limits
from app.store.store import Fingerprint
from app.weights.weights import Weights

CALIBRATION_IMAGES = 48  # 30 are as good as 300 (loadtest/RESULTS.md)
PACKAGES = ("building", "evaluation", "graphs", "vision", "weights")  # that change an engine or how it is judged

_SAFER = ("int8", "fp16", "fp32")  # each is safer than the ones before it


@dataclass(frozen=True, slots=True)
class Order:
    """What to build."""

    weights: str  # a path, or a name that Ultralytics can download
    imgsz: int | None  # longest side of a frame, px; None = the model's own
    batch: int
    precision: str  # auto | fp32 | fp16 | int8
    backend: str  # auto | a file of app/backends
    engines: Path
    shapes: tuple[Shape, ...] | None = None  # that frames may have; None = the smallest rectangle, or imgsz x imgsz
    lanes: int | None = None  # None = the backend's own
    gate: Path | None = None  # images to judge the engine on
    calibration: Path | None = None  # images to calibrate int8 on
    limits: Limits = field(default_factory=Limits)

    @property
    def name(self) -> str:
        return Path(self.weights).stem


def sized(order: Order, files: Weights) -> Order:
    """The order with the size that it leaves to the weights, so that whoever asks for that size finds the same engine.

    A single shape is a size where no other frames are possible: all backends but those of fixed shapes also take the
    smallest rectangle for a size.
    """
    shapes = order.shapes or ()
    if not shapes:
        return replace(order, imgsz=order.imgsz or files.imgsz)
    square = len(set(shapes[0])) == 1 and (files.classifies or _backend(order, files.path)[1].STATIC)
    alone = len(shapes) == 1 and (shapes[0] == files.shape if files.shape else square)
    return replace(order, imgsz=max(map(max, shapes)), shapes=None if alone else shapes)


def _backend(order: Order, path: Path) -> tuple[str, Backend]:
    """What runs the engine, by its name and as it is."""
    engine = path.suffix == ".engine"
    name = backends.choose("tensorrt" if engine and order.backend == "auto" else order.backend)
    if engine and name != "tensorrt":
        raise SettingsError(f"{path} is a TensorRT engine; BACKEND={name} cannot run it")
    return name, backends.get(name)


def fingerprints(order: Order, files: Weights) -> list[Fingerprint]:
    """Of the engine asked for, and of those of safer precisions, in the order in which they are tried."""
    name, backend = _backend(order, files.path)
    digest = files.sha256
    return [
        Fingerprint(
            name=order.name,
            weights_sha256=digest,
            graph_revision=_revision(inspect.getsourcefile(backend)),  # type: ignore[arg-type]
            imgsz=order.imgsz or files.imgsz,
            shapes=spell(*order.shapes) if order.shapes else None,
            batch=order.batch,
            precision=precision,
            backend=name,
            backend_version=backend.version(),
            device=backend.device(),
            calibration=_calibration_digest(order, files.path) if precision == "int8" else "",
        )
        for precision in _precisions(order, files.path, name, backend)
    ]


def _precisions(order: Order, weights: Path, name: str, backend: Backend) -> list[str]:
    """The one asked for and those that are safer; of an .engine only its own."""
    if weights.suffix == ".engine":
        from app.backends import tensorrt

        own = tensorrt.precision_of(weights)
        if order.precision not in ("auto", own):
            raise SettingsError(f"{weights} is an {own} engine, not PRECISION={order.precision}")
        return [own]
    asked = backend.PRECISIONS[0] if order.precision == "auto" else order.precision
    if asked not in backend.PRECISIONS:
        raise SettingsError(f"PRECISION={asked} does not exist on {name}: use {' or '.join(backend.PRECISIONS)}")
    return [precision for precision in _SAFER[_SAFER.index(asked) :] if precision in backend.PRECISIONS]


def _calibration_digest(order: Order, weights: Path) -> str:
    if weights.suffix == ".engine":
        return ""
    if order.calibration:
        return datasets.digest(order.calibration, "CALIBRATION_DIR")
    if is_demo(weights):
        return f"{CALIBRATION_IMAGES} scenes"
    raise SettingsError(
        "PRECISION=int8 is calibrated on images like those to be served: give a folder of 50 or so with CALIBRATION_DIR"
    )


def is_demo(weights: Path) -> bool:
    digest = store.sha256(weights)
    return any(store.sha256(demo) == digest for demo in DEMO.glob("*.pt"))


def _revision(backend_file: str) -> str:
    """Of the code that makes graph and engine, and that judges: its own digest, which nobody can forget to raise."""
    app, backend = Path(__file__).parents[1], Path(backend_file)
    own = [path for package in PACKAGES for path in sorted((app / package).rglob("*.py"))]
    package = backend.name == "__init__.py"
    of_backend = sorted(backend.parent.glob("*.py")) if package else [backend, backend.with_name("shapes.py")]
    digests = [store.sha256(path) for path in (*own, DEMO / "scenes.py", *of_backend)]
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
