"""The TensorRT backend, for both supported API versions, against the strict stand-ins for TensorRT and CUDA."""

import dataclasses
import functools
import importlib
import json
import logging
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace

import cv2
import fakes
import numpy as np
import onnx
import pytest
import scenes
from cuda.bindings import runtime
from cuda_standin import Cuda
from fakes import rows_of
from tensorrt_standin import NO_IMPLEMENTATION, VERSIONS, TensorRT

from app import backends
from app.backends import BuildContext, onnxruntime, pytorch
from app.backends.tensorrt import cuda
from app.bench import selftest
from app.building import builder
from app.errors import (
    BackendUnavailable,
    BuildFailed,
    EngineFailed,
    EngineStale,
    GateFailed,
    SettingsError,
    WeightsError,
)
from app.evaluation import datasets
from app.graphs import export, fp16, int8_search, memory, serving_graph
from app.serving.loader import load, preprocessor
from app.serving.spec import BuildRequest
from app.settings import DEMO, DEMO_WEIGHTS, Settings
from app.store.accuracy import Limits
from app.vision import postprocess, preprocess
from app.vision.postprocess import Thresholds

pytestmark = pytest.mark.usefixtures("needs_engine")

SIDE, BATCH = 160, 3
OOM = runtime.cudaError_t.cudaErrorMemoryAllocation
LOST = runtime.cudaError_t.cudaErrorIllegalAddress


class Rig(SimpleNamespace):
    """The stand-ins, and the backend that uses them."""

    cuda: Cuda
    trt: TensorRT
    backend: ModuleType

    def engine(self, folder: Path, instances: int = 1) -> "backends.Engine":
        return self.backend.load(folder, instances, 1)


@pytest.fixture(params=VERSIONS)
def rig(request, monkeypatch) -> Iterator[Rig]:
    gpu = Cuda()
    trt = TensorRT(request.param, gpu)
    monkeypatch.setattr(cuda, "runtime", gpu)
    monkeypatch.setitem(sys.modules, "tensorrt", trt.module)
    for name in ("tensorrt.backend", "tensorrt.engine", "tensorrt.layout"):
        monkeypatch.delitem(sys.modules, f"app.backends.{name}", raising=False)
    yield Rig(cuda=gpu, trt=trt, backend=importlib.import_module("app.backends.tensorrt.backend"))
    for name in ("tensorrt.backend", "tensorrt.engine", "tensorrt.layout"):
        sys.modules.pop(f"app.backends.{name}", None)
        if hasattr(backends, name):
            delattr(backends, name)
    assert gpu.faults == []
    assert not trt.weakly_typed


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setitem(datasets.SCENES, "detect", 4)
    monkeypatch.setattr(builder, "CALIBRATION_IMAGES", 6)


@pytest.fixture(scope="module", autouse=True)
def export_once(tmp_path_factory) -> Iterator[None]:
    """Exports the same weights at the same size once for all tests."""
    export_now = export.to_plain_onnx

    @functools.cache
    def exported(weights: Path, size: object, *, static: bool) -> Path:
        return export_now(weights, size, tmp_path_factory.mktemp("export"), static=static)

    def copied(weights: Path, size: object, folder: Path, *, static: bool = False) -> Path:
        return shutil.copy(exported(weights, size, static=static), folder / "plain.onnx")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "to_plain_onnx", copied)
        yield


@pytest.fixture(scope="module")
def serving(tmp_path_factory) -> tuple[Path, serving_graph.ModelInfo]:
    """The demo model's FP32 serving graph for one frame shape."""
    folder = tmp_path_factory.mktemp("serving")
    plain = export.to_plain_onnx(DEMO_WEIGHTS, SIDE, folder, static=True)
    return folder / "graph.onnx", serving_graph.to_serving_graph(plain, "demo", SIDE, folder / "graph.onnx")


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    return [scenes.scene(seed, SIDE, SIDE).image for seed in range(5)]


@pytest.fixture
def context(serving, tmp_path) -> Callable[..., BuildContext]:
    """Makes build contexts that share a timing cache."""
    path, model = serving

    def make(**changes: object) -> BuildContext:
        (folder := tmp_path / f"engine-{len(list(tmp_path.iterdir()))}").mkdir()
        shutil.copy(path, copy := folder.with_suffix(".onnx"))
        fields = {
            "weights": DEMO_WEIGHTS,
            "graphs": [copy],
            "model": model,
            "precision": "fp16",
            "batch": BATCH,
            "instances": 2,
            "calibration": lambda _: iter([scenes.scene(seed, SIDE, SIDE).image for seed in range(8)]),
            "folder": folder,
            "cache": tmp_path / "cache",
            "report": lambda _: None,
        }
        return BuildContext(**fields | changes)

    return make


@pytest.fixture
def built(rig, context) -> Path:
    """The folder of a built engine."""
    made = context()
    rig.backend.build(made)
    return made.folder


@pytest.fixture
def build_request(tmp_path) -> BuildRequest:
    return BuildRequest(str(DEMO_WEIGHTS), SIDE, BATCH, "auto", "tensorrt", tmp_path / "engines")


# Building


def test_the_plan_is_the_graph_in_the_requested_precision(rig, context, frames):
    (path,) = context().graphs
    for kind in ("fp32", "fp16"):
        made = context(precision=kind)
        rig.backend.build(made)
        expected = path
        if kind == "fp16":
            fp16.to_half(path, expected := path.with_name("half.onnx"))
        rows = onnxruntime.OnnxruntimeEngine(expected, 1).infer(0, frames)
        engine = rig.engine(made.folder)
        np.testing.assert_allclose(engine.infer(0, frames[:BATCH]), rows[:BATCH], atol=1e-3)
        engine.close()


