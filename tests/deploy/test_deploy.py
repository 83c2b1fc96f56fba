"""deploy/: the dashboard, alerts and locks, as files and with a real server and Debian's Prometheus."""

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from conftest import PATIENCE_S, Live, eventually
from every_metric import used
from nvml_standin import Driver
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from prometheus_client.parser import text_string_to_metric_families

from app import errors
from app.building.process import BuildProcess
from app.errors import BackendUnavailable
from app.serving.service import Service
from app.serving.spec import BuildRequest
from app.settings import DEMO_WEIGHTS, Settings
from app.system import gpu
from app.system.metrics import STAGES

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/yolopard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]
RULES = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"][0]["rules"]
ALERTS = {rule["alert"] for rule in RULES}
CASES = yaml.safe_load((DEPLOY / "prometheus/alerts_test.yml").read_text())["tests"]
RUNBOOK = (DEPLOY / "alerts.md").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]

IMGSZ = 160  # small, for fast builds
MAX_PENDING = 4
KEYWORDS = {"and", "or", "unless", "on", "by", "ignoring", "group_left", "offset"}

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="Debian's prometheus is not installed")
prometheus_too = pytest.mark.skipif(shutil.which("prometheus") is None, reason="Debian's prometheus is not installed")


# The files


@promtool
@pytest.mark.parametrize(
    "command",
    ["check config prometheus.yml", "check rules --lint-fatal alerts.yml", "test rules alerts_test.yml"],
)
def test_promtool_accepts_the_files(command):
    ran = subprocess.run(
        ["promtool", *command.split()], cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_alert_is_tested_firing_and_not_firing():
    cases = [case for group in CASES for case in group["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == ALERTS
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == ALERTS


def test_every_alert_has_a_severity_annotations_and_a_runbook_section():
    assert re.findall(r"^## (.*)$", RUNBOOK, re.MULTILINE) == [rule["alert"] for rule in RULES]
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}
        assert rule["annotations"]["runbook"] == f"deploy/alerts.md#{rule['alert'].lower()}"


def test_runbook_and_dashboard_name_existing_panels_and_alerts():
    titles = {panel["title"].removesuffix(": $engine") for panel in PANELS}
    named = {" ".join(name.split()) for name in re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", RUNBOOK)}
    assert named - {"like this"} <= titles
    assert set(re.findall(r"\bYolopard[A-Z]\w+", json.dumps(DASHBOARD))) <= ALERTS


def test_links_of_the_runbook_lead_to_existing_targets():
    for file, heading in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", RUNBOOK):
        assert (DEPLOY / file).exists()
        assert not heading or f"## {heading}\n" in RUNBOOK.lower()


def known_samples() -> dict[str, set[str]]:
    """Return every sample name that a server may export, with its labels in Prometheus."""
    metrics = used()
    with pytest.MonkeyPatch.context() as patch:
        see_a_gpu(patch)
        metrics.add(gpu.open_gpu())
        text = metrics.render("")[0].decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    labels = {sample.name: {*sample.labels, "job", "instance"} for sample in samples}
    return labels | {"up": {"job", "instance"}, "ALERTS": {"alertname", "alertstate"}}


def see_a_gpu(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gpu, "pynvml", Driver(["GPU-aaaa"]))
    patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def metrics_of(expr: str) -> set[str]:
    bare = re.sub(r'"[^"]*"', "", expr)
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(?:by|on|ignoring|group_left) \([^)]*\)", " ", bare)
    return set(re.findall(r"\b[a-zA-Z_]\w*\b(?! *\()", bare)) - KEYWORDS


@pytest.mark.parametrize("expr", [*(t["expr"] for _, t in TARGETS), *(rule["expr"] for rule in RULES)])
def test_every_queried_metric_and_label_exists(expr):
    labels = known_samples()
    assert metrics_of(expr)
    assert metrics_of(expr) <= labels.keys()
    for name, matchers in re.findall(r"(\w+)\{([^}]*)\}", expr):
        assert set(re.findall(r"(\w+) *(?:=~|!~|!=|=)", matchers)) <= labels[name]


@pytest.mark.parametrize(
    "reason", re.findall(r'reason="(\w+)"', json.dumps([rule["expr"] for rule in RULES]).replace("\\", ""))
)
def test_reasons_in_alerts_are_codes_of_service_errors(reason):
    assert reason in {error.code for error in errors.ServiceError.__subclasses__()}


@pytest.mark.parametrize("series", [entry["series"] for case in CASES for entry in case["input_series"]])
def test_alert_tests_use_the_real_labels_of_series(series):
    name, labels = re.fullmatch(r"(\w+)\{(.*)\}", series).groups()
    assert set(re.findall(r'(\w+)="', labels)) == known_samples()[name]


def test_panels_do_not_overlap_and_each_has_an_id_and_a_description():
    seen = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & seen, panel["title"]
        assert max(x for x, _ in cells) < 24
        seen |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(len(panel["description"]) > 40 for panel in PANELS)


def test_dashboard_uses_the_provisioned_data_source():
    (source,) = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"]
    requested = [entry["datasource"] for entry in (*PANELS, *DASHBOARD["templating"]["list"])]
    assert {(at["type"], at["uid"]) for at in requested} == {(source["type"], source["uid"])}
    assert source["url"] == f"http://prometheus:{COMPOSE['prometheus']['ports'][0].rpartition(':')[2]}"


def mounted(service: str, target: str) -> Path:
    (source,) = [v.split(":")[0] for v in COMPOSE[service]["volumes"] if v.split(":")[1] == target]
    return ROOT / source


def test_compose_mounts_rules_and_dashboard_at_the_configured_paths():
    (provider,) = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/yolopard.yml").read_text())["providers"]
    assert (mounted("grafana", provider["options"]["path"]) / "yolopard.json").is_file()
    assert (mounted("grafana", "/etc/grafana/provisioning") / "dashboards/yolopard.yml").is_file()
    rules = yaml.safe_load((mounted("prometheus", "/etc/prometheus") / "prometheus.yml").read_text())["rule_files"]
    assert [(mounted("prometheus", "/etc/prometheus") / rule).is_file() for rule in rules] == [True]


def test_compose_allows_anonymous_access_only_on_loopback():
    for name in ("yolopard", "gpu"):
        assert COMPOSE[name]["environment"]["YOLOPARD_ALLOW_ANONYMOUS"] == "1"
        assert all(port.startswith("127.0.0.1:") for port in COMPOSE[name]["ports"])


@pytest.mark.parametrize("service", COMPOSE)
def test_every_service_limits_memory_processes_and_logs(service):
    limits = COMPOSE[service]
    assert re.fullmatch(r"\d+[mg]", limits["mem_limit"])
    assert 0 < limits["pids_limit"] <= 1024
    assert limits["logging"] == {"driver": "json-file", "options": {"max-size": "10m", "max-file": "3"}}


def executable(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def pinning(tmp_path) -> Callable[[str], subprocess.CompletedProcess]:
    """Runs `make pin-images` in a copy of the repository, with a stand-in for docker."""
    (tmp_path / "deploy").mkdir()
    for name in ("docker-compose.yml", "Dockerfile", "deploy/pin-images"):
        shutil.copy(ROOT / name, tmp_path / name)

    def run(script: str) -> subprocess.CompletedProcess:
        executable(tmp_path / "bin", "docker", script)
        env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        return subprocess.run([tmp_path / "deploy/pin-images"], env=env, capture_output=True, text=True, check=False)

    return run


def test_pinning_adds_and_renews_the_digest_of_every_third_party_image(pinning, tmp_path):
    for digit in "ab":
        ran = pinning(f'echo "$*" >> "{tmp_path}/asked"; echo sha256:{digit * 64}')
        assert ran.returncode == 0, ran.stderr
        pinned = yaml.safe_load((tmp_path / "docker-compose.yml").read_text())["services"]
        for name in COMPOSE:
            digest = "" if COMPOSE[name]["image"].startswith("yolopard:") else f"@sha256:{digit * 64}"
            assert pinned[name]["image"] == COMPOSE[name]["image"].partition("@")[0] + digest
        assert f"ARG BASE=python:3.11-slim-bookworm@sha256:{digit * 64}\n" in (tmp_path / "Dockerfile").read_text()
    requested = (tmp_path / "asked").read_text().splitlines()
    assert len(requested) == 6
    assert all(line.startswith("buildx imagetools inspect ") and "@" not in line for line in requested)


@pytest.mark.parametrize("script", ["echo no such image >&2; exit 1", "echo nothing known"])
def test_pinning_changes_nothing_if_the_registry_fails(pinning, tmp_path, script):
    assert pinning(script).returncode != 0
    for name in ("docker-compose.yml", "Dockerfile"):
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()


# The locks that the images install from


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = {  # of each image
    "base": None,
    "cpu": ["grpc", "openvino"],
    "build": ["build", "onnxruntime", "openvino"],
    "gpu": ["build", "grpc", "tensorrt"],
}
LEFT_OUT = {"opencv-python", "tensorrt-cu13-libs"}


def locked(image: str) -> dict[str, Requirement]:
    text = (DEPLOY / f"{image}.lock").read_text().replace("\\\n", " ")
    lines = [line.partition(" --hash")[0] for line in text.splitlines() if line and line.lstrip()[0] != "#"]
    return {canonicalize_name(entry.name): entry for entry in map(Requirement, lines)}


def version(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "=="
    return specifier.version


def requirements_of(extras: list[str] | None) -> list[Requirement]:
    """Return the requirements in pyproject.toml, including those that install Yolopard itself."""
    found = [Requirement(text) for text in PROJECT["dependency-groups"]["image"]]
    if extras is None:
        return found
    found += [Requirement(text) for text in PROJECT["project"]["dependencies"]]
    for extra in extras:
        for entry in map(Requirement, PROJECT["project"]["optional-dependencies"][extra]):
            found += requirements_of(sorted(entry.extras)) if entry.name == "yolopard" else [entry]
    return found


@pytest.mark.parametrize("image", EXTRAS)
def test_locks_have_the_versions_of_pyproject_and_the_constraints(image):
    lock = locked(image)
    for entry in requirements_of(EXTRAS[image]):
        assert version(lock[canonicalize_name(entry.name)]) == version(entry)
    for line in (DEPLOY / "constraints.txt").read_text().splitlines():
        if not line.startswith("#") and (name := canonicalize_name(line.partition("==")[0])) in lock:
            assert version(lock[name]) == line.partition("==")[2]


@pytest.mark.parametrize("image", EXTRAS)
def test_locks_contain_exactly_the_dependencies_of_their_packages(image):
    """Read from the packages installed here, which do not include those of the GPU."""
    lock, wanted = locked(image), {canonicalize_name(entry.name) for entry in requirements_of(EXTRAS[image])}
    extras = {canonicalize_name(entry.name): entry.extras for entry in requirements_of(EXTRAS[image])}
    absent = set()
    for name, entry in lock.items():
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            absent.add(name)
            continue
        if Version(found.version).public != version(entry):
            absent.add(name)
            continue
        for needed in map(Requirement, found.requires or []):
            if not needed.marker or any(needed.marker.evaluate({"extra": e}) for e in ("", *extras.get(name, ()))):
                wanted.add(canonicalize_name(needed.name))
    missing = wanted - lock.keys() - LEFT_OUT
    assert not missing
    if not absent:
        assert lock.keys() - wanted == set()
    if image in ("base", "cpu"):
        assert not absent


@pytest.mark.parametrize("image", EXTRAS)
def test_every_entry_of_a_lock_has_hashes_and_no_url(image):
    text = (DEPLOY / f"{image}.lock").read_text()
    for entry in re.split(r"\n(?=\w)", re.sub(r"(?m)^\s*#.*\n", "", text)):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry
    assert not re.search(r"://|--(?:extra-)?index-url|--find-links", text)


def copied(stage: str) -> list[str]:
    """Return the paths that a stage of the Dockerfile and its base stages copy from this repository."""
    dockerfile = (ROOT / "Dockerfile").read_text().replace("${WEIGHTS}", "models/demo/yolov8n-demo.pt")
    stages = {text.split()[2]: text for text in re.split(r"(?m)^FROM ", dockerfile)[1:]}
    paths: list[str] = []
    while stage in stages:
        lines = re.findall(r"(?m)^COPY (?!--from)(.+) \S+$", stages[stage])
        paths += [path for line in lines for path in line.split() if "${" not in path]
        stage = stages[stage].split()[0]
    return paths


@pytest.fixture
def image(tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `yolopard build` with the files of the serving image, and without torch."""
    for path in (path for pattern in copied("cpu") for path in ROOT.glob(pattern)):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(path, target) if path.is_dir() else shutil.copy(path, target)
    # An editable install would import missing files from the repository.
    command = "import sys; sys.meta_path[:] = [each for each in sys.meta_path if 'editable' not in repr(each)]; "
    command += "sys.modules['torch'] = None; from app.__main__ import main; sys.exit(main(sys.argv[1:]))"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}

    def run(*options: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", command, "build", "--backend", "openvino", *options],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_the_serving_image_has_all_files_needed_to_find_its_engine(build, image):
    """Earlier models/demo/scenes.py, which the fingerprint needs, was missing and the container failed."""
    stored = build()
    done = image("--engines-dir", str(stored.folder.parent))
    assert str(stored.folder) in done.stdout, done.stderr
    assert done.returncode == 0


def test_the_serving_image_has_no_code_that_builds_or_evaluates():
    assert "app/api" in copied("cpu")
    assert not {"app", "app/building", "app/evaluation", "app/bench"} & set(copied("cpu"))


def test_a_missing_engine_is_reported_in_one_line_if_only_serving_is_installed(build, image):
    done = image("--engines-dir", str(build().folder.parent), "--batch", "3")
    assert done.stderr.splitlines()[-1].startswith("yolopard: an engine has to be built, and this installation only")
    assert done.returncode == 1


def test_images_install_everything_with_hashes_except_the_libraries_of_tensorrt():
    dockerfile = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    installs = re.findall(r"pip install ((?:(?!&&|\n).)*)", "\n".join(re.findall(r"(?m)^RUN (.*)$", dockerfile)))
    assert len(installs) == 6
    without = [line for line in installs if "--require-hashes" not in line]
    assert all("--no-deps" in line for line in installs)
    assert [line.split()[-1] for line in without if "tensorrt-cu13-libs" not in line] == ["."]
    assert "--no-build-isolation" in without[0]


def test_packages_left_out_of_the_locks_are_those_listed_for_uv():
    lines = (DEPLOY / "not-locked.txt").read_text().splitlines()
    assert {line for line in lines if not line.startswith("#")} == LEFT_OUT


PACKAGE = '{"dependencies": [{"name": "a", "version": "1"%s}]}'


@pytest.mark.parametrize(
    ("report", "status", "passes", "reported"),
    [
        (PACKAGE % ', "vulns": []', 0, True, "a.lock: no known vulnerabilities"),
        (PACKAGE % ', "vulns": [{"id": "PYSEC-1"}]', 1, False, "PYSEC-1"),
        (PACKAGE % ', "skip_reason": "not found on PyPI"', 0, False, "NOT AUDITED: 1 packages are unknown"),
        ("", 1, False, "NOT AUDITED: pip-audit gave no report: ConnectionError"),
    ],
)
def test_an_audit_passes_only_if_every_package_was_looked_up(tmp_path, report, status, passes, reported):
    executable(tmp_path, "pip-audit", f"echo ConnectionError >&2; printf '%s' '{report}'; exit {status}")
    ran = subprocess.run(
        [DEPLOY / "audit", tmp_path / "pip-audit", "a.lock"], capture_output=True, text=True, check=False
    )
    assert (ran.returncode == 0) == passes
    assert reported in ran.stdout + ran.stderr


# With a server that falls back to ONNX Runtime, compares with PyTorch and has a stand-in for a GPU


class Unavailable:
    """The source of the requested backend, which is unavailable."""

    def run(self, report: Callable[..., None]) -> None:
        raise BackendUnavailable("there is no GPU")

    def cancel(self) -> None:
        pass


@pytest.fixture(scope="module")
def live(engines, build) -> Iterator[Live]:
    settings = Settings.of(
        backend="tensorrt", fallback="onnxruntime", compare="pytorch", shadow=1, imgsz=IMGSZ, max_pending=MAX_PENDING
    )

    def source(backend: str) -> Unavailable | BuildProcess:
        request = BuildRequest(str(DEMO_WEIGHTS), IMGSZ, settings.model.batch, "auto", backend, engines)
        return Unavailable() if backend == "tensorrt" else BuildProcess(request)

    for backend in ("onnxruntime", "pytorch"):
        build(backend, imgsz=IMGSZ, batch=settings.model.batch)
    started = threading.Event()
    with pytest.MonkeyPatch.context() as patch:
        see_a_gpu(patch)
        live = Live(Service(settings, source, on_ready=lambda _: started.set(), on_failure=started.set))
        try:
            assert started.wait(PATIENCE_S)
            assert live.service.failure is None
            yield live
        finally:
            live.stop()


def send_many_kinds_of_requests(live: Live, sample: bytes) -> None:
    """Send images to one engine, the other and both, some concurrently, and requests that fail."""

    def post(content: bytes = sample, **more: Any) -> int:
        return live.client.post("/v1/detect", content=content, **more).status_code

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda _: post(), range(6))) == [200] * 6
    assert [post(params={"engine": "pytorch"}), post(params={"compare": "1"}), post()] == [200] * 3
    assert post(b"no image") == 422
    eventually(lambda: post(headers={"X-Deadline-Ms": "0.001"}) == 504)  # 503 while the server expects to be late

    def burst() -> set[int]:
        """Return the statuses of many more concurrent requests than may be pending."""
        with ThreadPoolExecutor(4 * MAX_PENDING) as pool:
            return set(pool.map(lambda _: post(params={"compare": "1"}), range(4 * MAX_PENDING)))

    eventually(lambda: burst() == {200, 503})
    gone = live.value("rejected_total", reason="client_gone")
    with socket.create_connection(("127.0.0.1", live.port)) as client:
        client.sendall(b"POST /v1/detect HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nhalf")
    eventually(lambda: live.value("rejected_total", reason="client_gone") > gone)


class Prometheus:
    """Debian's Prometheus with the configuration of deploy/, another target and shorter intervals."""

    def __init__(self, target: str, folder: Path) -> None:
        config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
        config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(DEPLOY / "prometheus" / name) for name in config["rule_files"]]
        config["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10)
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
                env=os.environ | {"GOMAXPROCS": "1"},
            )

    def ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text()
        try:
            return self.client.get("/-/ready").is_success
        except httpx.TransportError:
            return False

    def get(self, path: str, **params: Any) -> Any:
        response = self.client.get(f"/api/v1/{path}", params=params).json()
        assert response["status"] == "success", (params, response)
        return response["data"]

    def query(
        self, target: dict[str, Any], engine: str = ".*", model: str = ".*"
    ) -> list[tuple[dict[str, str], float]]:
        """Return the labels and last value of each series that Grafana would show, without NaN."""
        expr = target["expr"].replace("$model", model).replace("$engine", engine).replace("$__rate_interval", "1m")
        if target.get("instant"):
            found = [(series["metric"], [series["value"]]) for series in self.get("query", query=expr)["result"]]
        else:
            now = time.time()
            window = self.get("query_range", query=expr, start=now - 60, end=now, step=1)["result"]
            found = [(series["metric"], series["values"]) for series in window]
        return [(labels, float(values[-1][1])) for labels, values in found if math.isfinite(float(values[-1][1]))]

    def panel(self, title: str) -> list[tuple[dict[str, str], float]]:
        (panel,) = [panel for panel in PANELS if panel["title"] == title]
        return [series for target in panel["targets"] for series in self.query(target)]

    def stop(self) -> None:
        self.client.close()
        self._process.terminate()
        self._process.wait(20)


@pytest.fixture(scope="module")
def prometheus(live, sample, tmp_path_factory) -> Iterator[Prometheus]:
    """Prometheus after the server has handled requests: every panel has data."""
    prometheus = Prometheus(f"127.0.0.1:{live.port}", tmp_path_factory.mktemp("prometheus"))
    try:
        eventually(prometheus.ready)
        eventually(lambda: prometheus.get("query", query="up")["result"])
        empty = []

        def seen() -> bool:
            send_many_kinds_of_requests(live, sample)
            empty[:] = [title for title, target in TARGETS if not prometheus.query(target)]
            return not empty

        eventually(seen, lambda: f"panels without data: {empty}")
        yield prometheus
    finally:
        prometheus.stop()


@prometheus_too
@pytest.mark.parametrize(("model", "engine"), [(".*", ".*"), ("yolov8n-demo", "(onnxruntime|pytorch)")])
def test_every_panel_has_data_for_all_and_for_chosen_engines(prometheus, model, engine):
    assert [title for title, target in TARGETS if not prometheus.query(target, engine, model)] == []


@prometheus_too
@pytest.mark.parametrize("engine", ["onnxruntime", "pytorch"])
def test_the_repeated_panel_has_every_stage_of_each_engine(prometheus, engine):
    (repeated,) = [panel for panel in PANELS if "repeat" in panel]
    stages = {labels["stage"]: value for labels, value in prometheus.query(repeated["targets"][0], engine)}
    assert stages.keys() == set(STAGES)
    assert all(value > 0 for value in stages.values())


@prometheus_too
def test_variables_offer_the_running_model_and_engines(prometheus):
    offered = {}
    for variable in DASHBOARD["templating"]["list"]:
        series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()
        query = {"match[]": series.replace("$model", ".*")}
        offered[variable["name"]] = prometheus.get(f"label/{label}/values", **query)
    assert offered == {"model": ["yolov8n-demo"], "engine": ["onnxruntime", "pytorch"]}


@prometheus_too
def test_panels_show_the_requests_that_were_sent(prometheus):
    assert prometheus.panel("Ready") == [({}, 1)]
    assert prometheus.panel("Fallback") == [({"reason": "backend_unavailable"}, 1)]

    def codes() -> set[str]:
        return {labels["code"] for labels, _ in prometheus.panel("Requests by status")}

    def reasons() -> set[str]:
        return {labels["reason"] for labels, value in prometheus.panel("Refused or given up") if value}

    eventually(lambda: codes() == {"200", "422", "499", "503", "504"}, codes)  # a rate takes two scrapes
    eventually(lambda: reasons() == {"overloaded", "deadline_exceeded", "client_gone"}, reasons)
    assert 0 < prometheus.panel("Refused")[0][1] < 1
    assert prometheus.panel("Errors") == [({}, 0)]
    assert {labels["found_by"] for labels, _ in prometheus.panel("Shadow: boxes by engine")} == {
        *("both", "first", "second")
    }
    latency = [value for labels, value in prometheus.panel("Latency of requests") if labels["engine"] == "pytorch"]
    assert latency == sorted(latency)


@prometheus_too
def test_every_rule_is_evaluated_without_an_error_and_the_fallback_fires(prometheus):
    (group,) = prometheus.get("rules")["groups"]
    assert [rule["name"] for rule in group["rules"]] == [rule["alert"] for rule in RULES]
    assert {(rule["health"], rule.get("lastError", "")) for rule in group["rules"]} == {("ok", "")}
    firing = [alert for alert in prometheus.get("alerts")["alerts"] if alert["state"] == "firing"]
    assert [alert["labels"]["alertname"] for alert in firing] == ["YolopardFallback"]
    assert "(backend_unavailable)" in firing[0]["annotations"]["summary"]
