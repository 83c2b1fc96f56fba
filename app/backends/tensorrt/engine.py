"""Runs a TensorRT engine: one plan per frame shape, and instances that each have a stream, buffers, and an execution
context per shape and batch size.

Supports plans of this project (uint8 frames in, outputs of the serving graph out) and, for detect, those of `yolo
export format=engine` (NCHW of 0..1 in, raw head out).
"""

import contextlib
import logging
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorrt as trt
from numpy.typing import NDArray

from app.backends.tensorrt.cuda import DeviceMemory, Event, Graph, PinnedMemory, Stream
from app.backends.tensorrt.layout import Layout, Tensor, allowed
from app.errors import EngineFailed
from app.model import Shape, format_shapes
from app.vision.postprocess import Outputs
from app.vision.preprocess import Pixels

log = logging.getLogger("yolopard.tensorrt")


class TensorrtEngine:
    """Deserialized engines and their instances. Each engine comes with the frame shape to use if its own is dynamic.

    `alive` holds objects that must outlive the engines, because TensorRT only has plain pointers to them.
    """

    def __init__(
        self, engines: Sequence[tuple[Any, Shape]], instances: int, *, graphs: bool, alive: tuple[Any, ...]
    ) -> None:
        self._alive = (engines, *alive)
        self.activation_bytes = max(int(engine.device_memory_size_v2) for engine, _ in engines)
        with contextlib.ExitStack() as opening:
            self._instances = [
                opening.enter_context(contextlib.closing(Instance(engines, self.activation_bytes, graphs)))
                for _ in range(instances)
            ]
            self._open = opening.pop_all()

    @property
    def captured(self) -> bool:
        """True if every batch size runs as a CUDA graph."""
        return all(instance.captured for instance in self._instances)

    def infer(self, instance: int, frames: Sequence[Pixels], *, low_latency: bool = False) -> list[Outputs]:
        return self._instances[instance].infer(frames)

    def device_seconds(self, instance: int) -> float | None:
        return self._instances[instance].device_seconds

    def close(self) -> None:
        self._instances.clear()
        self._open.close()


@dataclass(frozen=True, slots=True)
class _Plan:
    """The part of an instance for one frame shape."""

    layout: Layout
    contexts: dict[int, "_Context"]  # by batch size
    frames: NDArray[Any]  # [max_batch, *source.shape], a view of the instance's memory
    outputs: list[NDArray[Any]]  # each [max_batch, *target.shape], a view of the instance's memory

    def context(self, count: int) -> "_Context":
        """Return the context of the smallest batch size that holds `count` images."""
        sizes = self.layout.batches
        return self.contexts[sizes[bisect_left(sizes, count)]]


