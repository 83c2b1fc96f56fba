"""The stand-in for TensorRT is as strict as the bindings, and as the device for errors that the bindings miss.

PYTHONPATH=.:tests python tests/backends/trt/test_tensorrt_standin.py VERSION     writes the stored API of a version
"""

import functools
import inspect
import json
import operator
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cuda_standin import Cuda
from onnx import TensorProto, helper
from tensorrt_standin import NO_IMPLEMENTATION, SURFACES, TYPES, VERSIONS, TensorRT

import app.backends.tensorrt.cuda
from app.backends.tensorrt.cuda import DeviceMemory, Event, PinnedMemory, Stream

FROZEN, FREE = (2, 4, 4, 3), (4, 4, 3)
STUB = "".join(
    f"void *{name}(void) {{ return 0; }}\n"
    for name in (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "createNvOnnxParser_INTERNAL",
        "getBuilderPluginRegistry",
        "getNvOnnxParserVersion",
        "getPluginRegistry",
        "initLibNvInferPlugins",
    )
)


PROBES = re.split(
    r";\s+|\s*\n\s*",
    """trt.Nothing; trt.BuilderFlag.FP16; trt.BuilderFlag.TF32; trt.BuilderFlag.TF32 == 6; int(trt.BuilderFlag(6))
    1 << trt.BuilderFlag.TF32; trt.BuilderFlag.TF32.name; trt.BuilderFlag.TF32 == trt.DataType.INT4; trt.Builder()
    trt.ILogger.ERROR < trt.ILogger.INFO; trt.ILogger.ERROR < 2; trt.Logger.INFO; trt.Logger(2); trt.Logger(lvl=2)
    trt.Logger(trt.Logger.INFO).log(1, 'x'); trt.Logger().log(trt.Logger.INFO); trt.Logger().level; Forgetful()
    trt.Logger(trt.Logger.INFO).min_severity; setattr(trt.Logger(), 'level', 1); setattr(Derived(), 'level', 1)
    setattr(trt.Logger(), 'min_severity', 2); trt.Builder(None); trt.Builder(loger=trt.Logger()); trt.ICudaEngine()
    trt.OnnxParser(None, trt.Logger()); trt.Dims((1, 2)); trt.Dims((1, 2)) == (1, 2); trt.Dims(5)
    trt.Dims((1, 2))[1:]; trt.Dims((1, 2)) == trt.Dims((1, 2)); hash(trt.Dims()); len(trt.Dims((1, 2)))
    trt.Dims((1.5, 2)); trt.ICudaEngine.nothing; Derived().nothing""",
)


def graph(path: Path, *, kind: int = TensorProto.UINT8, first: str = "Cast", sizes: tuple = FREE) -> Path:
    """Write a graph that computes the mean colour of every image; return its path."""
    cast = helper.make_node(first, ["images"], ["f"], "first", **({"to": TensorProto.FLOAT} if first == "Cast" else {}))
    mean = helper.make_node("ReduceMean", ["f"], ["rows"], axes=[1, 2], keepdims=0)
    images = helper.make_tensor_value_info("images", kind, ["batch", *sizes])
    rows = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["batch", 3])
    made = helper.make_graph([cast, mean] if first == "Cast" else [cast], "mean", [images], [rows])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


