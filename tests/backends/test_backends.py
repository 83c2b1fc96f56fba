"""Three backends run one graph and agree with each other, at every position of every batch."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from fakes import MODEL, Device, rows_of

from app import backends
from app.backends import BuildContext, openvino, pytorch, shapes, simulated
from app.errors import BackendUnavailable
from app.graphs import export, serving_graph
from app.settings import DEMO, DEMO_WEIGHTS
from app.vision import preprocess
from app.vision.postprocess import Detections, Outputs, Thresholds, select

NAMES = ["openvino", "onnxruntime", "pytorch"]
SIDE = 160


@pytest.fixture(scope="module")
def engines_by_name(build):
    loaded = {name: backends.get(name).load(build(name, imgsz=SIDE).folder, 1, 2) for name in NAMES}
    yield loaded
    for engine in loaded.values():
        engine.close()


def frame_of(path) -> np.ndarray:
    pixels = preprocess.decode(path.read_bytes(), 10**8)
    return preprocess.letterbox(pixels, preprocess.place(*pixels.shape[:2], SIDE, 32, None))


FRAMES = [frame_of(path) for path in sorted((DEMO / "samples").glob("*.jpg"))]


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_backends_agree_on_every_sample(engines_by_name, name, index):
    frame = FRAMES[index][None]
    reference = select(engines_by_name["pytorch"].infer(0, frame)[0], Thresholds(), MODEL)
    found = select(engines_by_name[name].infer(0, frame)[0], Thresholds(), MODEL)
    assert len(reference) > 0
    np.testing.assert_array_equal(found.classes, reference.classes)
    np.testing.assert_allclose(found.boxes, reference.boxes, atol=0.5)
    np.testing.assert_allclose(found.scores, reference.scores, atol=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_gives_the_same_boxes_as_a_single_image_and_at_any_position_of_a_batch(engines_by_name, name):
    engine = engines_by_name[name]
    square = next(frame for frame in FRAMES if frame.shape == (SIDE, SIDE, 3))
    others = [np.roll(square, 100 * i, axis=1) for i in range(1, 4)]
    expected = select(engine.infer(0, square[None])[0], Thresholds(), MODEL)
    for position in range(4):
        batch = [*others]
        batch.insert(position, square)
        found = select(engine.infer(0, np.stack(batch))[position], Thresholds(), MODEL)
        np.testing.assert_array_equal(found.classes, expected.classes)
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_returned_rows_are_not_overwritten_by_the_next_inference(engines_by_name, name):
    """Ultralytics' TensorRT backend returns views that the next call overwrites."""
    engine = engines_by_name[name]
    ((first,),) = engine.infer(0, FRAMES[0][None])
    before = first.copy()
    engine.infer(0, np.zeros_like(FRAMES[0])[None])
    np.testing.assert_array_equal(first, before)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_two_concurrent_instances_give_the_rows_of_sequential_inference(build, name):
    engine = backends.get(name).load(build(name, imgsz=SIDE).folder, 2, 2)
    expected = [engine.infer(0, frame[None]) for frame in FRAMES[:2]]
    found: list = [None, None]
    threads = [
        threading.Thread(
            target=lambda instance=instance: found.__setitem__(instance, engine.infer(instance, FRAMES[instance][None]))
        )
        for instance in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rows, wanted in zip(map(rows_of, found), map(rows_of, expected), strict=True):
        np.testing.assert_allclose(rows[0, :20], wanted[0, :20], atol=1e-2)


# OpenVINO: all cores for one batch or a stream for each instance, and models for frequent shapes


@pytest.fixture(scope="module")
def folders(needs_engine, tmp_path_factory) -> dict[str, Path]:
    """OpenVINO's files in each precision, built by the backend without evaluation."""
    plain = export.to_plain_onnx(DEMO_WEIGHTS, SIDE, tmp_path_factory.mktemp("plain"))
    made = {}
    for precision in openvino.PRECISIONS:
        made[precision] = tmp_path_factory.mktemp(precision)
        serving = made[precision] / "graph.onnx"
        model = serving_graph.to_serving_graph(plain, "demo", SIDE, serving)
        context = BuildContext(
            weights=DEMO_WEIGHTS,
            graphs=[serving],
            model=model,
            precision=precision,
            batch=2,
            instances=2,
            calibration=lambda _: iter(FRAMES),
            folder=made[precision],
            cache=made[precision],
            report=lambda _: None,
        )
        openvino.build(context)
    return made


@pytest.fixture(params=openvino.PRECISIONS)
def two_instances(request, folders):
    engine = openvino.load(folders[request.param], 2, 2)
    yield engine
    engine.close()


@pytest.fixture
def quantized(folders):
    engine = openvino.load(folders["int8"], 2, 2)
    yield engine
    engine.close()


def assert_same(found: Outputs, expected: Outputs) -> None:
    """Assert that both outputs give the same detections."""
    ours, theirs = (select(outputs, Thresholds(), MODEL) for outputs in (found, expected))
    assert isinstance(ours, Detections)
    assert len(theirs) > 3
    np.testing.assert_array_equal(ours.classes, theirs.classes)
    np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-2)
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)


