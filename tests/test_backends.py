"""Three engines of one graph: they agree with each other, and with themselves at any place of any batch."""

import subprocess
import sys

import numpy as np
import pytest
from fakes import Device

from app import backends, images
from app.datasets import DEMO
from app.errors import BackendUnavailable
from app.results import Thresholds, select

NAMES = ["openvino", "onnxruntime", "pytorch"]


@pytest.fixture(scope="module")
def engines_by_name(build):
    loaded = {name: backends.get(name).load(build(name).folder, 1, 2) for name in NAMES}
    yield loaded
    for engine in loaded.values():
        engine.close()


def frame_of(path) -> np.ndarray:
    pixels = images.decode(path.read_bytes(), 10**8)
    return images.letterbox(pixels, images.place(*pixels.shape[:2], 640, 32, rect=True))


SAMPLE_FRAMES = [frame_of(path) for path in sorted((DEMO / "samples").glob("*.jpg"))]


@pytest.mark.parametrize("index", range(5))
@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_backends_agree_on_every_sample(engines_by_name, name, index):
    frame = SAMPLE_FRAMES[index][None]
    reference = select(engines_by_name["pytorch"].infer(0, frame)[0], Thresholds())
    found = select(engines_by_name[name].infer(0, frame)[0], Thresholds())
    assert len(reference) > 0
    np.testing.assert_array_equal(found.classes, reference.classes)
    np.testing.assert_allclose(found.boxes, reference.boxes, atol=0.5)
    np.testing.assert_allclose(found.scores, reference.scores, atol=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_gives_the_same_boxes_alone_and_in_any_place_of_a_batch(engines_by_name, name):
    engine = engines_by_name[name]
    square = next(frame for frame in SAMPLE_FRAMES if frame.shape == (640, 640, 3))
    others = [np.roll(square, 100 * i, axis=1) for i in range(1, 4)]
    alone = select(engine.infer(0, square[None])[0], Thresholds())
    for place in range(4):
        batch = [*others]
        batch.insert(place, square)
        found = select(engine.infer(0, np.stack(batch))[place], Thresholds())
        np.testing.assert_array_equal(found.classes, alone.classes)
        np.testing.assert_allclose(found.boxes, alone.boxes, atol=1e-2)
        np.testing.assert_allclose(found.scores, alone.scores, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_engines_own_memory_no_more(engines_by_name, name):
    """Ultralytics' TensorRT backend returns views that the next call overwrites."""
    engine = engines_by_name[name]
    first = engine.infer(0, SAMPLE_FRAMES[0][None])
    before = first.copy()
    engine.infer(0, np.zeros_like(SAMPLE_FRAMES[0])[None])
    np.testing.assert_array_equal(first, before)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_two_lanes_at_a_time_give_what_each_gives_alone(build, name):
    import threading

    engine = backends.get(name).load(build(name).folder, 2, 2)
    expected = [engine.infer(0, frame[None]) for frame in SAMPLE_FRAMES[:2]]
    found: list = [None, None]
    threads = [
        threading.Thread(
            target=lambda lane=lane: found.__setitem__(lane, engine.infer(lane, SAMPLE_FRAMES[lane][None]))
        )
        for lane in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rows, alone in zip(found, expected, strict=True):
        np.testing.assert_allclose(rows[0, :20], alone[0, :20], atol=1e-2)


def test_openvino_infers_in_float32_even_where_the_cpu_has_bfloat16(engines_by_name):
    compiled = engines_by_name["openvino"]._compiled
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"


def test_auto_is_the_first_that_is_installed(monkeypatch):
    assert backends.choose("auto") == "openvino"
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "app.backends.openvino", raising=False)
    assert backends.choose("auto") == "onnxruntime"


def test_missing_wheel_is_named_with_the_command_that_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "app.backends.openvino", raising=False)
    with pytest.raises(
        BackendUnavailable, match=r"BACKEND=openvino cannot be used: .* pip install 'yolopard\[openvino\]'"
    ):
        backends.get("openvino")


def test_fakes_keep_to_the_protocol():
    engine: backends.Engine = Device()
    assert engine.infer(0, np.zeros((2, 4, 4, 3), np.uint8)).shape == (2, 3, 6)


def test_engines_are_imported_without_their_telemetry():
    """`import openvino` looks up www.google-analytics.com, `import onnxruntime` mobile.events.data.microsoft.com."""
    code = (
        "import app.backends.openvino, app.backends.onnxruntime, sys, os;"
        "print(sys.modules['openvino_telemetry'], os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["None", "1"]