class Rig:
    """Uses TensorRT correctly; each test makes one mistake."""

    def __init__(self, standin: TensorRT, path: Path) -> None:
        self.standin, self.path, self.trt = standin, path, standin.module
        trt = self.trt

        class Log(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.lines: list[str] = []

            def log(self, severity: Any, msg: str) -> None:
                self.lines.append(f"{severity} {msg}")

        class Monitor(trt.IProgressMonitor):
            def __init__(self, go_on: Callable[[str, int], bool]) -> None:
                trt.IProgressMonitor.__init__(self)
                self.go_on, self.seen, self.threads = go_on, [], set()

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                self.seen.append((phase_name, parent_phase, num_steps))
                self.threads.add(threading.get_ident())

            def step_complete(self, phase_name: str, step: int) -> bool:
                self.seen.append((phase_name, step))
                return self.go_on(phase_name, step)

            def phase_finish(self, phase_name: str) -> None:
                self.seen.append(phase_name)

        self.log, self.Monitor = Log(), Monitor

    def builder(self, *, strong: bool = True) -> tuple[Any, Any, Any]:
        builder = self.trt.Builder(self.log)
        flag = 1 << int(self.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(flag if strong and self.standin.version < "11" else 0)
        self.parser = self.trt.OnnxParser(network, self.log)
        assert self.parser.parse_from_file(str(self.path))
        return builder, network, builder.create_builder_config()

    def profile(self, builder: Any, config: Any, high: tuple = FREE, low: int = 1) -> int:
        profile = builder.create_optimization_profile()
        profile.set_shape("images", (low, *high), (2, *high), (4, *high))
        return config.add_optimization_profile(profile)

    def plan(self, go_on: Callable[[str, int], bool] | None = None, **shape: Any) -> Any:
        builder, network, config = self.builder()
        assert self.profile(builder, config, **shape) == 0
        if go_on:
            self.monitor = self.Monitor(go_on)
            config.progress_monitor = self.monitor
        return builder.build_serialized_network(network, config)

    def engine(self, plan: Any = None) -> Any:
        return self.trt.Runtime(self.log).deserialize_cuda_engine(self.plan() if plan is None else plan)

    def context(self, engine: Any = None, memory: DeviceMemory | None = None) -> Any:
        managed = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = (engine or self.engine()).create_execution_context(managed)
        memory = memory or DeviceMemory(self.standin.memory_size)
        context.set_device_memory(memory.address, memory.size)
        assert context.set_input_shape("images", FROZEN)
        return context

    def instance(self, **given: Any) -> "Instance":
        return Instance(self.context(**given))


class Instance:
    """An execution context with its stream and buffers."""

    def __init__(self, context: Any) -> None:
        self.context, self.stream = context, Stream()
        self.pixels, self.images = PinnedMemory(96), DeviceMemory(96)
        self.result, self.rows = PinnedMemory(24), DeviceMemory(24)
        assert context.set_tensor_address("images", self.images.address)
        assert context.set_tensor_address("rows", self.rows.address)

    def enqueue(self) -> bool:
        self.stream.to_device(self.images, self.pixels, 96)
        done = self.context.execute_async_v3(self.stream.handle)
        self.stream.to_host(self.result, self.rows, 24)
        return done

    def means(self) -> list[float]:
        return self.result.array.view(np.float32).tolist()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    standin = Cuda()
    monkeypatch.setattr(app.backends.tensorrt.cuda, "runtime", standin)
    return standin


@pytest.fixture(params=VERSIONS)
def rig(request: pytest.FixtureRequest, cuda: Cuda, tmp_path: Path) -> Rig:
    return Rig(TensorRT(request.param, cuda), graph(tmp_path / "graph.onnx"))


def faults(text: str) -> Any:
    return pytest.raises(pytest.fail.Exception, match=text)


def test_a_graph_is_built_loaded_and_executed(rig):
    instance = rig.instance()
    instance.pixels.array[:] = np.arange(96)
    assert instance.enqueue()
    instance.stream.synchronize()
    assert instance.means() == [22.5, 23.5, 24.5, 70.5, 71.5, 72.5]


def test_results_are_stale_before_synchronize(rig):
    instance = rig.instance()
    assert instance.enqueue()
    assert set(instance.result.array) == {0xA5}
    instance.stream.synchronize()
    assert set(instance.result.array) != {0xA5}


def test_pixels_overwritten_before_the_copy_are_lost(rig):
    instance = rig.instance()
    instance.pixels.array[:] = 1
    instance.enqueue()
    instance.pixels.array[:] = 2
    instance.stream.synchronize()
    assert set(instance.means()) == {2}


WRONG: dict[str, tuple[type[Exception], Callable[[Rig], object]]] = {
    "an unknown name": (AttributeError, lambda r: r.trt.Bilder),
    "a name that we do not use": (AttributeError, lambda r: r.trt.EngineInspector),
    "an unknown enum member": (AttributeError, lambda r: r.trt.BuilderFlag.FP17),
    "an unknown method": (AttributeError, lambda r: r.engine().get_binding_shape),
    "a write to what does not exist": (AttributeError, lambda r: setattr(r.builder()[2], "fp16", True)),
    "a write to what is read-only": (AttributeError, lambda r: setattr(r.engine(), "num_io_tensors", 2)),
    "a write of another type": (TypeError, lambda r: setattr(r.builder()[2], "builder_optimization_level", "3")),
    "a monitor that is none": (TypeError, lambda r: setattr(r.builder()[2], "progress_monitor", print)),
    "a misspelt keyword": (TypeError, lambda r: r.context().set_input_shape("images", shapes=FROZEN)),
    "a missing argument": (TypeError, lambda r: r.context().execute_async_v3()),
    "an argument too many": (TypeError, lambda r: r.engine().get_tensor_dtype("images", 0)),
    "an argument given twice": (TypeError, lambda r: r.engine().get_tensor_mode("images", name="images")),
    "a path that is no str": (TypeError, lambda r: r.parser.parse_from_file(r.path) if r.builder() else None),
    "a float as an integer": (TypeError, lambda r: r.context().execute_async_v3(1.0)),
    "an integer as an enum": (TypeError, lambda r: r.engine().create_execution_context(2)),
    "an enum of another kind": (TypeError, lambda r: r.builder()[2].set_flag(r.trt.DataType.INT8)),
    "a number as a shape": (TypeError, lambda r: r.context().set_input_shape("images", 2)),
    "a str as bytes": (TypeError, lambda r: r.trt.Runtime(r.log).deserialize_cuda_engine("plan")),
    "no logger": (TypeError, lambda r: r.trt.Builder(None)),
    "a logger of another kind": (TypeError, lambda r: r.trt.Runtime(print)),
    "a class without a constructor": (TypeError, lambda r: r.trt.ICudaEngine()),
    "the length of a plan": (TypeError, lambda r: len(r.plan())),
    "a slice of a plan": (TypeError, lambda r: r.plan()[:4]),
    "a shift by an enum": (TypeError, lambda r: 1 << r.trt.BuilderFlag.TF32),
    "a shape compared with a shape": (TypeError, lambda r: r.trt.Dims(FREE) == r.trt.Dims(FREE)),
    "what the stand-in lacks": (NotImplementedError, lambda r: r.engine().create_engine_inspector()),
    "a property that the stand-in lacks": (NotImplementedError, lambda r: r.engine().num_layers),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_call_fails_as_in_the_bindings(rig, wrong):
    error, use = WRONG[wrong]
    with pytest.raises(error):
        use(rig)


REMOVED = {
    "BuilderFlag.FP16": lambda r: r.trt.BuilderFlag.FP16,
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": lambda r: r.trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH,
    "Builder.platform_has_fast_fp16": lambda r: r.trt.Builder.platform_has_fast_fp16,
    "ICudaEngine.device_memory_size": lambda r: r.trt.ICudaEngine.device_memory_size,
    "OnnxParser.supports_model": lambda r: r.trt.OnnxParser.supports_model,
}


@pytest.mark.parametrize("name", REMOVED)
def test_names_removed_in_version_11_exist_only_in_version_10(rig, name):
    if rig.standin.version < "11":
        assert REMOVED[name](rig) is not None
        return
    with pytest.raises(AttributeError):
        REMOVED[name](rig)


def test_a_subclass_that_does_not_call_the_base_init_is_refused(rig):
    for base in (rig.trt.ILogger, rig.trt.IProgressMonitor):
        forgetful = type("Forgetful", (base,), {"__init__": lambda self: None})
        with pytest.raises(TypeError, match=r"__init__\(\) must be called"):
            forgetful()


def test_enums_are_not_integers_but_convert_to_them(rig):
    flag = rig.trt.BuilderFlag.TF32
    assert int(flag) == operator.index(flag) == 6 != flag
    assert flag == rig.trt.BuilderFlag(6)
    assert (str(flag), repr(flag)) == ("BuilderFlag.TF32", "<BuilderFlag.TF32: 6>")
    assert rig.trt.ILogger.ERROR < rig.trt.ILogger.WARNING
    assert rig.trt.Logger.INFO is rig.trt.ILogger.Severity.INFO


@pytest.mark.parametrize("name", TYPES)
def test_every_onnx_tensor_type_has_its_tensorrt_type(rig, name):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(TYPES[name]))
    graph(rig.path, kind=kind)
    assert rig.engine().get_tensor_dtype("images") == getattr(rig.trt.DataType, name)


def test_a_weakly_typed_network_is_recorded(rig):
    rig.builder()
    assert not rig.standin.weakly_typed
    rig.builder(strong=False)
    assert rig.standin.weakly_typed == (rig.standin.version < "11")


def test_an_engine_reports_its_tensors(rig):
    engine = rig.engine()
    assert [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)] == ["images", "rows"]
    assert engine.get_tensor_mode("images") == rig.trt.TensorIOMode.INPUT
    assert tuple(engine.get_tensor_shape("images")) == (-1, *FREE)
    assert engine.get_tensor_profile_shape("images", 0) == [(1, *FREE), (2, *FREE), (4, *FREE)]
    assert tuple(rig.context(engine).get_tensor_shape("rows")) == (2, 3)
    with faults("profile shape"):
        engine.get_tensor_profile_shape("rows", 0)


def test_progress_is_reported_from_another_thread_and_nested(rig):
    rig.standin.phases = [("Building", None, 1), ("Tactics", "Building", 2)]
    assert rig.plan(lambda phase, step: True) is not None
    nested = [("Tactics", "Building", 2), ("Tactics", 0), ("Tactics", 1), "Tactics"]
    assert rig.monitor.seen == [("Building", None, 1), *nested, ("Building", 0), "Building"]
    assert threading.get_ident() not in rig.monitor.threads


@pytest.mark.parametrize("go_on", [lambda phase, step: False, lambda phase, step: None, lambda phase, step: 1 / 0])
def test_a_monitor_that_returns_false_or_raises_cancels_the_build(rig, go_on):
    assert rig.plan(go_on) is None
    assert "cancelled" in rig.log.lines[-1]
    assert rig.monitor.seen.count("Tactics") == rig.monitor.seen.count("Building") == 1


def test_a_failed_build_returns_none_and_logs_the_reason(rig):
    rig.standin.build_fails = NO_IMPLEMENTATION
    assert rig.plan() is None
    assert "Severity.ERROR" in rig.log.lines[-1]
    assert "Could not find any implementation for node" in rig.log.lines[-1]


def test_a_profile_must_be_consistent_and_fit_the_network(rig):
    builder, network, config = rig.builder()
    assert builder.build_serialized_network(network, config) is None
    assert "no optimization profile" in rig.log.lines[-1]
    assert config.add_optimization_profile(builder.create_optimization_profile()) == -1
    with pytest.raises(ValueError, match="inconsistent"):
        rig.profile(builder, config, low=3)
    assert rig.profile(builder, config, high=(4, 5, 3)) == 0
    assert builder.build_serialized_network(network, config) is None
    assert "does not match network definition" in rig.log.lines[-1]


def test_precision_flags_are_refused_with_strong_typing(rig):
    builder, network, config = rig.builder()
    rig.profile(builder, config)
    if rig.standin.version < "11":
        config.set_flag(rig.trt.BuilderFlag.FP16)
        assert builder.build_serialized_network(network, config) is None


def test_a_config_of_another_builder_fails_the_test(rig):
    builder, network, _ = rig.builder()
    with faults("another builder"):
        builder.build_serialized_network(network, rig.builder()[2])


def test_a_graph_that_cannot_be_parsed_gives_the_reason(rig, tmp_path):
    rig.builder()
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"garbage")
    transposed = graph(tmp_path / "transposed.onnx", first="Transpose", sizes=())
    for path in (tmp_path / "missing.onnx", garbage, transposed):
        assert not rig.parser.parse_from_file(str(path))
    graph(rig.path, first="Identity")
    assert rig.parser.num_errors == 3
    assert "missing.onnx" in rig.parser.get_error(0).desc()


