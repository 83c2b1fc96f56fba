"""The self-test tells what runs, what does not, and catches an engine that mixes images up."""

import dataclasses
import json
import os
from pathlib import Path

import fakes
import numpy as np
import pytest

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
def order(tmp_path) -> BuildRequest:
    return BuildRequest(str(DEMO_WEIGHTS), SIDE, 2, "fp32", "onnxruntime", tmp_path / "engines")


@pytest.fixture
def stored(build, order) -> BuildRequest:
    """The order whose engine is built already."""
    return dataclasses.replace(order, batch=8, engines=build("onnxruntime", imgsz=SIDE).folder.parent)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(selftest, "TIMED_S", 0)


class Crooked:
    """ONNX Runtime, whose rows something happens to; `instance` is the only one it happens in, None = in all."""

    PRECISIONS, INSTANCES, STATIC = ("fp32",), 1, False

    def __init__(self, rows, instance=None):
        self.rows, self.instance = rows, instance

    def load(self, folder: Path, instances: int, threads: int):
        engine = onnxruntime.load(folder, instances, threads)
        straight = engine.infer
        bend = lambda instance, frames: self.instance in (None, instance) and len(frames) > 1  # noqa: E731
        engine.infer = lambda instance, frames: (
            [(rows,) for rows in self.rows(fakes.rows_of(straight(instance, frames)))]
            if bend(instance, frames)
            else straight(instance, frames)
        )
        return engine


def crash(row: Row, order: BuildRequest) -> Row:
    os._exit(9)


def test_a_backend_that_works_passes_every_check(order):
    (row,) = selftest.run(order, lambda _: None)
    assert (row.failed, row.problem) == (False, "")
    assert row.checks == {"gate": OK, "mixing": OK, "instances": OK}
    assert row.images_per_second.keys() == {1, 2}
    assert min(row.images_per_second.values()) > 0
    assert row.manifest["gate"]["figures"]["agreement"] == 1


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("check", "crooked"),
    [
        ("mixing", Crooked(lambda rows: np.repeat(rows[:1], len(rows), axis=0))),
        ("mixing", Crooked(lambda rows: rows + np.float32([1, 0, 1, 0, 0, 0]))),
        ("instances", Crooked(lambda rows: rows[::-1], instance=1)),
    ],
)
def test_an_engine_that_mixes_images_up_fails(stored, build, monkeypatch, check, crooked):
    row = Row("onnxruntime", "fp32")
    real = build("onnxruntime", imgsz=SIDE).manifest  # other tests have built into that folder too
    monkeypatch.setattr(selftest, "_build", lambda _: real)
    monkeypatch.setattr(backends, "get", lambda _: crooked)
    tried = selftest._try(row, stored)
    assert tried.failed
    assert "boxes, off by up to" in tried.checks[check]
    assert tried.problem.startswith(f"{check}: an image ")


@pytest.mark.usefixtures("quick")
def test_a_lane_that_fails_is_not_taken_for_a_lane_that_agrees(stored, build, monkeypatch):
    """Its exception ended the instance's thread, and nothing was found wrong."""

    def fail(rows):
        raise RuntimeError("no second context")

    real = build("onnxruntime", imgsz=SIDE).manifest
    monkeypatch.setattr(selftest, "_build", lambda _: real)
    monkeypatch.setattr(backends, "get", lambda _: Crooked(fail, instance=1))
    tried = selftest._try(Row("onnxruntime", "fp32"), stored)
    assert (tried.failed, tried.problem) == (True, "RuntimeError: no second context")


def test_an_engine_that_crashes_is_a_failed_row(order, monkeypatch):
    crashes = dataclasses.replace(order, backend="onnxruntime", precision="fp32")
    monkeypatch.setattr(selftest, "_try", crash)
    (row,) = selftest.run(crashes, lambda _: None)
    assert (row.failed, row.problem) == (True, "the process crashed")


def test_a_backend_that_is_not_here_is_told_and_fails_only_if_it_was_asked_for(order, monkeypatch):
    monkeypatch.setattr(processes, "call", lambda _, row, order: row)
    rows = selftest.run(dataclasses.replace(order, backend="auto", precision="auto"), lambda _: None)
    tensorrt = rows[0]
    assert (tensorrt.backend, tensorrt.failed) == ("tensorrt", False)
    assert "BACKEND=tensorrt cannot be used" in tensorrt.problem
    assert [(row.backend, row.precision) for row in rows[1:]] == [
        *(("openvino", precision) for precision in ("fp32", "int8")),
        *(("onnxruntime", precision) for precision in ("fp32", "fp16", "int8")),
        ("pytorch", "fp32"),
    ]
    (requested,) = selftest.run(dataclasses.replace(order, backend="tensorrt"), lambda _: None)
    assert requested.failed


def test_what_the_builder_refuses_is_a_failed_row(order):
    (row,) = selftest.run(dataclasses.replace(order, imgsz=100), lambda _: None)
    assert row.failed
    assert "IMGSZ=100 is not a multiple" in row.problem


def test_table_has_a_line_for_each_engine_with_its_figures():
    figures = dataclasses.replace(fakes.FIGURES, map50_95=0.5, reference_map50_95=0.51)
    manifest = fakes.built().manifest.to_json()
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
def test_command_prints_the_table_writes_all_figures_and_ends_with_1_on_failure(tmp_path, monkeypatch, capsys, failed):
    rows = [Row("openvino", "fp32", "it is broken" if failed else "", failed=failed)]
    monkeypatch.setattr(selftest, "run", lambda order, tell: rows)
    assert __main__.main(["selftest", "--engines-dir", str(tmp_path / "engines")]) == int(failed)
    written = json.loads((tmp_path / "engines" / "selftest.json").read_text())
    assert written["rows"][0]["backend"] == "openvino"
    assert written["machine"]["cpus"] >= 1
    assert "| openvino fp32 |" in capsys.readouterr().out


def test_samples_are_there_to_be_mixed():
    assert len(list((DEMO / "samples").glob("*.jpg"))) >= 2
