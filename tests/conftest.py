"""Fixtures: the real engine of the demo model, built once per session, and servers on real sockets."""

import asyncio
import functools
import gc
import shutil
import signal
import socket
import ssl
import threading
import time
import types
import warnings
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fakes
import httpx
import pytest
import uvicorn

from app import backends
from app.api.app import create_app
from app.backends import Engine
from app.building.process import BuildProcess
from app.http import server
from app.model import ModelInfo
from app.serving import profile as engine_profile
from app.serving.profile import EngineProfile
from app.serving.service import Service
from app.serving.spec import BuildRequest
from app.settings import DEMO, DEMO_WEIGHTS, Settings
from app.store.manifest import StoredEngine

ROOT = Path(__file__).parents[1]
TLS = ssl.create_default_context()  # httpx would read all certificates for every client, which takes 20 ms
PATIENCE_S = 300  # maximum wait for an event that usually takes seconds, for slow or busy machines


def eventually(done: Callable[[], Any], what: Callable[[], object] = lambda: "") -> None:
    """Wait until `done` returns True. Fails after PATIENCE_S, with the text of `what`."""
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline, what()
        time.sleep(0.02)


@contextmanager
def without_collector() -> Iterator[list[str]]:
    """Yield a list. After the block it has the names of the app's frames and classes that only the collector freed."""
    gc.freeze()  # the collection then looks at new objects only, not at all of torch
    gc.disable()
    left: list[str] = []
    try:
        yield left
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        for garbage in gc.garbage:
            if isinstance(garbage, types.FrameType):
                code = garbage.f_code
                left += [code.co_qualname] * code.co_filename.startswith(str(ROOT / "app"))
            elif type(garbage).__module__.startswith("app."):
                left.append(type(garbage).__qualname__)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.unfreeze()
        gc.enable()


def pytest_configure() -> None:
    """Handle the signals that `nohup` and `&` ignore: child processes inherit that, and tests send them."""
    for number in (signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "needs_engine" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.engine)


@pytest.fixture(scope="session")
def needs_engine() -> None:
    """Mark the test `engine`, so that `make check` leaves it out.

    Fixtures and modules request it if they export weights, build or run an engine, or start `yolopard` as a process.
    """


@pytest.fixture(autouse=True, scope="session")
def quick_stops() -> Iterator[None]:
    """Let servers in this process stop in milliseconds: uvicorn sleeps 0.1 s twice. `test_main.py` stops real ones."""

    def sleep(seconds: float) -> Coroutine[Any, Any, None]:
        return asyncio.sleep(min(seconds, 0.005))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "ACCEPT_GRACE_S", 0)
        patch.setattr(uvicorn.server, "asyncio", types.SimpleNamespace(**vars(asyncio) | {"sleep": sleep}))
        yield


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One engines folder for all workers of a run: all find the engines that one has built."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "engines"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def build(needs_engine: None, engines: Path) -> Callable[..., StoredEngine]:
    """Build an engine of the demo model, or of other weights, as `yolopard build` does. A second call finds it."""

    def run(
        backend: str = "openvino",
        *,
        weights: Path = DEMO_WEIGHTS,
        batch: int = 8,
        imgsz: int | None = None,
        precision: str = "auto",
    ) -> StoredEngine:
        build_request = BuildRequest(str(weights), imgsz, batch, precision, backend, engines)
        return BuildProcess(build_request).run(lambda _: None)

    return run


@dataclass(frozen=True)
class OfTask:
    """The demo model of a task, its plain export for any shape, and the serving graph made from the export."""

    weights: Path
    plain: Path
    graph: Path
    model: ModelInfo


@pytest.fixture(scope="session")
def of_task(needs_engine: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], OfTask]:
    """Return a function that makes the files of a task at its first call."""

    @functools.cache
    def make(task: str) -> OfTask:
        from app.graphs import export, serving_graph

        folder, weights = tmp_path_factory.mktemp(task), DEMO / f"yolov8-demo-{task}.pt"
        plain, serving = export.to_plain_onnx(weights, None, folder), folder / "graph.onnx"
        return OfTask(weights, plain, serving, serving_graph.to_serving_graph(plain, task, None, serving))

    return make