def test_a_uint8_input_must_go_directly_into_a_cast(rig):
    rig.builder()
    model = onnx.load(graph(rig.path))
    model.graph.node.insert(0, helper.make_node("Identity", ["images"], ["same"], "first"))
    model.graph.node[1].input[0] = "same"
    onnx.save(model, rig.path)
    assert not rig.parser.parse_from_file(str(rig.path))
    error = rig.parser.get_error(0)
    assert (error.node_name(), error.node_operator()) == ("first", "Identity")


def test_a_timing_cache_fits_one_version_and_device(rig, cuda):
    _, _, config = rig.builder()
    blob = bytes(config.create_timing_cache(b"").serialize())
    assert config.set_timing_cache(config.create_timing_cache(blob), ignore_mismatch=False)
    cuda.name = b"Tesla T4"
    assert not config.set_timing_cache(config.create_timing_cache(blob), ignore_mismatch=False)
    assert config.set_timing_cache(config.create_timing_cache(blob), ignore_mismatch=True)
    other = blob.replace(rig.standin.version.encode(), b"10.0.0.1")
    assert not config.set_timing_cache(config.create_timing_cache(other), ignore_mismatch=True)
    assert config.create_timing_cache(b"garbage") is None


def test_a_build_fills_the_timing_cache(rig):
    builder, network, config = rig.builder()
    rig.profile(builder, config)
    cache = config.create_timing_cache(b"")
    empty = bytes(cache.serialize())
    config.set_timing_cache(cache, ignore_mismatch=False)
    assert builder.build_serialized_network(network, config) is not None
    assert bytes(cache.serialize()) != empty