def test_tf32_is_switched_off(rig, context):
    rig.backend.build(context())
    assert "clear_flag" in rig.trt.calls


def test_progress_is_reported_while_compiling(rig, context, monkeypatch):
    monkeypatch.setattr(rig.backend, "MIN_REPORT_S", 0)
    rig.trt.phases = (("Building", None, 2), ("Compiling backend", "Building", 3))
    reported: list[str] = []
    rig.backend.build(context(report=reported.append))
    assert "160x160 Compiling backend 3/3" in reported


def test_progress_is_reported_at_most_twice_a_second(rig, context):
    rig.trt.phases = (("Compiling", None, 1000),)
    reported: list[str] = []
    rig.backend.build(context(report=reported.append))
    assert len([text for text in reported if text.startswith("160x160 Compiling")]) < 10


def test_build_ends_when_the_waiting_server_has_exited(rig, context, monkeypatch):
    monkeypatch.setattr(rig.backend, "MIN_REPORT_S", 0)
    rig.trt.phases = (("Compiling", None, 1000),)

    def report(text: str) -> None:
        if text.startswith("160x160 Compiling"):
            raise BrokenPipeError

    with pytest.raises(BuildFailed, match="TensorRT could not compile the engine"):
        rig.backend.build(context(report=report))


def test_failed_compilation_is_reported_with_tensorrts_message(rig, context):
    rig.trt.build_fails = NO_IMPLEMENTATION
    with pytest.raises(BuildFailed, match=r"could not compile the engine: .*Could not find any implementation"):
        rig.backend.build(context())


def test_parser_error_is_reported(rig, context):
    rig.trt.refuse = {"parse_from_file"}
    with pytest.raises(BuildFailed, match="TensorRT cannot read the graph: "):
        rig.backend.build(context())


def test_refused_profile_is_an_error(rig, context):
    rig.trt.refuse = {"add_optimization_profile"}
    with pytest.raises(BuildFailed, match=r"refuses batches of 1 to 3 frames \(160, 160, 3\)"):
        rig.backend.build(context())


def test_timing_cache_is_kept_by_version_and_gpu_and_used_again(rig, context):
    rig.backend.build(context())
    (cache,) = context().cache.iterdir()
    assert cache.name == f"timing-{rig.trt.version}-NVIDIA-A10G-sm_86.bin"
    before = cache.read_bytes()
    rig.backend.build(context())
    assert cache.read_bytes() != before  # the stand-in counts the builds that used it
    assert list(context().cache.iterdir()) == [cache]


@pytest.mark.parametrize("content", [b"garbage", b""])
def test_timing_cache_that_does_not_fit_is_replaced(rig, context, content, caplog):
    made = context()
    made.cache.mkdir()
    path = rig.backend._timing_cache_file(made.cache)
    path.write_bytes(content)
    rig.backend.build(made)
    assert len(path.read_bytes()) > len(content)
    assert ("does not fit this GPU and TensorRT" in caplog.text) == (content == b"garbage")


def test_build_continues_if_the_timing_cache_cannot_be_written(rig, context, caplog):
    made = context()
    made.cache.write_text("a file in its place")
    rig.backend.build(made)
    assert "was not stored" in caplog.text
    assert rig.engine(made.folder)


def test_build_returns_gpu_driver_memory_and_compile_time(rig, context):
    rig.trt.memory_size = 5 << 20
    facts = rig.backend.build(context())
    assert facts["gpu"] == "NVIDIA A10G"
    assert facts["driver_cuda"] == "12.8"
    assert facts["activation_bytes"] == 5 << 20
    assert facts["estimated_device_bytes"] > rig.backend.RESERVED_BYTES
    assert facts["compile_seconds"] >= 0


def test_estimated_memory_is_reported_before_the_build(rig, context):
    reported: list[str] = []
    rig.backend.build(context(report=reported.append))
    assert reported[0].startswith("BATCH=3 at 160x160 in 2 instances: about 0.8 GiB of ")


def test_batch_that_does_not_fit_is_refused_with_the_largest_that_does(rig, context):
    made = context(batch=64)
    rig.cuda.free_bytes = rig.backend.RESERVED_BYTES + (40 << 20)
    with pytest.raises(BuildFailed, match=r"is too much: BATCH=(\d+) fits") as refused:
        rig.backend.build(made)
    assert "build_serialized_network" not in rig.trt.calls
    fitting = int(str(refused.value).rpartition("BATCH=")[2].split()[0])
    assert 1 < fitting < 64
    rig.backend.build(context(batch=fitting))
    with pytest.raises(BuildFailed):
        rig.backend.build(context(batch=fitting + 10))


def test_gpu_without_memory_for_a_single_image_is_refused(rig, context):
    rig.cuda.free_bytes = 1 << 20
    with pytest.raises(BuildFailed, match="not even BATCH=1 fits"):
        rig.backend.build(context())


# Availability


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"driver": 0}, "there is no NVIDIA driver"), ({"devices": 0}, "there is no usable NVIDIA GPU: no CUDA-capable")],
)
def test_without_driver_or_device_tensorrt_is_not_called(rig, changes, reason):
    vars(rig.cuda).update(changes)
    with pytest.raises(BackendUnavailable, match=f"BACKEND=tensorrt cannot be used: {reason}"):
        backends.get("tensorrt")
    assert rig.trt.calls == []


