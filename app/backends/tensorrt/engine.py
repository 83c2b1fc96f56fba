"""A TensorRT engine at work: one or more plans, each for one shape of frame, and instances with a stream, buffers, and
an execution context for each shape and size of batch.

Serves plans of our own (uint8 frames in, a serving graph's outputs out) and, of detect, those of `yolo export
format=engine` (NCHW in 0..1 in, raw head out).
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
    """Deserialized engines, each with the shape it is used with where it leaves that open, and their instances.

    `alive` is what has to outlive them: TensorRT holds plain pointers.
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
        """Whether every size of batch runs as a CUDA graph."""
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
    """The part of an instance that is of one shape."""

    layout: Layout
    contexts: dict[int, "_Context"]  # by size of batch
    frames: NDArray[Any]  # [most, *source.shape], the instance's memory
    outputs: list[NDArray[Any]]  # each [most, *target.shape], the instance's memory

    def context(self, count: int) -> "_Context":
        """That of the smallest size which so many images fit."""
        sizes = self.layout.batches
        return self.contexts[sizes[bisect_left(sizes, count)]]


class Instance:
    """What one batch at a time needs: nothing of it is shared with another instance but the weights.

    Its memory, scratch and in- and outputs, is as large as its largest shape needs, and is used by all of them.
    """

    def __init__(self, engines: Sequence[tuple[Any, Shape]], scratch: int, graphs: bool) -> None:
        self.device_seconds = 0.0
        self._plans: dict[Shape, _Plan] = {}
        with contextlib.ExitStack() as opening:

            def own(thing: Any) -> Any:
                return opening.enter_context(contextlib.closing(thing))

            self._stream: Stream = own(Stream())
            self._begun, self._ended, self._copied = (own(Event()) for _ in range(3))
            memory = own(DeviceMemory(max(scratch, 256)))
            firsts = [_Context(engine, memory, self._stream) for engine, _ in engines]
            layouts = [
                Layout.of(engine, first.context, shape) for (engine, shape), first in zip(engines, firsts, strict=True)
            ]
            pixels = max(layout.most * layout.source.size for layout in layouts)
            outputs = [
                max(layout.most * target.size for layout, target in zip(layouts, targets, strict=True))
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
                frames_there = _view(self._on_host, layout.source, layout.most)
                found_there = [
                    _view(memory, target, layout.most)
                    for memory, target in zip(self._found_on_host, layout.targets, strict=True)
                ]
                self._plans[layout.shape] = _Plan(layout, contexts, frames_there, found_there)
            self._opened = opening.pop_all()

    @property
    def captured(self) -> bool:
        """Whether every size of batch of every shape runs as a CUDA graph."""
        return all(context.graph for plan in self._plans.values() for context in plan.contexts.values())

    def infer(self, frames: Sequence[Pixels]) -> list[Outputs]:
        """Blocks until the outputs are there. Raises EngineFailed for frames of a shape that was not built."""
        height, width = frames[0].shape[:2]
        plan = self._plans.get((height, width))
        if plan is None:
            raise EngineFailed(
                f"there is no plan for frames of {height}x{width}, only for {format_shapes(*self._plans)}"
            )
        most = plan.layout.most
        parts = (self._infer(plan, frames[i : i + most]) for i in range(0, len(frames), most))
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
        self._plans.clear()  # before the memory they work in
        self._opened.close()


def _view(memory: PinnedMemory, tensor: Tensor, images: int) -> NDArray[Any]:
    """So many images' values at the start of the memory."""
    return memory.array[: images * tensor.size].view(tensor.dtype).reshape(images, *tensor.shape)


class _Context:
    """An execution context for one size of batch, and its captured graph. One graph needs one context of its own."""

    def __init__(self, engine: Any, memory: DeviceMemory, stream: Stream) -> None:
        self._stream = stream
        self.graph: Graph | None = None
        self.context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self.context is None:
            raise EngineFailed("TensorRT gives no further execution context: use fewer INSTANCES")
        self.context.set_device_memory(memory.address, memory.size)
        allowed(self.context.set_optimization_profile_async(0, stream.handle), "a context of the profile")
        stream.synchronize()

    def prepare(self, layout: Layout, size: int, source: DeviceMemory, targets: Sequence[DeviceMemory]) -> None:
        """Fix shape and addresses, and run once, as capturing wants it."""
        allowed(self.context.set_input_shape(layout.source.name, (size, *layout.source.shape)), f"a batch of {size}")
        if missing := self.context.infer_shapes():
            raise EngineFailed(f"the engine leaves the shape of {missing} open")
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
        """Into the stream; does not wait."""
        if self.graph is not None:
            self.graph.launch(self._stream)
        else:
            allowed(self._enqueue(), f"to run a batch of {self._size}")

    def _enqueue(self) -> bool:
        return bool(self.context.execute_async_v3(self._stream.handle))