def test_a_plan_of_another_version_gives_none_and_the_reason_is_logged(rig, cuda):
    (other,) = set(VERSIONS) - {rig.standin.version}
    plan = Rig(TensorRT(other, cuda), rig.path).plan()
    assert rig.engine(plan) is None
    assert f"expecting library version {rig.standin.version} got {other}" in rig.log.lines[-1]


def test_a_plan_of_another_device_gives_none_and_of_a_similar_device_a_warning(rig, cuda):
    plan = rig.plan()
    cuda.name = b"NVIDIA A10"
    assert rig.engine(plan) is not None
    assert "Severity.WARNING Using an engine plan file across different models" in rig.log.lines[-1]
    cuda.minor = 9
    assert rig.engine(plan) is None
    assert "incompatible device, expecting compute 8.9 got compute 8.6, please rebuild" in rig.log.lines[-1]


def test_bytes_that_are_no_plan_give_none(rig):
    plan = bytes(rig.plan())
    for wrong in (b"", b"garbage", plan[:-1], plan[:100], plan.replace(b"images", b"imagos", 1)):
        assert rig.engine(wrong) is None
    assert rig.engine(memoryview(plan)) is not None
    rig.standin.refuse_plans = True
    assert rig.engine(plan) is None


def test_without_a_driver_the_process_dies(rig, cuda):
    cuda.driver = 0
    for kind in (rig.trt.Runtime, rig.trt.Builder):
        with pytest.raises(SystemError):
            kind(rig.log)