@pytest.mark.parametrize("version", ["8.6.1", "10.2.0", "10.11.0.33"])
def test_too_old_tensorrt_is_refused(rig, version):
    rig.trt.module.__version__ = version
    with pytest.raises(BackendUnavailable, match=f"TensorRT {version} is too old: 10.12 or newer"):
        backends.get("tensorrt")


def test_auto_is_tensorrt_with_a_gpu_and_openvino_without(rig):
    assert backends.choose("auto") == "tensorrt"
    rig.cuda.driver = 0
    assert backends.choose("auto") == "openvino"


def test_auto_precision_is_fp16(rig, build_request):
    assert builder.build(build_request, lambda _: None).manifest.fingerprint.precision == "fp16"


@pytest.mark.parametrize("dynamic", [True, False])
def test_onnx_weights_are_built_into_an_engine_of_one_shape(rig, build_request, tmp_path, frames, serving, dynamic):
    plain = export.to_plain_onnx(DEMO_WEIGHTS, SIDE, tmp_path, static=not dynamic)
    stored = builder.build(dataclasses.replace(build_request, weights=str(plain)), lambda _: None)
    assert stored.manifest.model.shapes == ((SIDE, SIDE),)
    assert stored.manifest.gate.figures.rows_agreement > 0.98
    rows = rows_of(rig.engine(stored.folder).infer(0, frames[:2]))
    expected = rows_of(onnxruntime.OnnxruntimeEngine(serving[0], 1).infer(0, frames[:2]))
    np.testing.assert_allclose(rows[:, 0], expected[:, 0], atol=0.5)


def test_int8_engine_is_compiled_from_the_quantized_graph_with_its_float_part_in_fp16(rig, build_request, monkeypatch):
    monkeypatch.setattr(int8_search, "MAX_DISTANCE", 1)  # which layers stay in float: tests/graphs/test_int8.py
    stored = builder.build(
        dataclasses.replace(build_request, precision="int8", limits=Limits(map_loss=1)), lambda _: None
    )
    assert stored.manifest.fingerprint.precision == "int8"
    plan = (stored.folder / "160x160.plan").read_bytes()
    assert b"QuantizeLinear" in plan  # the stand-in's plans hold their graph
    assert b"in/scale/half" in plan
    assert stored.manifest.built["int8 160x160"]["method"] in stored.manifest.built["int8 160x160"]["compared"]


# Inference


def test_an_image_gives_the_same_rows_at_every_position_of_every_batch(rig, built, frames):
    """https://github.com/wang-xinyu/tensorrtx/issues/870: only the first or last image was right."""
    engine = rig.engine(built)
    expected = [engine.infer(0, [frame])[0] for frame in frames]
    for count in (1, 2, 3):
        for shift in range(len(frames)):
            picked = [(shift + i) % len(frames) for i in range(count)]
            rows = engine.infer(0, [frames[i] for i in picked])
            for found, i in zip(rows, picked, strict=True):
                np.testing.assert_allclose(found, expected[i], atol=1e-3)
    engine.close()


def test_batches_are_padded_to_powers_of_two_or_the_maximum(rig, context, frames):
    made = context(batch=5)
    rig.backend.build(made)
    engine = rig.engine(made.folder)
    (plan,) = engine._instances[0]._plans.values()
    assert plan.layout.batches == [1, 2, 4, 5]
    assert len(engine.infer(0, frames)) == 5
    assert len(engine.infer(0, frames[:3])) == 3


def test_more_images_than_the_maximum_batch_are_split(rig, built, frames):
    engine = rig.engine(built)
    np.testing.assert_allclose(engine.infer(0, frames)[4], engine.infer(0, frames[4:])[0], atol=1e-3)


def test_rows_are_not_overwritten_by_the_next_batch(rig, built, frames):
    engine = rig.engine(built)
    ((first,),) = engine.infer(0, frames[:1])
    before = first.copy()
    engine.infer(0, frames[1:2])
    np.testing.assert_array_equal(first, before)