def compiled_models(engine: openvino.OpenvinoEngine) -> list[openvino.Compiled]:
    """Return the model for all shapes, then those for single shapes."""
    return [engine._any, *(engine._shapes._made.values() if engine._shapes else [])]


def options(request, name: str) -> object:
    return request.get_compiled_model().get_property(name)


def test_openvino_infers_in_float32_even_if_the_cpu_has_bfloat16(two_instances):
    two_instances.infer(0, FRAMES[:1])
    for compiled in compiled_models(two_instances):
        for request in (*compiled._of_instance, compiled._low_latency):
            assert options(request, "INFERENCE_PRECISION_HINT").get_type_name() == "f32"


def test_openvino_has_a_stream_for_each_instance_and_one_with_all_cores_for_low_latency(two_instances):
    two_instances.infer(0, FRAMES[:1])
    for compiled in compiled_models(two_instances):
        assert [options(request, "NUM_STREAMS") for request in compiled._of_instance] == [2, 2]
        assert options(compiled._low_latency, "NUM_STREAMS") == 1
        assert options(compiled._low_latency, "INFERENCE_NUM_THREADS") == 2
        assert len({id(request) for request in (*compiled._of_instance, compiled._low_latency)}) == 3


def test_openvino_with_one_instance_is_compiled_once(folders):
    engine = openvino.load(folders["fp32"], 1, 2)
    assert engine._any._low_latency is engine._any._of_instance[0]
    assert options(engine._any._low_latency, "NUM_STREAMS") == 1
    engine.close()


def test_openvino_with_low_latency_gives_the_rows_of_an_instance(two_instances):
    for frames in ([FRAMES[0]], [FRAMES[2]] * 2):
        expected = two_instances.infer(0, frames)
        for instance, low_latency in ((1, False), (0, True), (1, True)):
            for rows, reference in zip(
                two_instances.infer(instance, frames, low_latency=low_latency), expected, strict=True
            ):
                assert_same(rows, reference)


def test_openvino_rows_with_low_latency_are_not_overwritten_either(two_instances):
    ((first,),) = two_instances.infer(0, FRAMES[:1], low_latency=True)
    before = first.copy()
    two_instances.infer(1, [np.zeros_like(FRAMES[0])], low_latency=True)
    np.testing.assert_array_equal(first, before)


