"""The self-test reports which backends work, and finds an engine that mixes up images."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import fakes
import numpy as np
import pytest
from conftest import ROOT

from app import __main__, backends
from app.backends import onnxruntime
from app.bench import selftest
from app.bench.selftest import OK, Row
from app.serving.spec import BuildRequest
from app.settings import DEMO, DEMO_WEIGHTS
from app.system import processes

pytestmark = pytest.mark.usefixtures("needs_engine")

SIDE = 160


@pytest.fixture
def build_request(tmp_path) -> BuildRequest:
    return BuildRequest(str(DEMO_WEIGHTS), SIDE, 2, "fp32", "onnxruntime", tmp_path / "engines")


@pytest.fixture
def stored(build, build_request) -> BuildRequest:
    """A build request whose engine is stored."""
    return dataclasses.replace(build_request, batch=8, engines=build("onnxruntime", imgsz=SIDE).folder.parent)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(selftest, "TIMED_S", 0)


class WrongRows:
    """ONNX Runtime with changed rows; `instance` limits the change to one instance, None means all."""

    PRECISIONS, INSTANCES, STATIC = ("fp32",), 1, False

    def __init__(self, rows, instance=None):
        self.rows, self.instance = rows, instance

    def load(self, folder: Path, instances: int, threads: int):
        engine = onnxruntime.load(folder, instances, threads)
        correct = engine.infer
        is_changed = lambda instance, frames: self.instance in (None, instance) and len(frames) > 1  # noqa: E731
        engine.infer = lambda instance, frames: (
            [(rows,) for rows in self.rows(fakes.rows_of(correct(instance, frames)))]
            if is_changed(instance, frames)
            else correct(instance, frames)
        )
        return engine


def test_it_needs_only_the_packages_of_the_gpu_image():
    """It was imported together with the bench, whose rich and matplotlib the image has not."""
    block = "import sys; sys.modules.update(rich=None, matplotlib=None)"
    done = subprocess.run([sys.executable, "-c", f"{block}; from app.bench import selftest"], cwd=ROOT, check=False)
    assert done.returncode == 0


def crash(row: Row, request: BuildRequest) -> Row:
    os._exit(9)


def test_a_correct_backend_passes_every_check(build_request):
    (row,) = selftest.run(build_request, lambda _: None)
    assert (row.failed, row.problem) == (False, "")
    assert row.checks == {"gate": OK, "mixing": OK, "instances": OK}
    assert row.images_per_second.keys() == {1, 2}
    assert min(row.images_per_second.values()) > 0
    assert row.manifest["gate"]["figures"]["agreement"] == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("check", "backend"),
    [
        ("mixing", WrongRows(lambda rows: np.repeat(rows[:1], len(rows), axis=0))),
        ("mixing", WrongRows(lambda rows: rows + np.float32([1, 0, 1, 0, 0, 0]))),
        ("instances", WrongRows(lambda rows: rows[::-1], instance=1)),
    ],
)
def test_an_engine_that_mixes_up_images_fails(stored, build, monkeypatch, check, backend):
    row = Row("onnxruntime", "fp32")
    manifest = build("onnxruntime", imgsz=SIDE).manifest  # other tests build into that folder too
    monkeypatch.setattr(selftest, "_build", lambda _: manifest)
    monkeypatch.setattr(backends, "get", lambda _: backend)
    result = selftest._try(row, stored)
    assert result.failed
    assert "boxes, off by up to" in result.checks[check]
    assert result.problem.startswith(f"{check}: an image ")


@pytest.mark.usefixtures("quick")
def test_an_instance_that_raises_fails_the_check(stored, build, monkeypatch):
    """An exception ended the instance's thread, and the check passed."""

    def fail(rows):
        raise RuntimeError("no second context")

    real = build("onnxruntime", imgsz=SIDE).manifest
    monkeypatch.setattr(selftest, "_build", lambda _: real)
    monkeypatch.setattr(backends, "get", lambda _: WrongRows(fail, instance=1))
    result = selftest._try(Row("onnxruntime", "fp32"), stored)
    assert (result.failed, result.problem) == (True, "RuntimeError: no second context")


def test_an_engine_that_crashes_is_a_failed_row(build_request, monkeypatch):
    crashes = dataclasses.replace(build_request, backend="onnxruntime", precision="fp32")
    monkeypatch.setattr(selftest, "_try", crash)
    (row,) = selftest.run(crashes, lambda _: None)
    assert (row.failed, row.problem) == (True, "the process crashed")


def test_an_unavailable_backend_is_reported_and_fails_only_if_requested(build_request, monkeypatch):
    monkeypatch.setattr(processes, "call", lambda _, row, request: row)
    rows = selftest.run(dataclasses.replace(build_request, backend="auto", precision="auto"), lambda _: None)
    tensorrt = rows[0]
    assert (tensorrt.backend, tensorrt.failed) == ("tensorrt", False)
    assert "BACKEND=tensorrt cannot be used" in tensorrt.problem
    assert [(row.backend, row.precision) for row in rows[1:]] == [
        *(("openvino", precision) for precision in ("fp32", "int8")),
        *(("onnxruntime", precision) for precision in ("fp32", "fp16", "int8")),
        ("pytorch", "fp32"),
    ]
    (requested,) = selftest.run(dataclasses.replace(build_request, backend="tensorrt"), lambda _: None)
    assert requested.failed


def test_a_build_that_is_refused_is_a_failed_row(build_request):
    (row,) = selftest.run(dataclasses.replace(build_request, imgsz=100), lambda _: None)
    assert row.failed
    assert "IMGSZ=100 is not a multiple" in row.problem


def test_table_has_a_line_for_each_engine_with_its_results():
    figures = dataclasses.replace(fakes.FIGURES, map50_95=0.5, reference_map50_95=0.51)
    manifest = fakes.stored().manifest.to_json()
    manifest |= {"gate": {"figures": figures.to_json()}, "built": {"seconds": 3.2, "engine_bytes": 12_300_000}}
    rows = [
        Row("openvino", "fp32", manifest=manifest, images_per_second={1: 20.0, 8: 25.55}),
        Row("tensorrt", "auto", "no driver"),
        Row("pytorch", "fp32", "it is broken", failed=True),
    ]
    lines = selftest.table(rows).splitlines()
    assert lines[0].endswith("| images/s, batch 1 | images/s, batch 8 |")
    assert lines[2] == (
        "| openvino fp32 | ok | 3.2 | 1.0000 of 10 | 0.250 | 0.0010 | 0.5000 | 0.5100 | 12.3 | 20.0 | 25.6 |"
    )
    assert lines[3].startswith("| tensorrt auto | no driver |")
    assert lines[4].startswith("| pytorch fp32 | FAILED: it is broken |")
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize("failed", [False, True])
def test_command_prints_the_table_writes_json_and_exits_with_1_on_failure(tmp_path, monkeypatch, capsys, failed):
    rows = [Row("openvino", "fp32", "it is broken" if failed else "", failed=failed)]
    monkeypatch.setattr(selftest, "run", lambda request, report: rows)
    assert __main__.main(["selftest", "--engines-dir", str(tmp_path / "engines")]) == int(failed)
    written = json.loads((tmp_path / "engines" / "selftest.json").read_text())
    assert written["rows"][0]["backend"] == "openvino"
    assert written["machine"]["cpus"] >= 1
    assert "| openvino fp32 |" in capsys.readouterr().out


def test_there_are_at_least_two_sample_images():
    assert len(list((DEMO / "samples").glob("*.jpg"))) >= 2