def test_concurrent_instances_do_not_affect_each_other(rig, built, frames):
    engine = rig.engine(built, instances=2)
    expected = [engine.infer(0, [frame])[0] for frame in frames]
    found: dict[int, list[np.ndarray]] = {0: [], 1: []}

    def run(instance: int) -> None:
        found[instance] = [engine.infer(instance, [frames[i], frames[instance]])[0] for i in range(5)]

    threads = [threading.Thread(target=run, args=(instance,)) for instance in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for instance in (0, 1):
        np.testing.assert_allclose(found[instance], expected, atol=1e-3)
    engine.close()


def test_every_batch_size_is_captured_and_gives_the_rows_of_an_enqueued_batch(rig, built, frames):
    engine = rig.engine(built)
    assert engine.captured
    enqueued = rig.backend.open_plans(built, 1, graphs=False)
    assert not enqueued.captured
    for count in (1, 2, 3):
        np.testing.assert_array_equal(engine.infer(0, frames[:count]), enqueued.infer(0, frames[:count]))
    rig.trt.calls.clear()
    engine.infer(0, frames[:2])
    assert "execute_async_v3" not in rig.trt.calls


@pytest.mark.parametrize("refused", ["by CUDA", "by TensorRT"])
def test_without_capture_batches_are_enqueued(rig, built, frames, refused, caplog):
    expected = rig.engine(built).infer(0, frames[:2])
    rig.cuda.refuse_capture, rig.trt.refuse_in_capture = refused == "by CUDA", refused == "by TensorRT"
    with caplog.at_level(logging.INFO):
        engine = rig.engine(built)
    assert not engine.captured
    assert "cannot be captured as a CUDA graph" in caplog.text
    np.testing.assert_array_equal(engine.infer(0, frames[:2]), expected)


def test_device_time_is_the_time_between_the_events(rig, built, frames):
    engine = rig.engine(built)
    rig.cuda.operation_ms = 4.0
    engine.infer(0, frames[:1])
    assert engine.device_seconds(0) == pytest.approx(0.004)


def test_close_frees_all_device_resources(rig, built, frames):
    before = rig.cuda.live()
    engine = rig.engine(built, instances=2)
    engine.infer(1, frames[:1])
    assert rig.cuda.live() != before
    engine.close()
    assert rig.cuda.live() == before


@pytest.mark.parametrize(
    "refused", ["set_optimization_profile_async", "set_input_shape", "set_tensor_address", "execute_async_v3"]
)
def test_refused_call_while_opening_is_an_error_and_leaks_nothing(rig, built, refused):
    before = rig.cuda.live()
    rig.trt.refuse = {refused}
    with pytest.raises(EngineFailed, match="TensorRT refused "):
        rig.engine(built, instances=2)
    assert rig.cuda.live() == before


def test_refused_context_of_the_second_instance_recommends_fewer_instances(rig, built):
    before = rig.cuda.live()
    rig.trt.contexts = 4
    with pytest.raises(EngineFailed, match="no further execution context: use fewer INSTANCES"):
        rig.engine(built, instances=2)
    assert rig.cuda.live() == before


@pytest.mark.parametrize("function", ["cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags"])
def test_failed_allocation_is_an_error_with_cudas_message(rig, built, function):
    before = rig.cuda.live()
    rig.cuda.fail = {function: OOM}
    with pytest.raises(EngineFailed, match=f"{function}: out of memory"):
        rig.engine(built)
    rig.cuda.fail = {}
    assert rig.cuda.live() == before


@pytest.mark.parametrize("function", ["cudaMemcpyAsync", "cudaGraphLaunch", "cudaEventSynchronize"])
def test_failure_in_a_batch_fails_only_that_batch(rig, built, frames, function):
    engine = rig.engine(built)
    expected = engine.infer(0, frames[:1])
    rig.cuda.fail = {function: LOST}
    with pytest.raises(EngineFailed, match=f"{function}: "):
        engine.infer(0, frames[:1])
    rig.cuda.fail = {}
    np.testing.assert_array_equal(engine.infer(0, frames[:1]), expected)


# Staleness


def test_plan_that_does_not_load_is_stale_with_tensorrts_reason(rig, built):
    rig.trt.refuse_plans = True
    with pytest.raises(EngineStale, match=r"does not load .*160x160\.plan: "):
        rig.engine(built)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"garbage", lambda data: data[:-100]])
def test_damaged_plan_is_stale(rig, built, damage):
    path = built / "160x160.plan"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(EngineStale):
        rig.engine(built)


def test_stored_engine_is_found_again_and_a_driver_update_keeps_it(rig, build_request):
    stored = builder.build(build_request, lambda _: None)
    rig.cuda.driver = 13000
    assert builder.find(build_request) == stored


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("device 'NVIDIA A10G sm_86', now 'NVIDIA T4 sm_75'", {"name": b"NVIDIA T4", "major": 7, "minor": 5}),
        ("device 'NVIDIA A10G sm_86', now 'NVIDIA A10 sm_86'", {"name": b"NVIDIA A10"}),
    ],
)
def test_another_gpu_causes_a_new_build_and_one_log_line_with_the_field(rig, build_request, caplog, field, change):
    first = builder.build(build_request, lambda _: None)
    vars(rig.cuda).update(change)
    assert builder.find(build_request) is None
    second = builder.build(build_request, lambda _: None)
    assert second.folder != first.folder
    (line,) = [text for text in caplog.messages if "was built for another" in text]
    assert line == f"{first.folder} was built for another {field}: building an engine"


def test_another_tensorrt_causes_a_new_build_and_a_log_line_with_the_field(rig, build_request, caplog):
    first = builder.build(build_request, lambda _: None)
    rig.trt.module.__version__ = "12.0.0"
    builder.build(build_request, lambda _: None)
    assert f"another backend_version '{rig.trt.version}', now '12.0.0'" in caplog.text
    assert first.folder.exists()


class Builder:
    """An engine source in this process: a child process would not have the stand-ins."""

    def __init__(self, request: BuildRequest) -> None:
        self.request = request

    def run(self, report):
        return builder.find(self.request) or builder.build(self.request, report)

    def cancel(self):
        pass


def test_engine_that_no_longer_loads_is_built_again_once(rig, build_request, frames, caplog):
    stored = builder.build(build_request, lambda _: None)
    first_load = iter([True])
    real = rig.backend.load
    rig.backend.load = lambda *a: real(*a) if not next(first_load, False) else stale()

    def stale():
        raise EngineStale("TensorRT does not load the plan: expecting compute 8.6 got compute 7.5, please rebuild")

    loaded = load(Builder(build_request), lambda _: None, instances=None, threads=None)
    assert "please rebuild: building it again" in caplog.text
    assert loaded.stored.folder == stored.folder
    assert loaded.instances == 2
    assert len(loaded.engine.infer(1, frames[:2])) == 2