class Instance:
    """Everything to run one batch at a time. Instances share only the weights.

    All shapes use the same scratch, input and output memory, which is as large as the largest shape needs.
    """

    def __init__(self, engines: Sequence[tuple[Any, Shape]], scratch: int, graphs: bool) -> None:
        self.device_seconds = 0.0
        self._plans: dict[Shape, _Plan] = {}
        with contextlib.ExitStack() as opening:

            def own(resource: Any) -> Any:
                return opening.enter_context(contextlib.closing(resource))

            self._stream: Stream = own(Stream())
            self._begun, self._ended, self._copied = (own(Event()) for _ in range(3))
            memory = own(DeviceMemory(max(scratch, 256)))
            firsts = [_Context(engine, memory, self._stream) for engine, _ in engines]
            layouts = [
                Layout.of(engine, first.context, shape) for (engine, shape), first in zip(engines, firsts, strict=True)
            ]
            pixels = max(layout.max_batch * layout.source.size for layout in layouts)
            outputs = [
                max(layout.max_batch * target.size for layout, target in zip(layouts, targets, strict=True))
                for targets in zip(*(layout.targets for layout in layouts), strict=True)
            ]
            self._on_host, self._on_device = own(PinnedMemory(pixels)), own(DeviceMemory(pixels))
            self._found_on_host = [own(PinnedMemory(size)) for size in outputs]
            self._found_on_device = [own(DeviceMemory(size)) for size in outputs]
            for (engine, _), first, layout in zip(engines, firsts, layouts, strict=True):
                contexts: dict[int, _Context] = {}
                for size in reversed(layout.batches):
                    context = _Context(engine, memory, self._stream) if contexts else first
                    context.prepare(layout, size, self._on_device, self._found_on_device)
                    if graphs:
                        context.capture(own)
                    contexts[size] = context
                frames_there = _view(self._on_host, layout.source, layout.max_batch)
                found_there = [
                    _view(memory, target, layout.max_batch)
                    for memory, target in zip(self._found_on_host, layout.targets, strict=True)
                ]
                self._plans[layout.shape] = _Plan(layout, contexts, frames_there, found_there)
            self._opened = opening.pop_all()

    @property
    def captured(self) -> bool:
        """True if every batch size of every shape runs as a CUDA graph."""
        return all(context.graph for plan in self._plans.values() for context in plan.contexts.values())

    def infer(self, frames: Sequence[Pixels]) -> list[Outputs]:
        """Return the outputs of each frame; blocks. Raises EngineFailed for frames of a shape without a plan."""
        height, width = frames[0].shape[:2]
        plan = self._plans.get((height, width))
        if plan is None:
            raise EngineFailed(
                f"there is no plan for frames of {height}x{width}, only for {format_shapes(*self._plans)}"
            )
        size = plan.layout.max_batch
        parts = (self._infer(plan, frames[i : i + size]) for i in range(0, len(frames), size))
        return [outputs for part in parts for outputs in part]

    def _infer(self, plan: _Plan, frames: Sequence[Pixels]) -> list[Outputs]:
        count, layout = len(frames), plan.layout
        layout.write(frames, plan.frames)
        self._stream.to_device(self._on_device, self._on_host, count * layout.source.size)
        self._begun.record(self._stream)
        plan.context(count).run()
        self._ended.record(self._stream)
        for there, here, target in zip(self._found_on_device, self._found_on_host, layout.targets, strict=True):
            self._stream.to_host(here, there, count * target.size)
        self._copied.record(self._stream)
        self._copied.synchronize()
        self.device_seconds = self._ended.seconds_since(self._begun)
        return layout.read([output[:count] for output in plan.outputs])

    def close(self) -> None:
        self._stream.synchronize()
        self._plans.clear()  # before the memory that their contexts use
        self._opened.close()


def _view(memory: PinnedMemory, tensor: Tensor, images: int) -> NDArray[Any]:
    """Return the start of the memory as an array [images, *tensor.shape]."""
    return memory.array[: images * tensor.size].view(tensor.dtype).reshape(images, *tensor.shape)


class _Context:
    """An execution context for one batch size, and its captured graph. Every graph needs its own context."""

    def __init__(self, engine: Any, memory: DeviceMemory, stream: Stream) -> None:
        self._stream = stream
        self.graph: Graph | None = None
        self.context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self.context is None:
            raise EngineFailed("TensorRT creates no further execution context: use fewer INSTANCES")
        self.context.set_device_memory(memory.address, memory.size)
        allowed(self.context.set_optimization_profile_async(0, stream.handle), "a context of the profile")
        stream.synchronize()

    def prepare(self, layout: Layout, size: int, source: DeviceMemory, targets: Sequence[DeviceMemory]) -> None:
        """Set shape and addresses, and run once, which is required before capturing."""
        allowed(self.context.set_input_shape(layout.source.name, (size, *layout.source.shape)), f"a batch of {size}")
        if missing := self.context.infer_shapes():
            raise EngineFailed(f"the engine does not define the shape of {missing}")
        for tensor, memory in zip((layout.source, *layout.targets), (source, *targets), strict=True):
            allowed(self.context.set_tensor_address(tensor.name, memory.address), f"the address of {tensor.name}")
        allowed(self._enqueue(), f"to run a batch of {size}")
        self._stream.synchronize()
        self._size = size

    def capture(self, own: Any) -> None:
        graph = self._stream.capture(self._enqueue)
        if graph is None:
            log.info("batches of %d cannot be captured as a CUDA graph; they are enqueued each time", self._size)
            return
        self.graph = own(graph)

    def run(self) -> None:
        """Add the batch to the stream; does not wait."""
        if self.graph is not None:
            self.graph.launch(self._stream)
        else:
            allowed(self._enqueue(), f"to run a batch of {self._size}")

    def _enqueue(self) -> bool:
        return bool(self.context.execute_async_v3(self._stream.handle))