def test_concurrent_openvino_instances_give_the_rows_of_sequential_inference(two_instances):
    expected = {frame.shape: two_instances.infer(0, [frame])[0] for frame in FRAMES[:3]}
    barrier, found = threading.Barrier(2), [[], []]

    def work(instance: int) -> None:
        barrier.wait(10)
        for turn in range(12):  # enough for every shape to get its own model
            frame = FRAMES[(turn + instance) % 3]
            found[instance].append((frame.shape, two_instances.infer(instance, [frame])[0]))

    threads = [threading.Thread(target=work, args=(instance,)) for instance in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [len(each) for each in found] == [12, 12]
    for shape, rows in [*found[0], *found[1]]:
        assert_same(rows, expected[shape])


def test_a_model_for_one_shape_gives_the_rows_of_the_model_for_all_shapes(quantized):
    for frame in FRAMES[:3]:
        (expected,) = quantized._any.infer(0, [frame], False)
        for _ in range(shapes.MIN_FRAMES):
            quantized.infer(0, [frame])
        if quantized._shapes._compiling is not None:
            quantized._shapes._compiling.join(60)
        assert frame.shape in quantized._shapes._made
        for instance, low_latency in ((0, False), (1, False), (0, True)):
            assert_same(quantized.infer(instance, [frame], low_latency=low_latency)[0], expected)


def test_a_frame_is_inferred_by_the_model_for_its_shape(quantized, monkeypatch):
    frame = FRAMES[0]
    expected = quantized.infer(0, [frame])
    monkeypatch.setattr(quantized._any, "infer", None)
    np.testing.assert_array_equal(quantized.infer(0, [frame]), expected)


def test_batches_of_several_images_use_the_model_for_all_shapes(quantized):
    quantized.infer(0, FRAMES[:1])
    seen = quantized._shapes._seen.copy()
    for _ in range(shapes.MIN_FRAMES):
        assert len(quantized.infer(0, [FRAMES[2]] * 2)) == 2
    assert quantized._shapes._seen == seen


def test_a_float_engine_has_only_the_model_for_all_shapes(folders):
    """A model per shape is not faster in FP32."""
    engine = openvino.load(folders["fp32"], 2, 2)
    assert engine._shapes is None
    engine.close()


def test_close_waits_for_a_compilation_in_progress(quantized):
    quantized.infer(0, [FRAMES[0]])
    for _ in range(shapes.MIN_FRAMES):
        quantized.infer(0, [FRAMES[2]])
    compiling = quantized._shapes._compiling
    other = openvino.load(quantized._path.parent, 1, 1)
    other.close()  # has compiled nothing yet
    quantized._shapes.close()
    assert compiling is None or not compiling.is_alive()


@pytest.mark.parametrize(
    ("backend", "requested", "threads", "instances"),
    [(openvino, None, 5, 5), (openvino, 2, 5, 2), (openvino, 8, 5, 8), (pytorch, None, 5, 1), (simulated, None, 5, 2)],
)
def test_instances_are_as_requested_or_the_backend_s_default_or_one_per_core(backend, requested, threads, instances):
    assert backends.instances(backend, requested, threads) == instances


def test_more_instances_than_threads_have_a_stream_each(folders):
    engine = openvino.load(folders["fp32"], 3, 2)
    expected = engine.infer(0, FRAMES[:1])
    for instance in (1, 2):
        assert_same(engine.infer(instance, FRAMES[:1])[0], expected[0])
    engine.close()


def test_auto_is_the_first_installed_backend(monkeypatch):
    assert backends.choose("auto") == "openvino"
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "app.backends.openvino", raising=False)
    assert backends.choose("auto") == "onnxruntime"


def test_a_missing_wheel_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "app.backends.openvino", raising=False)
    with pytest.raises(
        BackendUnavailable, match=r"BACKEND=openvino cannot be used: .* pip install 'yolopard\[openvino\]'"
    ):
        backends.get("openvino")


def test_fakes_implement_the_engine_protocol():
    engine: backends.Engine = Device()
    assert rows_of(engine.infer(0, np.zeros((2, 4, 4, 3), np.uint8))).shape == (2, 3, 6)


def test_engines_are_imported_without_their_telemetry():
    """`import openvino` looks up www.google-analytics.com, `import onnxruntime` mobile.events.data.microsoft.com."""
    code = (
        "import app.backends.openvino, app.backends.onnxruntime, sys, os;"
        "print(sys.modules['openvino_telemetry'], os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["None", "1"]
