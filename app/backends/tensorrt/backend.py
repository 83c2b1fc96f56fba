"""TensorRT on an NVIDIA GPU: serving graph -> plan -> engine. 10.12 and newer, and 11.x, on one way.

Every network is strongly typed: its precision is that of the graph, and no flag of the builder changes it. A plan has
one profile, batches from 1 to the configured one, tuned for the largest, and one shape of frame, so that anchors are
constants. An engine is the plans of all its shapes.
"""

import contextlib
import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorrt as trt

from app.backends import BuildContext
from app.backends.tensorrt import cuda
from app.backends.tensorrt.engine import TensorrtEngine
from app.backends.tensorrt.prebuilt import describe, precision_of
from app.errors import BackendUnavailable, BuildFailed, EngineStale
from app.model import Shape, format_shapes
from app.weights import metadata
from app.weights.files import engine_header

__all__ = [
    "INSTANCES",
    "PRECISIONS",
    "STATIC",
    "build",
    "describe",
    "device",
    "load",
    "open_plans",
    "precision_of",
    "require",
    "version",
]

PRECISIONS = ("fp16", "fp32", "int8")
INSTANCES = 2
ONE_DEVICE = True
STATIC = True

PLAN = ".plan"  # behind the shape of its frames
OLDEST = (10, 12)
RESERVE = 768 << 20  # bytes for the CUDA context, TensorRT's kernels and what else is not counted
REPORT_S = 0.5

log = logging.getLogger("yolopard.tensorrt")


def require() -> None:
    """A driver, a device, and a TensorRT that knows strongly typed networks as they are used here."""
    cuda.preflight()
    if tuple(int(part) for part in version().split(".")[:2]) < OLDEST:
        raise BackendUnavailable(f"TensorRT {version()} is too old: 10.12 or newer is needed")


def version() -> str:
    return str(trt.__version__)


def device() -> str:
    """Plans do not move between GPU models. The driver is not part of it: an update keeps the engines."""
    gpu = cuda.device()
    return f"{gpu.name} sm_{gpu.capability.replace('.', '')}"


def build(context: BuildContext) -> dict[str, Any]:
    """Compile the plans; an Ultralytics .engine is taken as it is. Raises BuildFailed with TensorRT's own words."""
    gpu, shapes = cuda.device(), context.model.shapes
    assert shapes is not None
    paths = [context.folder / f"{format_shapes(shape)}{PLAN}" for shape in shapes]
    if context.weights.suffix == ".engine":
        shutil.copyfile(context.weights, paths[0])
        return {"gpu": gpu.name, "driver_cuda": gpu.driver}
    facts: dict[str, Any] = {}
    graphs = {
        shape: _in_precision(context, shape, graph, facts) for shape, graph in zip(shapes, context.graphs, strict=True)
    }
    needed = _require_memory(context, graphs)
    started = time.monotonic()
    for (shape, graph), path in zip(graphs.items(), paths, strict=True):
        plan = _compile(graph, shape, context)
        with path.open("wb") as file:
            file.write(plan)
    return {
        "gpu": gpu.name,
        "driver_cuda": gpu.driver,
        "compile_seconds": round(time.monotonic() - started, 1),
        "estimated_device_bytes": needed,
        **_measured_memory(context),
        **facts,
    }


def load(folder: Path, instances: int, threads: int) -> TensorrtEngine:
    """Raises EngineStale, with TensorRT's reason, where it refuses a plan."""
    return open_plans(folder, instances)


def open_plans(folder: Path, instances: int, *, graphs: bool = True) -> TensorrtEngine:
    """As `load`; without `graphs` every batch is enqueued anew."""
    runtime_log = Log()
    runtime = trt.Runtime(runtime_log)
    engines = []
    for path in sorted(folder.glob(f"*{PLAN}")):
        header, start = engine_header(path)
        engine = runtime.deserialize_cuda_engine(memoryview(path.read_bytes())[start:])
        if engine is None:
            raise EngineStale(f"TensorRT {version()} does not load {path}: {runtime_log.reason()}")
        engines.append((engine, metadata.shape(header.get("imgsz")) or (0, 0)))
    return TensorrtEngine(engines, instances, graphs=graphs, alive=(runtime, runtime_log))


