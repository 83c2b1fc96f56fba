"""The command line: yolopard build | serve | bench | selftest."""

import argparse
import json
import logging
import os
import shlex
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import uvloop

from app import __version__
from app.api.app import create_app
from app.errors import BenchFailed, SettingsError, SetupError
from app.http.server import make_server
from app.model import format_shapes
from app.progress import Progress
from app.providers import build_request, builder, engine_provider
from app.serving.service import Service
from app.settings import DEMO, FIELDS, Settings
from app.store import store
from app.store.accuracy import MIN_BOXES, AccuracyReport
from app.store.manifest import StoredEngine
from app.system import host, log

SWITCH_S = 0.0005  # for which a thread may hold the interpreter lock; decode threads need it often


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status: 0, 1 after an error (with one line on standard error), 2 for a wrong command line."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that child processes are ended too
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # `nohup` ignores it
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(128 + signal.SIGHUP))
    given = {name: value for name, value in vars(options).items() if name in FIELDS}
    try:
        settings = Settings.read({name: value for name, value in given.items() if value is not None})
        if options.command == "bench":
            return bench_(settings, options)
        return {"build": build, "serve": serve, "selftest": selftest_}[options.command](settings)
    except SetupError as error:
        return _fail(error)
    except KeyboardInterrupt:
        return 130


def build(settings: Settings) -> int:
    """Find or build the engine, and print its folder and its accuracy."""
    log.configure(settings.server.log_level, settings.server.log_format)
    stored = builder(settings, settings.model.backend).run(_print_progress)
    print(f"{stored.folder}\n{_table(stored)}")
    return 0


def serve(settings: Settings) -> NoReturn:
    """Serve until SIGTERM or SIGINT, then answer the admitted requests and exit."""
    log.configure(settings.server.log_level, settings.server.log_format)
    settings.server.require_keys()
    host.keep_freed_memory()
    host.give_back_when_idle()
    sys.setswitchinterval(SWITCH_S)
    server = make_server(settings.server)
    service = Service(
        settings,
        lambda backend: engine_provider(settings, backend),
        on_ready=lambda loaded: _print_ready(settings, loaded.stored),
        on_failure=lambda: setattr(server, "should_exit", True),
    )
    server.config.app = create_app(service)
    server.on_stop = service.inflight.close
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again after the last response
    listener = _listen(settings.server.host, settings.server.port, "PORT")
    if settings.server.grpc_port:
        _require_grpc(settings.server.host, settings.server.grpc_port)
    status = 0
    try:
        uvloop.new_event_loop().run_until_complete(server.serve([listener]))
    except KeyboardInterrupt:  # uvicorn raises Ctrl-C again after the last response
        status = 130
    _end(_fail(service.failure) if service.failure else status)


def selftest_(settings: Settings) -> int:
    """Test every engine that can be built here. Print a table, and write all results to a file."""
    from app.bench import selftest

    log.configure(settings.server.log_level, settings.server.log_format)
    request = build_request(settings, settings.model.backend)
    rows = selftest.run(request, lambda text: print(f"testing {text}", flush=True))
    path = settings.server.engines_dir / "selftest.json"
    with store.explained(settings.server.engines_dir):
        settings.server.engines_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(selftest.report(request, rows), indent=2) + "\n")
    print(f"\n{selftest.table(rows)}\n\nAll results: {path}")
    return int(any(row.failed for row in rows))


def bench_(settings: Settings, options: argparse.Namespace) -> int:
    """Measure a server, or compare the engines."""
    try:
        from app.bench import command as bench
    except ImportError as error:
        raise BenchFailed(f"the bench needs {error.name}: pip install 'yolopard[bench]'") from error
    plan = bench.Plan(options.clients, options.seconds, options.rounds)
    if options.engines:
        bench.compare(settings, engine_provider, images=options.images, plan=plan, out=options.out)
        return 0
    bench.run(settings, engine_provider, url=options.url, images=options.images, plan=plan, out=options.out)
    return 0


