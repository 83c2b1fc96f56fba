"""The CUDA wrapper, against the real bindings without a driver and against the stand-in for a device."""

import inspect
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from cuda.bindings import runtime
from cuda_standin import ALIGNMENT, Cuda, Error

import app.backends.tensorrt.cuda
from app.backends.tensorrt import cuda as wrapper
from app.backends.tensorrt.cuda import DeviceMemory, Event, Graph, PinnedMemory, Stream
from app.errors import BackendUnavailable, EngineFailed

FUNCTIONS = [name for name in dir(Cuda) if re.match("cuda[A-Z]", name) and inspect.isfunction(getattr(Cuda, name))]
no_driver = pytest.mark.skipif(bool(runtime.cudaDriverGetVersion()[1]), reason="there is a driver")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    standin = Cuda()
    monkeypatch.setattr(app.backends.tensorrt.cuda, "runtime", standin)
    return standin


class Instance:
    """A stream with 1000 bytes of device memory and of pinned memory, and the copies between them."""

    def __init__(self) -> None:
        self.stream, self.memory = Stream(), DeviceMemory(1000)
        self.source, self.target = PinnedMemory(1000), PinnedMemory(1000)

    def send(self) -> None:
        self.stream.to_device(self.memory, self.source, 1000)

    def receive(self) -> None:
        self.stream.to_host(self.target, self.memory, 1000)

    def both(self) -> bool:
        self.send()
        self.receive()
        return True

    def close(self) -> None:
        for resource in (self.stream, self.memory, self.source, self.target):
            resource.close()


@pytest.fixture
def instance(cuda: Cuda) -> Iterator[Instance]:
    instance = Instance()
    yield instance
    if not cuda.faults:
        instance.close()
        assert not cuda.live()


def faults(text: str) -> Any:
    return pytest.raises(pytest.fail.Exception, match=text)


@no_driver
def test_without_a_driver_the_real_preflight_fails():
    with pytest.raises(BackendUnavailable, match="no NVIDIA driver"):
        wrapper.preflight()


def bare(kind: type, **fields: Any) -> Any:
    """Return an object of the wrapper without calling its constructor."""
    made = kind.__new__(kind)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def real_stream() -> Stream:
    return bare(Stream, _stream=runtime.cudaStream_t(0x1000), handle=0x1000)


def real_event() -> Event:
    return bare(Event, _event=runtime.cudaEvent_t(0x1000))


MEMORY = {"address": 0x1000, "size": 1000}
CALLS: dict[str, Callable[[], object]] = {
    "device": wrapper.device,
    "memory": wrapper.memory,
    "Stream": Stream,
    "Stream.synchronize": lambda: real_stream().synchronize(),
    "Stream.to_device": lambda: real_stream().to_device(bare(DeviceMemory, **MEMORY), bare(PinnedMemory, **MEMORY), 8),
    "Stream.to_host": lambda: real_stream().to_host(bare(PinnedMemory, **MEMORY), bare(DeviceMemory, **MEMORY), 8),
    "Stream.capture": lambda: real_stream().capture(lambda: True),
    "Stream.close": lambda: real_stream().close(),
    "Graph.launch": lambda: Graph(runtime.cudaGraphExec_t(0x1000)).launch(real_stream()),
    "Graph.close": lambda: Graph(runtime.cudaGraphExec_t(0x1000)).close(),
    "Event": Event,
    "Event.record": lambda: real_event().record(real_stream()),
    "Event.synchronize": lambda: real_event().synchronize(),
    "Event.seconds_since": lambda: real_event().seconds_since(real_event()),
    "Event.close": lambda: real_event().close(),
    "DeviceMemory": lambda: DeviceMemory(1000),
    "DeviceMemory.close": lambda: bare(DeviceMemory, **MEMORY).close(),
    "PinnedMemory": lambda: PinnedMemory(1000),
    "PinnedMemory.close": lambda: bare(PinnedMemory, **MEMORY).close(),
}