def test_engine_that_is_stale_twice_fails_the_start(rig, build_request):
    builder.build(build_request, lambda _: None)

    def stale(*_):
        raise EngineStale("no")

    rig.backend.load = stale
    with pytest.raises(EngineStale):
        load(Builder(build_request), lambda _: None, instances=None, threads=None)


# Several shapes

SHAPES = ((96, 160), (160, 96), (160, 160))
DEFAULTS = {"instances": None, "threads": None}


@functools.cache
def reference() -> pytorch.PytorchEngine:
    return pytorch.open_weights(DEMO_WEIGHTS, 2)


def by_pytorch(frame: np.ndarray) -> np.ndarray:
    return reference().infer(0, [frame])[0][0]


def of_shape(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return scenes.scene(seed, shape[1], shape[0]).image


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> tuple[list[Path], serving_graph.ModelInfo]:
    """A serving graph for each of SHAPES."""
    paths = []
    for shape in SHAPES:
        folder = tmp_path_factory.mktemp("several")
        plain = export.to_plain_onnx(DEMO_WEIGHTS, shape, folder, static=True)
        paths.append(folder / "graph.onnx")
        model = serving_graph.to_serving_graph(plain, "demo", None, paths[-1], (shape,))
        assert model.shapes == (shape,)
    return paths, dataclasses.replace(model, imgsz=SIDE, shapes=SHAPES)


@pytest.fixture
def folder_of(rig, context, several) -> Callable[..., Path]:
    """Builds an engine for these shapes and returns its folder; `facts` is what the build returned."""

    def make(*shapes: tuple[int, int], **changes: object) -> Path:
        graphs = [several[0][SHAPES.index(shape)] for shape in shapes]
        model = dataclasses.replace(several[1], shapes=shapes)
        made = context(graphs=graphs, model=model, precision="fp32", **changes)
        make.facts = rig.backend.build(made)
        return made.folder

    return make


def test_every_shape_has_its_own_plan_and_gives_the_rows_of_pytorch(rig, folder_of):
    folder = folder_of(*SHAPES)
    assert sorted(path.name for path in folder.iterdir()) == ["160x160.plan", "160x96.plan", "96x160.plan"]
    engine, compared = rig.engine(folder), 0
    assert engine.captured
    for seed in range(3):  # one shape after another in the same memory
        for shape in SHAPES:
            frames = [of_shape(shape, seed + i) for i in range(BATCH)]
            for count in (1, 2, 3):
                for (rows,), frame in zip(engine.infer(0, frames[:count]), frames, strict=False):
                    expected = by_pytorch(frame)
                    sure = np.count_nonzero(expected[:, 4] > 0.1)  # the order of the remaining rows is noise
                    np.testing.assert_allclose(rows[:sure], expected[:sure], atol=1e-2)
                    compared += sure
    assert compared > 100
    engine.close()


def test_frames_of_a_shape_without_a_plan_are_refused_and_later_frames_are_not(rig, folder_of):
    engine = rig.engine(folder_of(*SHAPES[:2]))
    before = engine.infer(0, [of_shape((96, 160))])
    with pytest.raises(EngineFailed, match="there is no plan for frames of 160x160, only for 160x96,96x160"):
        engine.infer(0, [of_shape((160, 160))])
    np.testing.assert_array_equal(engine.infer(0, [of_shape((96, 160))]), before)


def test_an_instance_allocates_the_memory_of_its_largest_shape_once(rig, folder_of, monkeypatch):
    rig.trt.memory_per_pixel = 10
    measured: list[list[int]] = []

    def sizes(folder: Path) -> list[int]:
        before = rig.cuda.live()
        engine = rig.engine(folder, instances=2)
        blocks = sorted(block.bytes.size for block in rig.cuda._memory.values())
        measured.append(blocks)
        engine.close()
        assert rig.cuda.live() == before
        return blocks

    assert sizes(folder_of(*SHAPES)) == sizes(folder_of(SHAPES[-1]))
    assert len(measured[0]) == 2 * 5
    assert measured[0][-1] == (1 << 20) + 10 * SIDE * SIDE
    assert sizes(folder_of(SHAPES[0]))[-1] == (1 << 20) + 10 * 96 * SIDE


def test_concurrent_instances_infer_different_shapes(rig, folder_of):
    engine = rig.engine(folder_of(*SHAPES), instances=2)
    frames = [of_shape(shape, seed) for seed in range(4) for shape in SHAPES]
    expected = [engine.infer(0, [frame])[0] for frame in frames]
    with ThreadPoolExecutor(2) as pool:
        forward = pool.submit(lambda: [engine.infer(0, [frame, frame])[1] for frame in frames])
        backward = pool.submit(lambda: [engine.infer(1, [frame, frame])[1] for frame in frames[::-1]])
        for found in (forward.result(), backward.result()[::-1]):
            for rows, wanted in zip(found, expected, strict=True):
                np.testing.assert_allclose(rows, wanted, atol=1e-3)
    engine.close()


def test_memory_of_several_shapes_is_the_sum_of_weights_and_the_largest_activations(rig, folder_of, several):
    reported: list[str] = []
    folder_of(*SHAPES, report=reported.append)
    weights = sum(map(memory.weight_bytes, several[0]))
    largest = memory.activation_bytes(several[0][-1], BATCH, SHAPES[-1])
    assert folder_of.facts["estimated_device_bytes"] == rig.backend.RESERVED_BYTES + weights + 2 * largest
    assert reported[0].startswith("BATCH=3 at 96x160,160x96,160x160 in 2 instances: about 0.8 GiB of ")
    assert {text.partition(" ")[0] for text in reported[1:]} == {"96x160", "160x96", "160x160"}


def test_shapes_share_the_timing_cache(rig, folder_of, context):
    folder_of(*SHAPES)
    (cache,) = context().cache.iterdir()
    assert rig.trt.calls.count("build_serialized_network") == 3
    assert b'"entries": 3' in cache.read_bytes()


def test_selftest_passes_correct_rows_and_reports_wrong_ones(rig, folder_of, several):
    folder = folder_of(*SHAPES)
    frames = selftest._frames(several[1])
    assert [of_shape[0].shape[:2] for of_shape in frames] == list(SHAPES)
    engine = rig.engine(folder, instances=2)
    expected = [[engine.infer(0, [frame])[0] for frame in of_shape] for of_shape in frames]
    model = several[1]
    assert selftest._mixing(engine, model, frames, expected, BATCH) == "ok"
    assert selftest._instances(engine, model, frames, expected) == "ok"
    engine.close()
    assert selftest._graphs(folder, model, frames) == "ok"
    expected[1][2] = expected[1][3]
    engine = rig.engine(folder, instances=2)
    assert "gives" in selftest._mixing(engine, model, frames, expected, BATCH)
    assert "gives" in selftest._instances(engine, model, frames, expected)
    engine.close()


@pytest.fixture
def wide(build_request) -> BuildRequest:
    """Shapes for landscape and square images."""
    return dataclasses.replace(build_request, shapes=((96, 160), (160, 160)), precision="fp32")


def test_shapes_are_built_evaluated_and_served_with_the_boxes_of_pytorch(rig, wide):
    """From weights to boxes in image pixels; the reference is Ultralytics' letterbox and forward pass."""
    from ultralytics.data.augment import LetterBox

    request = dataclasses.replace(wide, shapes=SHAPES)
    loaded = load(Builder(request), lambda _: None, **DEFAULTS)
    manifest = loaded.stored.manifest
    assert (manifest.model.imgsz, manifest.model.shapes) == (SIDE, SHAPES)
    assert manifest.fingerprint.shapes == "96x160,160x96,160x160"
    assert manifest.gate.figures.images == 3 * 4  # each of the scenes in every shape
    assert builder.find(request) == loaded.stored
    prepare = preprocessor(Settings.of(imgsz="96x160,160x96,160x160"), manifest.model)
    seen = set()
    for seed, (height, width) in enumerate([(270, 480), (480, 270), (300, 300), (100, 400), (333, 251), (288, 480)]):
        image = scenes.scene(seed, width, height).image
        transform, frame = prepare(cv2.imencode(".png", image[..., ::-1])[1].tobytes())
        seen.add(transform.frame)
        assert np.array_equal(frame, LetterBox(transform.frame, auto=False)(image=image))
        found = postprocess.select(loaded.engine.infer(1, [frame])[0], Thresholds(), fakes.MODEL)
        expected = postprocess.select((by_pytorch(frame),), Thresholds(), fakes.MODEL)
        assert found.classes.tolist() == expected.classes.tolist()
        boxes = [preprocess.to_image(each.boxes, transform) for each in (found, expected)]
        np.testing.assert_allclose(*boxes, atol=0.1)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)
    assert seen == set(SHAPES)


