"""Which stored engine an installation that cannot build takes, and which error it raises if there is none."""

import dataclasses

import fakes
import pytest

from app.errors import BackendUnavailable, GateFailed, WeightsError
from app.serving.spec import BuildRequest, resolve
from app.serving.stored import StoredEngines
from app.settings import DEMO_WEIGHTS
from app.store import store
from app.store.manifest import GateResult, Manifest, StoredEngine

BAD = dataclasses.replace(fakes.FIGURES, agreement=0.0, boxes=1000, rows_agreement=0.0)


@pytest.fixture
def request_(tmp_path) -> BuildRequest:
    return BuildRequest(str(DEMO_WEIGHTS), 160, 2, "fp16", "onnxruntime", tmp_path / "engines")


def put(request_: BuildRequest, precision: str, figures=fakes.FIGURES) -> StoredEngine:
    """Store an engine like a build does. Its fingerprint also holds the evaluation."""
    fingerprint = resolve(request_, DEMO_WEIGHTS).fingerprint(precision, evaluation="of the builder")
    manifest = Manifest(fingerprint, fakes.MODEL, GateResult("images", "", figures, "PyTorch FP32"), {}, {})
    with (
        store.lock(request_.engines, fingerprint.key, lambda: None),
        store.workplace(request_.engines, fingerprint.key) as place,
    ):
        return StoredEngine(store.publish(request_.engines, place, manifest), manifest)


def run(request_: BuildRequest) -> StoredEngine:
    return StoredEngines(request_).run(lambda _: None)


def test_the_requested_engine_is_found(request_):
    stored = put(request_, "fp16")
    assert run(request_) == stored


def test_a_safer_precision_is_served_if_the_gate_refused_the_requested_one(request_, caplog):
    put(request_, "fp16", BAD)
    stored = put(request_, "fp32")
    assert run(request_) == stored
    assert "yolov8n-demo fp16 is refused by the accuracy gate: it finds 0.0000" in caplog.text


def test_gate_failed_is_raised_if_every_precision_was_refused(request_):
    for precision in ("fp16", "fp32"):
        put(request_, precision, BAD)
    with pytest.raises(GateFailed, match=r"^yolov8n-demo: no precision of the engine gives the boxes of PyTorch FP32"):
        run(request_)


@pytest.mark.parametrize("change", [{"batch": 3}, {"imgsz": 96}, {"weights": "yolov8x.pt"}])
def test_a_missing_engine_raises_backend_unavailable(request_, change):
    put(request_, "fp16")
    with pytest.raises(BackendUnavailable, match=r"^an engine has to be built, and this installation only serves"):
        run(dataclasses.replace(request_, **change))


def test_missing_weights_are_named_in_the_error(request_):
    with pytest.raises(WeightsError, match=r"^no/such\.pt: no such file$"):
        run(dataclasses.replace(request_, weights="no/such.pt"))