@no_driver
@pytest.mark.parametrize("call", CALLS)
def test_without_a_driver_every_real_call_fails_with_the_message_of_cuda(call):
    with pytest.raises(EngineFailed, match=r"^cuda\w+: CUDA driver version is insufficient for CUDA runtime version$"):
        CALLS[call]()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_stand_in_takes_the_number_of_arguments_of_the_real_function(name):
    signature = getattr(runtime, name).__doc__.splitlines()[0]
    inside = re.fullmatch(rf"{name}\((.*)\)", signature)[1]
    assert len(inspect.signature(getattr(Cuda, name)).parameters) - 1 == len([p for p in inside.split(",") if p])


@no_driver
@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_stand_in_without_a_driver_returns_what_the_real_function_returns(name):
    handles = {"stream": runtime.cudaStream_t, "event": runtime.cudaEvent_t, "graph": runtime.cudaGraph_t}
    samples = {
        **{what: kind(0x1000) for what, kind in handles.items()},
        "start": runtime.cudaEvent_t(0x1000),
        "end": runtime.cudaEvent_t(0x1000),
        "instance": runtime.cudaGraphExec_t(0x1000),
        "error": Error.cudaErrorNoDevice,
        "kind": runtime.cudaMemcpyKind.cudaMemcpyHostToDevice,
        "mode": runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal,
    }
    standin = getattr(Cuda(driver=0), name)
    arguments = [samples.get(parameter, 1) for parameter in inspect.signature(standin).parameters]
    if name == "cudaGetDeviceCount":
        assert standin() == (Error.cudaErrorInsufficientDriver, None)
    assert standin(*arguments) == getattr(runtime, name)(*arguments)


def test_a_usable_device_passes_the_preflight(cuda):
    wrapper.preflight()
    assert wrapper.device() == wrapper.Device("NVIDIA A10G", "8.6", "12.8")


def test_a_driver_without_a_usable_device_is_reported(cuda):
    cuda.devices = 0
    with pytest.raises(BackendUnavailable, match="no CUDA-capable device is detected"):
        wrapper.preflight()
    cuda.driver = 11080
    with pytest.raises(BackendUnavailable, match="driver version is insufficient"):
        wrapper.preflight()
    cuda.driver = 0
    with pytest.raises(BackendUnavailable, match="no NVIDIA driver"):
        wrapper.preflight()


def test_bytes_are_copied_to_the_device_and_back(instance):
    instance.source.array[:] = np.arange(1000) % 251
    instance.both()
    instance.stream.synchronize()
    assert np.array_equal(instance.target.array, instance.source.array)


def test_copies_happen_only_at_synchronize(instance):
    instance.source.array[:] = 1
    instance.both()
    assert set(instance.target.array) == {0xA5}
    instance.source.array[:] = 2
    instance.stream.synchronize()
    assert set(instance.target.array) == {2}


def test_memory_is_aligned_and_counted(cuda):
    before, total = wrapper.memory()
    blocks = [DeviceMemory(1000), DeviceMemory(1), PinnedMemory(1000)]
    assert all(block.address % ALIGNMENT == 0 for block in blocks)
    assert wrapper.memory() == (before - 1001, total)
    for block in blocks:
        block.close()
    assert wrapper.memory() == (before, total)
    with pytest.raises(EngineFailed, match="cudaMalloc: out of memory"):
        DeviceMemory(before + 1)


def test_an_event_waits_only_for_the_work_before_it(instance, cuda):
    first, last = Event(), Event()
    cuda.operation_ms = 2.5
    first.record(instance.stream)
    instance.both()
    last.record(instance.stream)
    instance.both()
    instance.source.array[:] = 3
    last.synchronize()
    assert set(instance.target.array) == {3}
    instance.source.array[:] = 4
    last.synchronize()
    assert set(instance.target.array) == {3}
    instance.stream.synchronize()
    assert set(instance.target.array) == {4}
    assert last.seconds_since(first) == 0.005
    first.close()
    last.close()


def test_the_time_between_unreached_events_is_refused(instance):
    first, last = Event(), Event()
    with pytest.raises(EngineFailed, match="cudaEventElapsedTime: invalid resource handle"):
        last.seconds_since(first)
    first.record(instance.stream)
    last.record(instance.stream)
    with pytest.raises(EngineFailed, match="cudaEventElapsedTime: device not ready"):
        last.seconds_since(first)
    first.close()
    last.close()


