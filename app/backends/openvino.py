"""OpenVINO on the CPU: the default where there is no GPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from app.backends import BuildContext
from app.backends.shapes import Shapes
from app.model import format_shapes, parse_shapes
from app.system import host
from app.vision.postprocess import Outputs
from app.vision.preprocess import Pixels

PRECISIONS = ("fp32", "int8")
INSTANCES = None
ONE_DEVICE = False
STATIC = False

_FILE = "model.xml"
_SHAPES = ["yolopard", "shapes"]  # where the model's file tells them


def require() -> None:
    """It runs wherever it is installed."""


def version() -> str:
    return str(openvino.__version__).partition("-")[0]


def device() -> str:
    return host.architecture()


def build(context: BuildContext) -> dict[str, Any]:
    """By convert_model: read_model gives other boxes for a quantized graph, without an error (docs/decisions.md)."""
    from app.graphs import int8_search

    (graph,), facts = context.graphs, {}
    if context.precision == "int8":
        quantized = graph.with_name("int8.onnx")
        facts = int8_search.to_int8(graph, quantized, context.calibration(context.model.shapes), zero_points=True)
        graph = quantized
    model = openvino.convert_model(graph)
    model.set_rt_info(format_shapes(*context.model.shapes or ()), _SHAPES)
    openvino.save_model(model, context.folder / _FILE, compress_to_fp16=False)
    return facts


def load(folder: Path, instances: int, threads: int) -> "OpenvinoEngine":
    return OpenvinoEngine(folder / _FILE, instances, threads)


class OpenvinoEngine:
    """One graph for frames of any shape; a quantized one is compiled for listed and for frequent shapes as well."""

    def __init__(self, path: Path, instances: int, threads: int) -> None:
        self._path, self._instances, self._threads = path, instances, threads
        self._core = openvino.Core()
        self._any = self._compile(None)
        model = self._core.read_model(path)
        listed = [(*shape, 3) for shape in parse_shapes(model.get_rt_info(_SHAPES).astype(str))]
        quantized = any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
        self._shapes = Shapes(self._compile, listed) if quantized else None

    def infer(self, instance: int, frames: Sequence[Pixels], *, low_latency: bool = False) -> list[Outputs]:
        compiled = self._any
        if self._shapes and len(frames) == 1:
            compiled = self._shapes.get(frames[0].shape) or compiled
        return compiled.infer(instance, frames, low_latency)

    def device_seconds(self, instance: int) -> float | None:
        return None

    def close(self) -> None:
        if self._shapes:
            self._shapes.close()
        del self._any, self._shapes

    def _compile(self, shape: tuple[int, ...] | None) -> "Compiled":
        model = self._core.read_model(self._path)
        if shape:
            model.reshape({model.input(0): (1, *shape)})
        return Compiled(self._core, model, self._instances, self._threads)


class Compiled:
    """Two ways through one graph: all cores on one batch, which answers soonest, and a stream for each instance, which
    answers most.
    """

    def __init__(self, core: openvino.Core, model: openvino.Model, instances: int, threads: int) -> None:
        def requests(streams: int) -> list[openvino.InferRequest]:
            options = {
                "NUM_STREAMS": streams,
                "INFERENCE_NUM_THREADS": max(threads, streams),
                # The default is bfloat16 on CPUs that have it: twice as fast, and not FP32 (docs/decisions.md).
                "INFERENCE_PRECISION_HINT": "f32",
                # Pinned, a stream waits for its own core while another one is free (loadtest/RESULTS.md).
                "ENABLE_CPU_PINNING": False,
            }
            compiled = core.compile_model(model, "CPU", options)
            return [compiled.create_infer_request() for _ in range(streams)]

        self._of_instance = requests(instances)
        self._alone = requests(1)[0] if instances > 1 else self._of_instance[0]

    def infer(self, instance: int, frames: Sequence[Pixels], low_latency: bool) -> list[Outputs]:
        request = self._alone if low_latency else self._of_instance[instance]
        batch = frames[0][None] if len(frames) == 1 else np.stack(frames)
        found = request.infer({"images": batch}, share_inputs=True, share_outputs=True)
        return list(zip(*(np.array(output) for output in found.values()), strict=True))  # the next batch writes there
