# ruff: noqa: N802, N815 (the names are CUDA's)
"""A stand-in for the part of cuda.bindings.runtime that app/backends/tensorrt/cuda.py uses: real memory, lazy streams.

Queued work runs when its stream, or an event after it, is synchronized: code that reads too early reads stale bytes.
Calls that would end or corrupt a real process fail the test, even if the app catches exceptions.
"""

import functools
import inspect
import itertools
import operator
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import pytest
from cuda.bindings import runtime

Error = runtime.cudaError_t
ALIGNMENT = 256


@dataclass(eq=False)
class _Block:
    kind: str  # "device" or "pinned"
    bytes: np.ndarray


@dataclass(eq=False)
class _Operation:
    run: Callable[[], None]
    uses: frozenset[int] = frozenset()  # the memory blocks it needs
    exclusive: frozenset[int] = frozenset()  # those of them that no other stream may use meanwhile
    takes_time: bool = True


@dataclass(eq=False)
class _Stream:
    queue: deque[_Operation] = field(default_factory=deque)
    running: Any = field(default_factory=threading.RLock)
    captured: list[_Operation] | None = None
    invalidated: bool = False
    mode: Any = None
    owner: int = 0


@dataclass(eq=False)
class _Event:
    stream: _Stream | None = None
    marker: _Operation | None = None
    time: float | None = None


class _Graph(list):
    """Captured operations."""


class _Instance(list):
    """A graph that can be launched."""


class _Refused(Exception):
    def __init__(self, error: Any) -> None:
        self.error = error


def _api(results: int = 0):
    """Make a method a CUDA function: it returns an error code, then the results, each None after an error."""

    def decorate(function):
        @functools.wraps(function)
        def call(self, *arguments):
            inspect.signature(function).bind(self, *arguments)
            self.calls.append(function.__name__)
            try:
                self._allowed(function.__name__)
                return Error.cudaSuccess, *(function(self, *arguments) or ())
            except _Refused as refused:
                return refused.error, *[None] * results

        return call

    return decorate