def test_a_context_that_does_not_fit_into_device_memory_is_none(rig):
    rig.standin.contexts = 1
    engine = rig.engine()
    first = rig.context(engine)
    assert engine.create_execution_context() is None
    assert "OutOfMemory" in rig.log.lines[-1]
    del first
    assert engine.create_execution_context() is not None


def test_device_memory_must_be_allocated_large_enough_and_aligned(rig):
    managed = rig.trt.ExecutionContextAllocationStrategy.USER_MANAGED
    context = rig.engine().create_execution_context(managed)
    size = rig.standin.memory_size
    memory = DeviceMemory(size + 512)
    for address, given in (
        (memory.address, size - 1),
        (memory.address + 1, size),
        (memory.address + 1024, size),
        (64, 1),
    ):
        with faults("CUDA stand-in"):
            context.set_device_memory(address, given)
    assert context.set_input_shape("images", FROZEN)
    with faults("before set_device_memory"):
        Instance(context).enqueue()


def test_missing_or_wrong_inputs_are_refused(rig):
    context = rig.context()
    stream = Stream()
    assert not context.execute_async_v3(stream.handle)
    assert not context.set_input_shape("images", (5, *FREE))
    assert not context.set_input_shape("images", [2, 4, 4])
    assert not context.set_tensor_address("imags", DeviceMemory(96).address)
    assert not context.set_optimization_profile_async(1, stream.handle)
    assert context.set_optimization_profile_async(0, stream.handle)
    assert context.infer_shapes() == ["images"]
    assert len([line for line in rig.log.lines if "Severity.ERROR" in line]) == 5