class Log(trt.ILogger):  # type: ignore[misc]
    """TensorRT's log in ours. Keeps the last errors, since most failures are only None. Its threads call it."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self._complaints: deque[str] = deque(maxlen=3)

    def log(self, severity: Any, msg: str) -> None:
        level = (logging.ERROR, logging.ERROR, logging.WARNING, logging.DEBUG, logging.DEBUG)[int(severity)]
        if level == logging.ERROR:
            self._complaints.append(msg.strip())
        log.log(level, "%s", msg.strip())

    def reason(self) -> str:
        """The last errors, in one line."""
        return " | ".join(self._complaints).replace("\n", " ") or "it gives no reason"


class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
    """Tells how far the compiler is. Its methods are called by several threads."""

    def __init__(self, report: Callable[[str], None]) -> None:
        trt.IProgressMonitor.__init__(self)
        self._report = report
        self._steps: dict[str, int] = {}
        self._lock = threading.Lock()
        self._last = 0.0

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        with self._lock:
            self._steps[phase_name] = num_steps

    def phase_finish(self, phase_name: str) -> None:
        with self._lock:
            self._steps.pop(phase_name, None)

    def step_complete(self, phase_name: str, step: int) -> bool:
        """False ends the build: when the server that waits for it is gone."""
        with self._lock:
            if time.monotonic() - self._last < REPORT_S:
                return True
            self._last = time.monotonic()
            try:
                self._report(f"{phase_name} {step + 1}/{self._steps.get(phase_name, 0)}")
            except OSError:
                return False
        return True


def _in_precision(context: BuildContext, shape: Shape, graph: Path, facts: dict[str, Any]) -> Path:
    """INT8 with everything in FP16 that is not INT8 and not the decode; how INT8 was made is added to `facts`."""
    if context.precision == "fp32":
        return graph
    from app.graphs import fp16, int8_search

    half = graph.with_name("fp16.onnx")
    if context.precision == "int8":
        quantized = graph.with_name("int8.onnx")
        made = int8_search.to_int8(graph, quantized, context.calibration([shape]), zero_points=False)
        facts[f"int8 {format_shapes(shape)}"] = made["int8"]
        graph = quantized
    fp16.to_half(graph, half)
    return half


def _require_memory(context: BuildContext, graphs: Mapping[Shape, Path]) -> int:
    """The bytes of device memory that serving will take, by estimate. Raises BuildFailed if so many are not free.

    Every plan has weights of its own; the rest of an instance is shared by its plans.
    """
    from app.graphs import memory

    instances, weights = context.instances, sum(map(memory.weight_bytes, graphs.values()))

    def needed(batch: int) -> int:
        most = max(memory.activation_bytes(graph, batch, shape) for shape, graph in graphs.items())
        return RESERVE + weights + instances * most

    free, total = cuda.memory()
    wanted, least = needed(context.batch), needed(1)
    memory_text = f"about {_gb(wanted)} of {_gb(free)} free GPU memory"
    text = f"BATCH={context.batch} at {format_shapes(*graphs)} in {instances} instances: {memory_text}"
    log.info("%s", text)
    context.report(text)
    if wanted <= free:
        return wanted
    each = (wanted - least) / max(context.batch - 1, 1)
    fitting = int(1 + (free - least) / each) if each and free >= least else 0
    advice = (
        f"BATCH={fitting} fits" if fitting else "not even BATCH=1 fits: use smaller or fewer shapes, or free the GPU"
    )
    raise BuildFailed(f"{text} (of {_gb(total)} in all) are too much: {advice}")


def _gb(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _compile(graph: Path, shape: Shape, context: BuildContext) -> Any:
    """The plan, as an object with the buffer protocol."""
    builder_log = Log()
    builder = trt.Builder(builder_log)
    # Opt-in on 10, always on and this flag ignored on 11.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder_log)
    if not parser.parse_from_file(str(graph)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise BuildFailed(
            "TensorRT cannot read the graph: " + "; ".join(f"{error.node_name()}: {error.desc()}" for error in errors)
        )
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default: the decode would lose 13 of FP32's 23 bits
    config.progress_monitor = Monitor(lambda text: context.report(f"{format_shapes(shape)} {text}"))
    profile = builder.create_optimization_profile()
    frame, batch = (*shape, 3), context.batch
    profile.set_shape("images", (1, *frame), (batch, *frame), (batch, *frame))
    if config.add_optimization_profile(profile) < 0:
        raise BuildFailed(f"TensorRT refuses batches of 1 to {batch} frames {frame}: {builder_log.reason()}")
    cache_file = _timing_cache_file(context.cache)
    cache = _set_timing_cache(config, cache_file)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildFailed(f"TensorRT could not compile the engine: {builder_log.reason()}")
    _keep(cache.serialize(), cache_file)
    return plan


def _timing_cache_file(folder: Path) -> Path:
    """Timings hold for one TensorRT on one GPU model."""
    return folder / f"timing-{version()}-{device().replace(' ', '-').replace('/', '-')}.bin"


def _set_timing_cache(config: Any, path: Path) -> Any:
    """The cache, which must outlive the build; an empty one where the stored one is of no use."""
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        log.warning("%s does not fit this GPU and TensorRT: starting an empty one", path)
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _keep(content: Any, path: Path) -> None:
    """Whole or not at all. The next build is only slower without it."""
    partial = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        log.warning("the timing cache %s was not kept: %s", path, error.strerror)


def _measured_memory(context: BuildContext) -> dict[str, int]:
    """Device memory that one instance of the loaded engine takes from the device."""
    before, _ = cuda.memory()
    engine = load(context.folder, 1, 1)
    after, _ = cuda.memory()
    facts = {"loaded_device_bytes": before - after, "activation_bytes": engine.activation_bytes}
    engine.close()
    return facts
