"""Fakes of the device: an engine that tests pause, make fail and inspect, its backend and its provider."""

import asyncio
import dataclasses
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.backends import BuildContext
from app.model import ModelInfo
from app.progress import Progress, Report
from app.serving.profile import EngineProfile
from app.store.accuracy import AccuracyReport
from app.store.manifest import Fingerprint, GateResult, Manifest, StoredEngine
from app.vision.postprocess import Outputs

NAMES = {0: "cat", 1: "dog", 2: "red, large cat"}
MODEL = ModelInfo("pets", "detect", NAMES, stride=32, imgsz=64, shapes=None)
ROWS = np.zeros((3, 6), np.float32)  # for every image: a dog with score 0.9, a cat with 0.6, and an empty row
ROWS[0] = (10, 20, 30, 40, 0.9, 1)
ROWS[1] = (50, 50, 90, 80, 0.6, 0)


def rows_of(found: list[Outputs]) -> np.ndarray:
    """Return the rows of an engine's outputs for n frames, [n, K, 6 + E]."""
    return np.stack([outputs[0] for outputs in found])


class Device:
    """An engine. `gate` pauses it inside a batch, `busy` counts the started batches, `failure` is raised."""

    def __init__(self, rows: np.ndarray | None = None) -> None:
        self.rows = rows  # [K, 6] for every image; None: every value is the frame's first pixel
        self.batches: list[list[int]] = []  # first pixels of the frames
        self.shapes: list[tuple[int, ...]] = []
        self.low_latency: list[bool] = []  # the argument, for each batch
        self.gate = threading.Event()
        self.gate.set()
        self.busy = threading.Semaphore(0)
        self.failure: BaseException | None = None
        self.extra_rows = 0
        self.seconds: float | None = None
        self.closed = False
        self.threads: set[str] = set()
        self.frames: list[np.ndarray] = []  # of the last batch
        self.nice: int | None = None  # of the thread that ran the last batch

    def infer(self, instance: int, frames: Sequence[np.ndarray], *, low_latency: bool = False) -> list[Outputs]:
        images = np.stack(frames)
        self.threads.add(threading.current_thread().name)
        self.frames = list(frames)
        self.nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        self.batches.append(images[:, 0, 0, 0].tolist())
        self.shapes.append(images.shape)
        self.low_latency.append(low_latency)
        self.busy.release()
        assert self.gate.wait(10)
        if self.failure is not None:
            raise self.failure
        if self.rows is not None:
            return [(self.rows,)] * len(images)
        rows = np.zeros((len(images) + self.extra_rows, 3, 6), np.float32)
        rows[: len(images)] = images[:, :1, :1, :1].reshape(-1, 1, 1)
        return [(each,) for each in rows]

    def device_seconds(self, instance: int) -> float | None:
        return self.seconds

    def close(self) -> None:
        self.closed = True

    def forget(self) -> None:
        """Drop the record of the batches so far, such as the warm-up."""
        while self.busy.acquire(blocking=False):
            pass
        self.batches.clear()
        self.shapes.clear()
        self.low_latency.clear()

    async def until_busy(self) -> None:
        assert await asyncio.to_thread(self.busy.acquire, timeout=10)


class Backend:
    """A backend that loads the device of the test."""

    PRECISIONS = ("fp32",)
    INSTANCES = 1
    ONE_DEVICE = False
    STATIC = False

    def __init__(self, device: Device) -> None:
        self._device = device

    def require(self) -> None:
        pass

    def version(self) -> str:
        return "1.0"

    def device(self) -> str:
        return "cpu test"

    def build(self, context: BuildContext) -> dict[str, Any]:
        raise AssertionError("nothing is built")

    def load(self, folder: Path, instances: int, threads: int) -> Device:
        return self._device


def profile(batch: int, *, device_s: float = 0.04, lead_s: float = 0) -> EngineProfile:
    """Return a profile in which a batch of one takes as long as the largest."""
    sizes = sorted({1, batch})
    return EngineProfile(sizes, [device_s] * len(sizes), [lead_s] * len(sizes))


FIGURES = AccuracyReport(
    images=2,
    boxes=10,
    agreement=1.0,
    false_positives=0.0,
    box_px=0.25,
    box_px_mean=0.125,
    shift_px=0.0,
    score=0.001,
    score_mean=0.0005,
    rows=60,
    rows_agreement=1.0,
)


def stored(
    *,
    batch: int = 4,
    imgsz: int = 64,
    shapes: tuple[tuple[int, int], ...] | None = None,
    backend: str = "fake",
    precision: str = "fp32",
    figures: AccuracyReport | None = FIGURES,
    model: ModelInfo | None = None,
) -> StoredEngine:
    fingerprint = Fingerprint(
        name="pets",
        weights_sha256="0" * 64,
        graph_revision="0",
        evaluation_revision="",
        imgsz=imgsz,
        shapes=None,
        batch=batch,
        precision=precision,
        backend=backend,
        backend_version="1.0",
        device="cpu test",
        calibration="",
    )
    model = model or dataclasses.replace(MODEL, imgsz=imgsz, shapes=shapes)
    return StoredEngine(
        Path(), Manifest(fingerprint, model, GateResult("2 images", "", figures, "PyTorch FP32"), {}, {"model": "0"})
    )


class Source:
    """An engine provider whose `run` reports, waits for `go`, and then returns or raises the outcome."""

    def __init__(self, outcome: StoredEngine | Exception) -> None:
        self.outcome = outcome
        self.go = threading.Event()
        self.go.set()
        self.reported = threading.Event()
        self.cancelled = False

    def run(self, report: Report) -> StoredEngine:
        report(Progress.at("engine", "pets"))
        self.reported.set()
        assert self.go.wait(10)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def cancel(self) -> None:
        self.cancelled = True
        self.go.set()