def test_buffers_that_are_too_small_fail_the_test(rig):
    instance = rig.instance()
    instance.context.set_tensor_address("rows", DeviceMemory(23).address)
    with faults("reach beyond"):
        instance.enqueue()


def test_contexts_that_share_memory_must_take_turns(rig):
    memory, engine = DeviceMemory(rig.standin.memory_size), rig.engine()
    first, second = rig.instance(engine=engine, memory=memory), rig.instance(engine=engine, memory=memory)
    first.enqueue()
    event = Event()
    event.record(first.stream)
    with faults("two streams"):
        second.enqueue()
    event.synchronize()
    second.enqueue()
    second.stream.synchronize()


def test_a_captured_graph_reads_current_inputs_and_keeps_its_shapes(rig):
    instance = rig.instance()
    assert instance.stream.capture(instance.enqueue) is None  # never executed before
    instance.enqueue()
    captured = instance.stream.capture(instance.enqueue)
    instance.pixels.array[:] = 7
    captured.launch(instance.stream)
    instance.stream.synchronize()
    assert set(instance.means()) == {7}
    assert instance.context.set_input_shape("images", (1, *FREE))
    captured.launch(instance.stream)
    with faults("other shapes"):
        instance.stream.synchronize()


def test_hooks_refuse_calls_and_change_rows(rig, cuda):
    instance = rig.instance()
    instance.enqueue()
    rig.standin.refuse_in_capture = True
    assert instance.stream.capture(instance.enqueue) is None
    rig.standin.rows = lambda outputs: {name: array + 1 for name, array in outputs.items()}
    instance.pixels.array[:] = 1
    instance.stream.synchronize()
    assert set(instance.means()) == {2}
    rig.standin.refuse = {"execute_async_v3", "parse_from_file", "add_optimization_profile"}
    assert not instance.enqueue()
    assert not rig.parser.parse_from_file(str(rig.path))
    assert rig.parser.num_errors == 1
    assert rig.standin.calls[-2:] == ["execute_async_v3", "parse_from_file"]


def test_a_logger_that_raises_fails_the_test(rig):
    def log(self: Any, severity: Any, msg: str) -> None:
        raise OSError

    loud = type("Loud", (rig.trt.ILogger,), {"log": log})()
    with faults("the logger raised"):
        rig.trt.Runtime(loud).deserialize_cuda_engine(b"garbage")


