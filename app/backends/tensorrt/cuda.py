"""The few things of CUDA that an engine needs, through cuda.bindings. Every call is checked; device 0 is the device.

CUDA_VISIBLE_DEVICES chooses another. Blocking calls let go of the GIL.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from cuda.bindings import runtime
from numpy.typing import NDArray

from app.errors import BackendUnavailable, EngineFailed


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU as an engine depends on it."""

    name: str  # such as "NVIDIA A10G"
    capability: str  # such as "8.6"
    driver: str  # the newest CUDA version that the driver knows, such as "12.8"


def preflight() -> None:
    """Raise BackendUnavailable, with the reason, unless there is a driver and a device.

    To be called before TensorRT is touched: without a driver, creating its Runtime ends the process.
    """
    error, driver = runtime.cudaDriverGetVersion()
    if int(error) or not driver:
        raise BackendUnavailable("there is no NVIDIA driver on this machine")
    error, count = runtime.cudaGetDeviceCount()
    if int(error) or not count:
        raise BackendUnavailable(
            f"there is no usable NVIDIA GPU: {_explain(error) if int(error) else 'none is visible'}"
        )


def device() -> Device:
    """What stands behind device 0."""
    facts = _checked("cudaGetDeviceProperties", 0)
    driver = _checked("cudaDriverGetVersion")
    return Device(facts.name.decode(), f"{facts.major}.{facts.minor}", f"{driver // 1000}.{driver % 1000 // 10}")


def memory() -> tuple[int, int]:
    """Free and total bytes of device memory."""
    free, total = _checked("cudaMemGetInfo")
    return int(free), int(total)


class Stream:
    """Work in order, apart from other streams. Never the default stream: TensorRT would synchronize the device."""

    def __init__(self) -> None:
        self.handle = int(_checked("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking))

    def synchronize(self) -> None:
        """Wait until all its work is done."""
        _checked("cudaStreamSynchronize", self.handle)

    def to_device(self, target: "DeviceMemory", source: "PinnedMemory", size: int) -> None:
        """Begin to copy `size` bytes."""
        self._copy(target.address, source.address, size, runtime.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def to_host(self, target: "PinnedMemory", source: "DeviceMemory", size: int) -> None:
        """Begin to copy `size` bytes."""
        self._copy(target.address, source.address, size, runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        _checked("cudaMemcpyAsync", target, source, size, kind, self.handle)

    def capture(self, enqueue: Callable[[], bool]) -> "Graph | None":
        """What `enqueue` puts into this stream, as a graph; None where it cannot be captured."""
        # "global" would break every other thread: https://github.com/roboflow/inference/pull/2866
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        _checked("cudaStreamBeginCapture", self.handle, mode)
        enqueued = False
        try:
            enqueued = enqueue()
        finally:
            error, graph = runtime.cudaStreamEndCapture(self.handle)
            instance = None
            if not int(error):
                error, instance = runtime.cudaGraphInstantiate(graph, 0) if enqueued else (error, None)
                _checked("cudaGraphDestroy", graph)
        return Graph(instance) if enqueued and not int(error) else None

    def close(self) -> None:
        _checked("cudaStreamDestroy", self.handle)


class Graph:
    """Captured work, launched as one: saves the launch of every kernel."""

    def __init__(self, instance: Any) -> None:
        self._instance = instance

    def launch(self, stream: Stream) -> None:
        _checked("cudaGraphLaunch", self._instance, stream.handle)

    def close(self) -> None:
        _checked("cudaGraphExecDestroy", self._instance)


class Event:
    """A point in a stream, with its time."""

    def __init__(self) -> None:
        # Waiting threads sleep; they would spin on a core that decodes JPEGs.
        self._event = _checked("cudaEventCreateWithFlags", runtime.cudaEventBlockingSync)

    def record(self, stream: Stream) -> None:
        _checked("cudaEventRecord", self._event, stream.handle)

    def synchronize(self) -> None:
        """Wait until the stream has come to this point."""
        _checked("cudaEventSynchronize", self._event)

    def seconds_since(self, earlier: Self) -> float:
        """Device time between two points that have been reached."""
        return float(_checked("cudaEventElapsedTime", earlier._event, self._event)) / 1000

    def close(self) -> None:
        _checked("cudaEventDestroy", self._event)


class DeviceMemory:
    """Bytes on the device."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.address = int(_checked("cudaMalloc", size))

    def close(self) -> None:
        _checked("cudaFree", self.address)


class PinnedMemory:
    """Bytes of the host that the device copies without a detour."""

    def __init__(self, size: int) -> None:
        self.address = int(_checked("cudaHostAlloc", size, runtime.cudaHostAllocDefault))
        self.array: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(self.address))

    def close(self) -> None:
        _checked("cudaFreeHost", self.address)


def _checked(function: str, *arguments: Any) -> Any:
    """The result of a call. Raises EngineFailed with CUDA's own words."""
    error, *results = getattr(runtime, function)(*arguments)
    if int(error):
        raise EngineFailed(f"{function}: {_explain(error)}")
    return results[0] if len(results) == 1 else results


def _explain(error: Any) -> str:
    _, text = runtime.cudaGetErrorString(error)
    return str(text.decode())