def test_captured_work_runs_only_when_launched(instance, cuda):
    graph = instance.stream.capture(instance.both)
    instance.stream.synchronize()
    assert set(instance.target.array) == {0xA5}
    for value in (5, 6):
        instance.source.array[:] = value
        graph.launch(instance.stream)
        instance.stream.synchronize()
        assert set(instance.target.array) == {value}
    graph.close()
    assert not cuda.live()["graph"]


def test_capturing_work_that_is_not_enqueued_gives_no_graph_and_leaks_nothing(instance):
    assert instance.stream.capture(lambda: instance.both() and False) is None


def test_capturing_work_that_cannot_be_captured_gives_no_graph_and_the_stream_continues(instance, cuda):
    cuda.refuse_capture = True
    assert instance.stream.capture(instance.both) is None
    cuda.refuse_capture = False
    cuda.fail["cudaGraphInstantiate"] = Error.cudaErrorUnknown
    assert instance.stream.capture(instance.both) is None
    instance.both()
    instance.stream.synchronize()


def test_a_capture_ends_when_its_work_raises(instance):
    with pytest.raises(EngineFailed, match="lost"):
        instance.stream.capture(lambda: (_ for _ in ()).throw(EngineFailed("lost")))
    instance.both()
    instance.stream.synchronize()
    assert np.array_equal(instance.target.array, instance.source.array)


def test_allocating_or_waiting_inside_a_capture_gives_no_graph(instance):
    def allocate() -> bool:
        with pytest.raises(EngineFailed, match="operation not permitted when stream is capturing"):
            DeviceMemory(1)
        return True

    def wait() -> bool:
        with pytest.raises(EngineFailed, match="operation not permitted when stream is capturing"):
            instance.stream.synchronize()
        return True

    assert instance.stream.capture(allocate) is None
    assert instance.stream.capture(wait) is None


def elsewhere(work: Callable[[], object]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_capture_does_not_disturb_other_threads(instance):
    def work() -> None:
        other = Instance()
        other.source.array[:] = 8
        other.both()
        other.stream.synchronize()
        assert set(other.target.array) == {8}
        other.close()

    graph = instance.stream.capture(lambda: elsewhere(work) or instance.both())
    assert graph is not None
    graph.close()


def test_the_stand_in_fails_a_function_on_request(cuda):
    cuda.fail["cudaStreamCreateWithFlags"] = Error.cudaErrorUnknown
    with pytest.raises(EngineFailed, match="cudaStreamCreateWithFlags: unknown error"):
        Stream()


def test_the_stand_in_counts_live_resources(cuda):
    instance, event = Instance(), Event()
    assert cuda.live() == {"device": 1, "pinned": 2, "stream": 1, "event": 1}
    event.close()
    instance.close()
    assert cuda.live() == {}


def too_far(instance: Instance) -> None:
    instance.stream.to_device(instance.memory, instance.source, 1001)


def in_use(instance: Instance) -> None:
    instance.both()
    instance.source.close()


def twice(instance: Instance) -> None:
    instance.memory.close()
    instance.memory.close()


def after_free(instance: Instance) -> None:
    instance.memory.close()
    instance.both()


def launched_after_free(instance: Instance) -> None:
    graph = instance.stream.capture(instance.both)
    instance.memory.close()
    graph.launch(instance.stream)


def wrong_way(instance: Instance) -> None:
    instance.stream.to_device(instance.source, instance.memory, 8)


def closed_stream(instance: Instance) -> None:
    instance.stream.close()
    instance.both()


def default_stream(instance: Instance) -> None:
    instance.stream.handle = 0
    instance.stream.synchronize()


FAULTS = {
    "reach beyond their block": too_far,
    "freed while queued work needs it": in_use,
    "was freed already": twice,
    "there is no live memory": after_free,
    "a graph uses freed memory": launched_after_free,
    "is pinned memory, not device": wrong_way,
    "no live _Stream": closed_stream,
    "the default stream": default_stream,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_invalid_use_of_a_device_fails_the_test(instance, fault):
    with faults(fault):
        FAULTS[fault](instance)