@pytest.mark.parametrize("spoilt", ["96x160", "160x160"])
def test_an_engine_is_refused_if_one_shape_loses_accuracy(rig, wide, monkeypatch, spoilt, caplog):
    real = fp16.to_half
    monkeypatch.setattr(fp16, "to_half", lambda *a: (spoil if a[0].parent.name == spoilt else real)(*a))
    stored = builder.build(dataclasses.replace(wide, precision="fp16"), lambda _: None)
    assert "demo fp16 is refused by the accuracy gate" in caplog.text
    assert "it finds 0.0000 of the reference's boxes" in caplog.text
    assert stored.manifest.fingerprint.precision == "fp32"


def test_every_shape_is_calibrated_on_frames_of_that_shape(rig, wide, monkeypatch):
    seen: dict[str, set] = {}
    real = int8_search.to_int8

    def to_int8(source, target, frames, *, zero_points):
        taken = list(frames)
        seen[source.parent.name] = {(len(taken), frame.shape) for frame in taken}
        assert not zero_points
        return real(source, target, taken, zero_points=zero_points)

    monkeypatch.setattr(int8_search, "to_int8", to_int8)
    monkeypatch.setattr(int8_search, "MAX_DISTANCE", 1)
    monkeypatch.setattr(builder, "CALIBRATION_IMAGES", 4)
    stored = builder.build(dataclasses.replace(wide, precision="int8", limits=Limits(map_loss=1)), lambda _: None)
    assert stored.manifest.fingerprint.precision == "int8"
    assert seen == {"96x160": {(4, (96, 160, 3))}, "160x160": {(4, (160, 160, 3))}}


@pytest.mark.parametrize("dynamic", [True, False])
def test_several_shapes_need_onnx_weights_with_a_dynamic_shape(rig, wide, tmp_path, dynamic):
    plain = export.to_plain_onnx(DEMO_WEIGHTS, SIDE, tmp_path, static=not dynamic)
    request = dataclasses.replace(wide, weights=str(plain))
    if dynamic:
        stored = builder.build(request, lambda _: None)
        assert stored.manifest.model.shapes == request.shapes
        assert sorted(stored.manifest.files) == ["160x160.plan", "96x160.plan"]
    else:
        with pytest.raises(WeightsError, match="was exported for 160x160 only, not IMGSZ=96x160: export it again"):
            builder.build(request, lambda _: None)