def _listen(host: str, port: int, setting: str) -> socket.socket:
    """Return a listening socket. Called before the build, to report a port in use at once. Raises SettingsError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        advice = f"choose another {setting} or HOST"
        raise SettingsError(f"{host}:{port} cannot be listened on ({reason}): {advice}") from error


def _require_grpc(host: str, port: int) -> None:
    """Check that gRPC is installed and its port is free; gRPC opens the port itself. Raises SettingsError."""
    try:
        import tritonclient.grpc  # noqa: F401
    except ImportError as error:
        raise SettingsError(f"GRPC_PORT={port} needs {error.name}: pip install 'yolopard[grpc]'") from error
    _listen(host, port, "GRPC_PORT").close()


def _print_progress(progress: Progress) -> None:
    print(progress, flush=True)


def _table(stored: StoredEngine) -> str:
    """Return the gate result, one line per value."""
    gate, precision = stored.manifest.gate, stored.manifest.fingerprint.precision
    figures = gate.figures
    if figures is None:
        return f"not evaluated: {gate.on}"
    lines = {
        "accuracy gate": f"{precision} against {gate.reference} on {gate.on}",
        "boxes found": _found(figures),
        "boxes differ": f"{figures.box_px_mean:.4f} px on average, {figures.box_px:.4f} at most",
        "scores differ": f"{figures.score_mean:.6f} on average, {figures.score:.6f} at most",
        "rows before NMS": f"{figures.rows_agreement:.2%} of {figures.rows} alike",
    }
    if figures.mask_iou is not None:
        lines["masks alike"] = f"IoU {figures.mask_iou:.4f} on average"
    if figures.keypoint_px is not None:
        lines["keypoints differ"] = f"{figures.keypoint_px:.4f} px at most"
    if figures.map50_95 is not None:
        lines["mAP50"] = f"{figures.map50:.4f}, reference {figures.reference_map50:.4f}"
        lines["mAP50-95"] = f"{figures.map50_95:.4f}, reference {figures.reference_map50_95:.4f}"
    if figures.top1 is not None:
        lines["top-1"] = f"{figures.top1:.4f}, reference {figures.reference_top1:.4f}"
        lines["top-5"] = f"{figures.top5:.4f}, reference {figures.reference_top5:.4f}"
    lines |= {name: made["method"] for name, made in stored.manifest.built.items() if name.startswith("int8")}
    if warning := gate.nothing_found():
        lines["warning"] = warning
    return "\n".join(f"  {name:16} {text}" for name, text in lines.items())


def _found(figures: AccuracyReport) -> str:
    low, high = figures.interval()
    interval = f" (with 95 % confidence {low:.2f} to {high:.2f})" if 0 < figures.boxes < MIN_BOXES else ""
    return f"{figures.agreement:.2%} of {figures.boxes}{interval}, {figures.false_positives:.2%} false positives"


def _print_ready(settings: Settings, stored: StoredEngine) -> None:
    if settings.server.log_format == "json":
        return  # the log has this information
    fingerprint, model = stored.manifest.fingerprint, stored.manifest.model
    size = format_shapes(*model.shapes) if model.shapes else model.imgsz
    host = "127.0.0.1" if settings.server.host in ("0.0.0.0", "::") else settings.server.host  # noqa: S104
    url = f"http://{host}:{settings.server.port}"
    sample = next(iter(sorted((DEMO / "samples").glob("*.jpg"))), Path("image.jpg"))
    print(
        f"\n{model.name} at {size} px on {fingerprint.backend} {fingerprint.precision}, batch up to "
        f"{fingerprint.batch}\n{_table(stored)}\n"
        f"Ready at {url} (page), {url}/docs, {url}/metrics. Try:\n\n"
        f"  curl --data-binary @{shlex.quote(str(sample))} {url}/v1/predict\n",
        flush=True,
    )


def _end(status: int) -> NoReturn:
    """Exit at once. All requests are answered; the interpreter would wait for a stuck decoder, and for half-open
    connections of gRPC.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _fail(error: SetupError) -> int:
    print(f"yolopard: {error}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("yolopard", description="Serve YOLOv8 at the speed of the engine.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("build", "build the engine and exit"),
        ("serve", "build the engine if it is missing, and serve it"),
        ("bench", "measure a server, or with --compare every engine that can be built here"),
        ("selftest", "test every engine that can be built here"),
    ):
        command = commands.add_parser(name, help=text, allow_abbrev=False)
        if name == "bench":
            _add_bench_options(command)
        for field, info in FIELDS.items():
            flags = dict.fromkeys((f"--{field.replace('_', '-')}", f"--{field}"))
            default = ",".join(info.default) if isinstance(info.default, tuple) else info.default
            if name != "bench" or field != "compare":  # bench has its own --compare
                command.add_argument(*flags, dest=field, help=f"{info.description} (default: {default})")
    return parser


def _add_bench_options(command: argparse.ArgumentParser) -> None:
    own = command.add_argument_group("measurement")
    own.add_argument("--url", help="a running server (default: start one with the given settings)")
    own.add_argument(
        "--images", type=Path, default=DEMO / "samples", help="a folder, or one file (default: %(default)s)"
    )
    own.add_argument(
        "--clients", type=_numbers, default=(1, 2, 4, 8, 16, 32), help="numbers of clients (default: 1,2,4,8,16,32)"
    )
    own.add_argument("--seconds", type=float, default=3.0, help="duration of each run (default: %(default)s)")
    own.add_argument("--rounds", type=int, default=5, help="each measures everything once (default: %(default)s)")
    own.add_argument("--out", type=Path, default=Path("bench"), help="folder for the reports (default: %(default)s)")
    own.add_argument(
        "--compare", dest="engines", action="store_true", help="measure every engine that can be built here"
    )


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(int(each) for each in text.split(","))
    if min(numbers) < 1:
        raise ValueError(text)
    return numbers


if __name__ == "__main__":
    sys.exit(main())