@dataclass(eq=False)
class Cuda:
    driver: int = 12080  # 0: no driver is installed
    devices: int = 1
    name: bytes = b"NVIDIA A10G"
    major: int = 8
    minor: int = 6
    free_bytes: int = 22 << 30
    total_bytes: int = 24 << 30
    fail: dict[str, Any] = field(default_factory=dict)  # function name -> error that it returns
    refuse_capture: bool = False
    operation_ms: float = 1.0  # on the clock of the device, for each operation
    clock_ms: float = 0.0
    faults: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    cudaError_t = Error
    cudaMemcpyKind = runtime.cudaMemcpyKind
    cudaStreamCaptureMode = runtime.cudaStreamCaptureMode
    cudaStreamNonBlocking = runtime.cudaStreamNonBlocking
    cudaEventBlockingSync = runtime.cudaEventBlockingSync
    cudaHostAllocDefault = runtime.cudaHostAllocDefault

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._handles = itertools.count(0x1000, 16)
        self._memory: dict[int, _Block] = {}
        self._freed: list[np.ndarray] = []  # a test may read freed pinned memory
        self._objects: dict[int, Any] = {}  # streams, events, graphs and instances, by handle

    def live(self) -> Counter[str]:
        """Return the number of live blocks and objects of each kind; empty if nothing leaked."""
        with self._lock:
            counts = Counter(block.kind for block in self._memory.values())
            return counts + Counter(type(item).__name__.lower().strip("_") for item in self._objects.values())

    def fault(self, text: str) -> NoReturn:
        """Fail the test, because the behaviour of a real device would be undefined."""
        self.faults.append(text)
        pytest.fail(f"CUDA stand-in: {text}")

    def view(self, address: int, size: int, kind: str = "device") -> np.ndarray:
        """Return the bytes at an address. They must be within one live block."""
        base = self._base(address)
        block = self._memory[base]
        if block.kind != kind:
            self.fault(f"{address:#x} is {block.kind} memory, not {kind}")
        if address + size > base + block.bytes.size:
            self.fault(f"{size} bytes at {address:#x} reach beyond their block of {block.bytes.size}")
        return block.bytes[address - base :][:size]

    def enqueue(
        self, stream: Any, run: Callable[[], None], uses: Iterable[int] = (), exclusive: Iterable[int] = ()
    ) -> None:
        """Put work into a stream, or into the graph that it captures. `uses` and `exclusive` are addresses."""
        with self._lock:
            exclusive = frozenset(map(self._base, exclusive))
            operation = _Operation(run, exclusive | frozenset(map(self._base, uses)), exclusive)
            self._enqueue(self._find(_Stream, stream), operation)

    def capturing(self, stream: Any) -> bool:
        return self._find(_Stream, stream).captured is not None

    def invalidate(self, stream: Any) -> None:
        """Invalidate the capture, as a call that cannot be captured does."""
        self._find(_Stream, stream).invalidated = True

    @_api(1)
    def cudaDriverGetVersion(self):
        return (self.driver,)

    @_api(1)
    def cudaGetErrorString(self, error):
        return runtime.cudaGetErrorString(error)[1:]

    @_api(1)
    def cudaGetDeviceCount(self):
        return (self.devices,)

    @_api(1)
    def cudaGetDeviceProperties(self, device):
        if not 0 <= operator.index(device) < self.devices:
            raise _Refused(Error.cudaErrorInvalidDevice)
        facts = runtime.cudaDeviceProp()
        facts.name, facts.major, facts.minor = self.name.ljust(256, b"\0"), self.major, self.minor
        return (facts,)

    @_api(2)
    def cudaMemGetInfo(self):
        return self._free(), self.total_bytes

    @_api(1)
    def cudaMalloc(self, size):
        if size > self._free():
            raise _Refused(Error.cudaErrorMemoryAllocation)
        return (self._allocate("device", size),)

    @_api(1)
    def cudaHostAlloc(self, size, flags):
        operator.index(flags)
        return (self._allocate("pinned", size),)

    @_api()
    def cudaFree(self, address):
        self._release("device", address)

    @_api()
    def cudaFreeHost(self, address):
        self._freed.append(self._release("pinned", address))

    @_api()
    def cudaMemcpyAsync(self, target, source, size, kind, stream):
        kinds = {
            runtime.cudaMemcpyKind.cudaMemcpyHostToDevice: ("device", "pinned"),
            runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost: ("pinned", "device"),
        }
        to, of = kinds[kind]

        def copy() -> None:
            self.view(target, size, to)[:] = self.view(source, size, of)

        self.view(target, size, to), self.view(source, size, of)
        self.enqueue(stream, copy, (target, source))

    @_api(1)
    def cudaStreamCreateWithFlags(self, flags):
        operator.index(flags)
        return (runtime.cudaStream_t(self._register(_Stream())),)

    @_api()
    def cudaStreamSynchronize(self, stream):
        found = self._find(_Stream, stream)
        if found.captured is not None:
            found.invalidated = True
            raise _Refused(Error.cudaErrorStreamCaptureUnsupported)
        self._drain(found)

    @_api()
    def cudaStreamDestroy(self, stream):
        self._drain(self._find(_Stream, stream))
        self._drop(_Stream, stream)

    @_api()
    def cudaStreamBeginCapture(self, stream, mode):
        found = self._find(_Stream, stream)
        if found.captured is not None:
            raise _Refused(Error.cudaErrorIllegalState)
        found.captured, found.invalidated, found.owner = [], False, threading.get_ident()
        found.mode = runtime.cudaStreamCaptureMode(mode)

    @_api(1)
    def cudaStreamEndCapture(self, stream):
        found = self._find(_Stream, stream)
        captured, found.captured = found.captured, None
        if captured is None:
            raise _Refused(Error.cudaErrorIllegalState)
        if found.owner != threading.get_ident():
            raise _Refused(Error.cudaErrorStreamCaptureWrongThread)
        if found.invalidated or self.refuse_capture:
            raise _Refused(Error.cudaErrorStreamCaptureInvalidated)
        return (runtime.cudaGraph_t(self._register(_Graph(captured))),)

    @_api(1)
    def cudaGraphInstantiate(self, graph, flags):
        operator.index(flags)
        instance = _Instance(self._find(_Graph, graph))
        return (runtime.cudaGraphExec_t(self._register(instance)),)

    @_api()
    def cudaGraphDestroy(self, graph):
        self._drop(_Graph, graph)

    @_api()
    def cudaGraphLaunch(self, instance, stream):
        with self._lock:
            for operation in self._find(_Instance, instance):
                if gone := operation.uses - self._memory.keys():
                    self.fault(f"a graph uses freed memory at {min(gone):#x}")
                self._enqueue(self._find(_Stream, stream), operation)

    @_api()
    def cudaGraphExecDestroy(self, instance):
        self._drop(_Instance, instance)

    @_api(1)
    def cudaEventCreateWithFlags(self, flags):
        operator.index(flags)
        return (runtime.cudaEvent_t(self._register(_Event())),)

    @_api()
    def cudaEventRecord(self, event, stream):
        found = self._find(_Event, event)

        def reached() -> None:
            found.time = self.clock_ms

        with self._lock:
            found.stream, found.time = self._find(_Stream, stream), None
            found.marker = _Operation(reached, takes_time=False)
            self._enqueue(found.stream, found.marker)

    @_api()
    def cudaEventSynchronize(self, event):
        found = self._find(_Event, event)
        if found.stream is not None:
            self._drain(found.stream, found.marker)

    @_api(1)
    def cudaEventElapsedTime(self, start, end):
        first, last = self._find(_Event, start), self._find(_Event, end)
        if first.marker is None or last.marker is None:
            raise _Refused(Error.cudaErrorInvalidResourceHandle)
        if first.time is None or last.time is None:
            raise _Refused(Error.cudaErrorNotReady)
        return (last.time - first.time,)

    @_api()
    def cudaEventDestroy(self, event):
        self._drop(_Event, event)

    def _allowed(self, function: str) -> None:
        if function in self.fail:
            raise _Refused(self.fail[function])
        if function in ("cudaDriverGetVersion", "cudaGetErrorString"):
            return
        if self.driver < 12000:
            raise _Refused(Error.cudaErrorInsufficientDriver)
        if not self.devices:
            raise _Refused(Error.cudaErrorNoDevice)

    def _free(self) -> int:
        with self._lock:
            return self.free_bytes - sum(b.bytes.size for b in self._memory.values() if b.kind == "device")

    def _allocate(self, kind: str, size: int) -> int:
        self._require_no_capture()
        if not size:
            return 0
        space = np.full(size + ALIGNMENT, 0xA5, np.uint8)  # new memory is not zero
        offset = -space.ctypes.data % ALIGNMENT
        with self._lock:
            self._memory[space.ctypes.data + offset] = _Block(kind, space[offset:][:size])
        return space.ctypes.data + offset

    def _release(self, kind: str, address: int) -> np.ndarray | None:
        self._require_no_capture()
        if not address:
            return None
        with self._lock:
            if address not in self._memory or self._memory[address].kind != kind:
                self.fault(f"{address:#x} is not {kind} memory that can be freed, or was freed already")
            if any(address in operation.uses for stream in self._all_streams() for operation in stream.queue):
                self.fault(f"{kind} memory at {address:#x} is freed while queued work needs it")
            return self._memory.pop(address).bytes

    def _require_no_capture(self) -> None:
        """Invalidate the capture and refuse the call, if this thread captures, or any thread in global mode."""
        modes = runtime.cudaStreamCaptureMode
        for stream in self._all_streams():
            mine = stream.owner == threading.get_ident() and stream.mode != modes.cudaStreamCaptureModeRelaxed
            if stream.captured is not None and (mine or stream.mode == modes.cudaStreamCaptureModeGlobal):
                stream.invalidated = True
                raise _Refused(Error.cudaErrorStreamCaptureUnsupported)

    def _base(self, address: int) -> int:
        with self._lock:
            bases = [base for base, block in self._memory.items() if 0 <= address - base < block.bytes.size]
        return bases[0] if bases else self.fault(f"there is no live memory at {address:#x}")

    def _register(self, item: Any) -> int:
        with self._lock:
            handle = next(self._handles)
            self._objects[handle] = item
            return handle

    def _find(self, kind: type, handle: Any) -> Any:
        item = self._objects.get(int(handle or 0))
        if not isinstance(item, kind):
            self.fault(f"no live {kind.__name__}: {handle}; 0 would be the default stream")
        return item

    def _drop(self, kind: type, handle: Any) -> None:
        with self._lock:
            self._find(kind, handle)
            del self._objects[int(handle)]

    def _all_streams(self) -> list[_Stream]:
        with self._lock:
            return [item for item in self._objects.values() if isinstance(item, _Stream)]

    def _enqueue(self, stream: _Stream, operation: _Operation) -> None:
        if stream.captured is not None:
            stream.captured.append(operation)
            return
        for other in self._all_streams():
            if other is not stream and any(operation.exclusive & queued.exclusive for queued in other.queue):
                self.fault("two streams use the same memory with no synchronization between them")
        stream.queue.append(operation)

    def _drain(self, stream: _Stream, until: _Operation | None = None) -> None:
        with stream.running:
            while stream.queue and (until is None or until in stream.queue):
                operation = stream.queue[0]
                with self._lock:
                    self.clock_ms += self.operation_ms * operation.takes_time
                try:
                    operation.run()
                finally:
                    stream.queue.popleft()