def test_a_side_that_is_no_multiple_of_the_stride_is_refused(rig, wide):
    request = dataclasses.replace(wide, shapes=((96, 160), (100, 160)))
    with pytest.raises(WeightsError, match="IMGSZ=100x160: 100 is not a multiple of the model's stride 32: use 96"):
        builder.build(request, lambda _: None)


def test_other_shapes_need_another_engine_and_one_log_line_names_them(rig, build_request, caplog):
    first = builder.build(build_request, lambda _: None)
    builder.build(dataclasses.replace(build_request, shapes=((96, 160),)), lambda _: None)
    assert f"{first.folder} was built for another shapes None, now '96x160': building an engine" in caplog.messages
    assert builder.find(build_request) == first


# The gate


def test_an_engine_with_wrong_rows_falls_back_to_fp32_and_then_fails_the_gate(rig, build_request, caplog):
    rig.trt.rows = lambda outputs: {name: rows + np.float32(2) for name, rows in outputs.items()}
    with pytest.raises(GateFailed):
        builder.build(build_request, lambda _: None)
    assert "demo fp16 is refused by the accuracy gate" in caplog.text
    assert "demo fp32 is refused by the accuracy gate" in caplog.text


def test_fp16_that_loses_accuracy_is_replaced_by_fp32_for_later_builds_too(rig, build_request, monkeypatch):
    monkeypatch.setattr(fp16, "to_half", spoil)
    stored = builder.build(build_request, lambda _: None)
    assert stored.manifest.fingerprint.precision == "fp32"
    assert builder.find(build_request) == stored
    calls = len(rig.trt.calls)
    assert builder.build(build_request, lambda _: None) == stored
    assert len(rig.trt.calls) == calls


def spoil(source: Path, target: Path) -> None:
    """Write the graph with all its outputs off by two."""
    model = onnx.load(source)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(2), "spoilt/by"))
    last = model.graph.node[-1]
    last.output[0] = "spoilt"
    model.graph.node.append(onnx.helper.make_node("Add", ["spoilt", "spoilt/by"], ["rows"]))
    onnx.save(model, target)


# Engines by Ultralytics


@pytest.fixture
def exported(rig, context, tmp_path) -> Callable[..., Path]:
    """Writes a file as `yolo export format=engine` does: length, JSON, plan."""

    def make(
        *,
        header: dict | None = None,
        half: bool = False,
        batch: int = 2,
        dynamic: bool = False,
        shape: tuple[int, int] = (SIDE, SIDE),
    ) -> Path:
        plain = export.to_plain_onnx(DEMO_WEIGHTS, shape, context().folder, static=not dynamic)
        if half:
            plain = halved(plain)
        trt, log = rig.trt.module, rig.backend.Log()
        maker = trt.Builder(log)
        network = maker.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, log)
        assert parser.parse_from_file(str(plain))
        config = maker.create_builder_config()
        if dynamic:
            profile = maker.create_optimization_profile()
            profile.set_shape("images", (1, 3, 32, 32), (batch, 3, SIDE, SIDE), (batch, 3, 2 * SIDE, 2 * SIDE))
            config.add_optimization_profile(profile)
        plan = bytes(maker.build_serialized_network(network, config))
        facts = {
            "task": "detect",
            "names": {str(i): name for i, name in enumerate(scenes.NAMES)},
            "stride": 32,
            "imgsz": list(shape),
            "batch": batch,
            "args": {"half": half, "dynamic": dynamic},
        }
        text = json.dumps(facts if header is None else header).encode()
        path = tmp_path / "yolo.engine"
        path.write_bytes(len(text).to_bytes(4, "little", signed=True) + text + plan)
        return path

    return make


def halved(path: Path) -> Path:
    """Make the input and output FP16, as half=True does; return the path."""
    model = onnx.load(path)
    for value, at in ((model.graph.input[0], "in"), (model.graph.output[0], "out")):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
        kind = onnx.TensorProto.FLOAT if at == "in" else onnx.TensorProto.FLOAT16
        if at == "in":
            for node in model.graph.node:
                node.input[:] = ["single" if name == value.name else name for name in node.input]
            model.graph.node.insert(0, onnx.helper.make_node("Cast", [value.name], ["single"], to=kind))
        else:
            for node in model.graph.node:
                node.output[:] = ["single_out" if name == value.name else name for name in node.output]
            model.graph.node.append(onnx.helper.make_node("Cast", ["single_out"], [value.name], to=kind))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("kind", [{}, {"half": True}, {"dynamic": True}], ids=str)
def test_engine_by_ultralytics_gives_the_rows_of_the_weights(rig, exported, build_request, frames, serving, kind):
    stored = builder.build(dataclasses.replace(build_request, weights=str(exported(**kind))), lambda _: None)
    assert list(stored.manifest.model.names.values()) == scenes.NAMES
    assert stored.manifest.model.shapes == ((SIDE, SIDE),)
    assert stored.manifest.gate.figures is None
    assert stored.manifest.fingerprint.precision == ("fp16" if kind.get("half") else "fp32")
    engine = rig.engine(stored.folder)
    rows = rows_of(engine.infer(0, frames))
    expected = rows_of(onnxruntime.OnnxruntimeEngine(serving[0], 1).infer(0, frames))
    tolerance = 0.2 if kind.get("half") else 1e-2
    np.testing.assert_allclose(rows[:, :5], expected[:, :5], atol=tolerance)
    assert (expected[:, 0, 4] > 0.5).all()