@pytest.fixture(scope="session")
def exported(needs_engine: None, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that exports a demo model with Ultralytics, as `yolo export format=onnx imgsz=96`."""

    @functools.cache
    def export(task: str, **options: object) -> Path:
        from ultralytics import YOLO

        weights = tmp_path_factory.mktemp("exported") / f"{task}.pt"
        shutil.copy(DEMO_WEIGHTS if task == "detect" else DEMO / f"yolov8-demo-{task}.pt", weights)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about opsets
            return Path(YOLO(weights).export(format="onnx", imgsz=96, device="cpu", **options))

    return export


@pytest.fixture(scope="session")
def sample() -> bytes:
    return (DEMO / "samples" / "scene-1.jpg").read_bytes()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Live:
    """A running server: its service, its address, and a client for it."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(64)
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = server.make_server(service.settings, create_app(service))
        self.server.on_stop = service.inflight.close
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})
        self.thread.start()
        self.client = httpx.Client(base_url=self.url, timeout=30, verify=TLS)

    def stop(self) -> None:
        self.client.close()
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive(), "the server did not stop"
        self.socket.close()

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of a series on /metrics; None if it is missing."""
        from prometheus_client.parser import text_string_to_metric_families

        for family in text_string_to_metric_families(self.client.get("/metrics").text):
            for series in family.samples:
                if series.name == f"yolopard_{name}" and labels.items() <= series.labels.items():
                    return series.value
        return None


@pytest.fixture
def device() -> fakes.Device:
    return fakes.Device(fakes.ROWS)


@pytest.fixture
def second() -> fakes.Device:
    """The device of BACKEND=pytorch."""
    return fakes.Device(fakes.ROWS)


@contextmanager
def serving(
    device: fakes.Device, second: fakes.Device, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Live]]:
    measured = {}
    monkeypatch.setattr(engine_profile, "measure", lambda *_: measured["profile"])
    monkeypatch.setattr(backends, "get", lambda name: fakes.Backend(second if name == "pytorch" else device))
    lives = []

    def start(
        source: fakes.Source | None = None,
        *,
        sources: Mapping[str, fakes.Source] | None = None,
        wait: bool = True,
        profile: EngineProfile | None = None,
        **settings: object,
    ) -> Live:
        ready = threading.Event()
        measured["profile"] = profile or fakes.profile(4)
        by_backend = {"pytorch": fakes.Source(fakes.stored(backend="pytorch"))} | dict(sources or {})
        service = Service(
            Settings.of(batch=4, **settings),
            lambda backend: by_backend.get(backend) or source or fakes.Source(fakes.stored()),
            on_ready=lambda _: ready.set(),
            on_failure=ready.set,
        )
        live = Live(service)
        lives.append(live)
        if wait:
            assert ready.wait(20)
            for each in (device, second):
                each.forget()
        return live

    yield start
    for each in (device, second):
        each.gate.set()
    for live in lives:
        live.stop()


@pytest.fixture
def serve(device: fakes.Device, second: fakes.Device, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Live]]:
    """Serve the fake device, or the engine of `source`, with these settings; wait until ready if `wait`.

    `sources` are those of other backends; pytorch has one, on the second device. `profile` is the warm-up's result.
    """
    with serving(device, second, monkeypatch) as start:
        yield start


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Live]:
    """The fake device with the default settings, for all tests of a module that do not change the server's state."""
    devices = [fakes.Device(fakes.ROWS) for _ in range(2)]
    with pytest.MonkeyPatch.context() as patch, serving(*devices, patch) as start:
        yield start()


@contextmanager
def serve_engine(engine: Engine, stored: StoredEngine, **settings: object) -> Iterator[Live]:
    """Serve this engine in batches of up to 4, without a backend."""
    ready = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_profile, "measure", lambda *_: fakes.profile(4))
        patch.setattr(backends, "get", lambda _: fakes.Backend(engine))
        service = Service(
            Settings.of(batch=4, **settings),
            lambda _: fakes.Source(stored),
            on_ready=lambda _: ready.set(),
            on_failure=ready.set,
        )
        live = Live(service)
        assert ready.wait(20)
    assert service.ready
    yield live
    live.stop()


def serve_demo(folder: Path, **settings: object) -> Live:
    """Serve the demo model on OpenVINO from an engines folder."""
    ready = threading.Event()
    build_request = BuildRequest(str(DEMO_WEIGHTS), None, 8, "auto", "openvino", folder)
    given = Settings.of(engines_dir=build_request.engines, backend="openvino", **settings)
    service = Service(
        given, lambda _: BuildProcess(build_request), on_ready=lambda _: ready.set(), on_failure=ready.set
    )
    live = Live(service)
    assert ready.wait(60)
    return live


@pytest.fixture(scope="session")
def demo(build: Callable[..., StoredEngine]) -> Iterator[Live]:
    """The demo model, with the best batch size of this machine."""
    live = serve_demo(build().folder.parent)
    yield live
    live.stop()


@pytest.fixture
def batching_demo(build: Callable[..., StoredEngine], monkeypatch: pytest.MonkeyPatch) -> Iterator[Live]:
    """The demo model, in batches of up to 8, even if they are not faster."""
    monkeypatch.setattr(
        engine_profile, "measure", lambda engine, instances, frame, largest, patience: fakes.profile(largest)
    )
    live = serve_demo(build().folder.parent)
    yield live
    live.stop()
