"""The Python API: the demo model on OpenVINO, without HTTP."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import app
from app import Yolopard
from app.errors import BadParameter, SettingsError, Stopping, UndecodableImage, WeightsError
from app.settings import DEMO

SAMPLES = sorted((DEMO / "samples").glob("*.jpg"))


@pytest.fixture(scope="module")
def model(build):
    with Yolopard.load(backend="openvino", engines_dir=build().folder.parent) as model:
        yield model


def test_results_are_those_of_the_server(model, demo):
    found = model.predict(SAMPLES)
    for path, result in zip(SAMPLES, found, strict=True):
        (image,) = demo.client.post("/v1/predict", content=path.read_bytes()).json()["images"]
        assert result.summary() == image["results"]
        assert result.names == [each["name"] for each in image["results"]]
        assert len(result.boxes) == len(result.scores) == len(result.classes) == len(result.names)


def test_paths_bytes_and_arrays_of_one_image_give_the_same(model):
    path = SAMPLES[0]
    kinds = [path, str(path), path.read_bytes(), np.asarray(Image.open(path).convert("RGB"))]
    first, *others = (model.predict(each)[0] for each in kinds)
    assert len(first.boxes)
    for other in others:
        assert np.abs(other.boxes - first.boxes).max() < 0.5
        assert other.names == first.names


def test_thresholds_and_classes_are_applied(model):
    every = model.predict(SAMPLES[0], conf=0.05)[0]
    name = every.names[0]
    chosen = model.predict(SAMPLES[0], conf=0.05, classes=[name])[0]
    assert set(chosen.names) == {name}
    assert len(model.predict(SAMPLES[0], max_det=1)[0].boxes) == 1
    with pytest.raises(BadParameter, match="has no class 'unicorn'"):
        model.predict(SAMPLES[0], classes=["unicorn"])


def test_predict_is_thread_safe(model):
    expected = [result.names for result in model.predict(SAMPLES)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: model.predict(SAMPLES[i % len(SAMPLES)])[0].names, range(40)))
    assert found == [expected[i % len(SAMPLES)] for i in range(40)]


def test_no_images_give_no_results(model):
    assert model.predict([]) == []


def test_an_invalid_image_is_refused_and_the_next_is_predicted(model):
    with pytest.raises(UndecodableImage):
        model.predict(b"\xff\xd8\xff nothing")
    with pytest.raises(FileNotFoundError):
        model.predict("no/such.jpg")
    with pytest.raises(TypeError, match=r"uint8 \[height, width, 3\] in RGB, not float32 \[4, 4, 3\]"):
        model.predict(np.zeros((4, 4, 3), np.float32))
    assert model.predict(SAMPLES[0])


def test_model_and_gate_result_are_available(model):
    assert (model.model.name, model.model.task) == ("yolov8n-demo", "detect")
    assert model.gate["figures"]["agreement"] > 0.98


def test_wrong_settings_and_weights_are_refused():
    with pytest.raises(SettingsError, match="IMGSIZE: no such setting"):
        Yolopard.load(imgsize=640)
    with pytest.raises(WeightsError, match=r"no/such\.pt: no such file"):
        Yolopard.load("no/such.pt")


@pytest.mark.usefixtures("needs_engine")
def test_a_script_without_a_main_guard_builds_its_engine(tmp_path):
    """Earlier multiprocessing ran the script again in the builder's process and failed."""
    script = tmp_path / "script.py"
    script.write_text(
        "from app import Yolopard\n"
        f"model = Yolopard.load(backend='onnxruntime', imgsz=64, engines_dir={str(tmp_path / 'engines')!r}, batch=1,"
        f" gate_dir={str(SAMPLES[0].parent)!r}, gate_fp32=0)\n"
        f"print(len(model.predict({str(SAMPLES[0])!r})))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr


def test_a_closed_model_raises_stopping():
    model = Yolopard.load(backend="simulated")
    assert len(model.predict(SAMPLES[0])[0].boxes) == 5
    model.close()
    model.close()
    with pytest.raises(Stopping, match="closed"):
        model.predict(SAMPLES[0])


def test_the_package_exports_yolopard():
    assert app.Yolopard is Yolopard
    with pytest.raises(AttributeError, match="no attribute 'yolopard'"):
        app.yolopard  # noqa: B018