def test_engine_by_ultralytics_is_found_again_with_gate_images(rig, exported, build_request):
    evaluated = dataclasses.replace(build_request, weights=str(exported()), gate=DEMO / "samples")
    assert builder.find(evaluated) is None
    stored = builder.build(evaluated, lambda _: None)
    assert builder.find(evaluated) == stored


def test_engine_by_ultralytics_selects_tensorrt_and_refuses_another_backend(rig, exported, build_request):
    path = str(exported())
    stored = builder.build(dataclasses.replace(build_request, weights=path, backend="auto"), lambda _: None)
    assert stored.manifest.fingerprint.backend == "tensorrt"
    with pytest.raises(SettingsError, match=r"yolo\.engine is an engine of tensorrt; BACKEND=openvino cannot run it"):
        builder.find(dataclasses.replace(build_request, weights=path, backend="openvino"))
    with pytest.raises(SettingsError, match=r"yolo\.engine is an fp32 engine, not PRECISION=int8"):
        builder.find(dataclasses.replace(build_request, weights=path, precision="int8"))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"task": "detect"}, "its header lacks imgsz, names, stride"),
        ({"task": "pose", "names": {}, "stride": 32, "imgsz": [SIDE, SIDE]}, "is a pose engine"),
    ],
)
def test_unsupported_engine_by_ultralytics_is_refused_with_the_file_and_reason(
    rig, exported, build_request, header, message
):
    path = exported(header=header)
    with pytest.raises(WeightsError, match=f"yolo.engine .*{message}"):
        builder.build(dataclasses.replace(build_request, weights=str(path)), lambda _: None)


@pytest.mark.parametrize(
    ("changes", "requested"),
    [
        ({"imgsz": 96}, "IMGSZ=96"),
        ({"shapes": ((160, 160),)}, "IMGSZ=160x160"),
        ({"shapes": ((96, 160), (160, 160))}, "IMGSZ=96x160,160x160"),
    ],
    ids=str,
)
def test_engine_of_another_shape_is_refused_with_both_shapes(rig, exported, build_request, changes, requested):
    path = exported(shape=(96, 160))
    with pytest.raises(SettingsError, match=rf"yolo\.engine was exported for 96x160 only, not {requested}$"):
        builder.build(dataclasses.replace(build_request, weights=str(path), **changes), lambda _: None)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("shapes", [None, ((96, 160),)])
def test_engine_by_ultralytics_that_is_not_square_is_served_with_its_shape(
    rig, exported, build_request, dynamic, shapes
):
    path = exported(shape=(96, 160), dynamic=dynamic)
    stored = builder.build(dataclasses.replace(build_request, weights=str(path), shapes=shapes), lambda _: None)
    assert (stored.manifest.model.imgsz, stored.manifest.model.shapes) == (160, ((96, 160),))
    frame = scenes.scene(1, 160, 96).image
    loaded = load(
        Builder(dataclasses.replace(build_request, weights=str(path), shapes=shapes)), lambda _: None, **DEFAULTS
    )
    np.testing.assert_allclose(loaded.engine.infer(0, [frame])[0][0][:5], by_pytorch(frame)[:5], atol=1e-2)
    with pytest.raises(EngineFailed, match="no plan for frames of 160x160, only for 96x160"):
        loaded.engine.infer(0, [np.zeros((160, 160, 3), np.uint8)])


def test_engine_file_without_a_header_is_refused(rig, build_request, tmp_path):
    path = tmp_path / "bare.engine"
    path.write_bytes(b"\xff\xff\xff\x7fplan")
    with pytest.raises(WeightsError, match="is not an engine by Ultralytics"):
        builder.build(dataclasses.replace(build_request, weights=str(path)), lambda _: None)


# Two outputs: segment


def test_both_outputs_of_a_segment_model_are_returned_for_batches_of_any_size(rig, context, of_task, tmp_path, frames):
    segment = of_task("segment")
    (folder := tmp_path / "segment").mkdir()
    plain = export.to_plain_onnx(segment.plain, SIDE, folder, static=True)
    model = serving_graph.to_serving_graph(plain, "segment", SIDE, folder / "graph.onnx")
    made = context(graphs=[folder / "graph.onnx"], model=model, precision="fp32")
    rig.backend.build(made)
    engine = rig.engine(made.folder, instances=2)
    reference = onnxruntime.OnnxruntimeEngine(folder / "graph.onnx", 1)
    assert engine.captured
    for count in (1, 2, 3, 5):
        found = engine.infer(count % 2, frames[:count])
        assert [[output.shape for output in outputs] for outputs in found] == [[(525, 38), (32, 40, 40)]] * count
        for (rows, protos), (expected, prototypes) in zip(found, reference.infer(0, frames[:count]), strict=True):
            sure = np.count_nonzero(expected[:, 4] > 0.05)  # the order of the remaining rows is noise
            np.testing.assert_allclose(rows[:sure], expected[:sure], atol=1e-2)
            np.testing.assert_allclose(protos, prototypes, atol=1e-3)
    kept = [output.copy() for output in found[0]]
    engine.infer(1, frames[3:4])
    assert all(np.array_equal(*pair) for pair in zip(kept, found[0], strict=True))
    engine.close()