def surface(trt: Any, names: Any) -> dict[str, Any]:
    """Return the API of the module in the format of the stored JSON files."""
    found = {}
    for name in names:
        kind = getattr(trt, name)
        if hasattr(kind, "__members__"):
            found[name] = {"enum": {member: int(value) for member, value in sorted(kind.__members__.items())}}
        else:
            members = [member for member in dir(kind) if member == "__init__" or not member.startswith("_")]
            found[name] = {"members": {member: _entry(member, getattr(kind, member)) for member in members}}
    return json.loads(json.dumps(found).replace("tensorrt_bindings.tensorrt.", ""))


def _entry(name: str, member: Any) -> dict[str, Any]:
    if isinstance(member, property):
        lines = (member.fget.__doc__ or "").strip().splitlines() if member.fget else []
        return {"kind": "property", "settable": member.fset is not None, "sig": lines[0] if lines else ""}
    lines = [line.strip() for line in (inspect.getdoc(member) or "").splitlines()]
    return {"kind": "method", "sig": [line for line in lines if re.match(rf"(\d+\. )?{name}\(.*\)", line)]}


def probe(trt: Any) -> dict[str, str]:
    """Return the result or the error's name for each of PROBES; none needs a device."""

    class Forgetful(trt.ILogger):
        def __init__(self) -> None:
            pass

    names = {"trt": trt, "Forgetful": Forgetful, "Derived": type("Derived", (trt.IProgressMonitor,), {})}
    outcomes = {}
    for use in PROBES:
        try:
            outcomes[use] = repr(eval(use, names))
        except Exception as error:
            outcomes[use] = type(error).__name__
    return outcomes


def bindings(version: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Return a command and an environment that import the real bindings. Raises RuntimeError if that fails."""
    if shutil.which("gcc") is None or platform.machine() != "x86_64":
        raise RuntimeError("the real bindings need gcc and x86_64")
    requirement = f"tensorrt-cu12-bindings=={version}"
    options = ["--no-deps", "--quiet", "--retries=0", "--timeout=10", f"--dest={folder}"]
    command = [sys.executable, "-m", "pip", "download", *options, requirement]
    if not list(folder.glob("*.whl")) and subprocess.run(command, capture_output=True, check=False).returncode:
        raise RuntimeError(f"pip cannot get {requirement}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    (folder / "stub.c").write_text(STUB)
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        library = folder / f"lib{name}.so.{version.partition('.')[0]}"
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, folder / "stub.c"], check=True)
    paths = ":".join(map(str, (Path(__file__).parent, *Path(__file__).parents[2:4], folder)))
    script = "import json, sys, tensorrt_bindings as trt, test_tensorrt_standin as test\n"
    script += "print(json.dumps([test.surface(trt, sys.argv[1:]), test.probe(trt)]))"
    return [sys.executable, "-c", script], {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": paths}


@functools.cache
def real(version: str, names: tuple[str, ...]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        command, environment = bindings(version, Path(folder))
        result = subprocess.run([*command, *names], env=environment, capture_output=True, check=True)
    return json.loads(result.stdout)


def stored(version: str) -> dict[str, Any]:
    return json.loads((SURFACES / f"tensorrt-{version}.json").read_text())


@pytest.fixture(params=VERSIONS)
def compared(request: pytest.FixtureRequest) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    try:
        yield request.param, real(request.param, tuple(stored(request.param)))
    except RuntimeError as reason:
        pytest.skip(str(reason))


def test_the_stored_apis_are_those_of_the_real_bindings(compared):
    version, (found, _) = compared
    assert found == stored(version)


def test_the_real_bindings_are_as_strict_as_the_stand_in(compared, cuda):
    version, (_, outcomes) = compared
    assert outcomes == probe(TensorRT(version, cuda).module)


def refresh(version: str) -> None:
    """Write the stored API of a version, one member a line to keep diffs small."""
    lines = []
    for name, entry in sorted(real(version, tuple(stored(VERSIONS[-1])))[0].items()):
        members = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in entry.get("members", {}).items())
        body = f'{{"members": {{\n{members}\n}}}}' if members else json.dumps(entry)
        lines.append(f"{json.dumps(name)}: {body}")
    (SURFACES / f"tensorrt-{version}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    refresh(sys.argv[1])
