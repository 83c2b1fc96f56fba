"""yolopard build | serve"""

import argparse
import asyncio
import shlex
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn

from app import __version__, log
from app.api.app import create_app
from app.api.service import Service
from app.build_process import BuildProcess
from app.builder import SAMPLES, Order
from app.errors import SettingsError, SetupError
from app.progress import Progress
from app.settings import Settings
from app.store import Built

LINGER_S = 0.25


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when all went well, 1 with one line on standard error when not, 2 for a wrong command line."""
    options = vars(_parser().parse_args(arguments))
    command = options.pop("command")
    try:
        settings = Settings.read({name: value for name, value in options.items() if value is not None})
        return {"build": build, "serve": serve}[command](settings)
    except SetupError as error:
        return _fail(error)
    except KeyboardInterrupt:
        return 130


def build(settings: Settings) -> int:
    """Build the engine, or find it built, and say where it is."""
    log.configure(settings.log_level, settings.log_format)
    built = BuildProcess(_order(settings)).run(_print_progress)
    print(f"{built.folder}: {_checked(built)}")
    return 0


def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; what was admitted by then is still answered."""
    log.configure(settings.log_level, settings.log_format)
    drain_s = round(settings.deadline_ms / 1000) + 1
    config = uvicorn.Config(
        "unset",
        loop="uvloop",
        http="httptools",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=drain_s,
    )
    server = LingeringServer(config)
    service = Service(
        settings,
        BuildProcess(_order(settings)),
        on_ready=lambda built: _print_ready(settings, built),
        on_failure=lambda: setattr(server, "should_exit", True),
    )
    config.app = create_app(service)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again when all is answered
    server.run(sockets=[_listen(settings)])
    return _fail(service.failure) if service.failure else 0


class LingeringServer(uvicorn.Server):
    """Takes in what has reached the socket before it closes the door; uvicorn alone would reset those connections."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.sleep(LINGER_S)
        await super().shutdown(sockets)


def _listen(settings: Settings) -> socket.socket:
    """Before anything is built, so that a port in use is told at once."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise SettingsError(
            f"{settings.host}:{settings.port} cannot be listened on ({error.strerror}): choose another PORT or HOST"
        ) from error


def _order(settings: Settings) -> Order:
    return Order(
        settings.weights, settings.imgsz, settings.batch, settings.precision, settings.backend, settings.engines_dir
    )


def _print_progress(progress: Progress) -> None:
    print(f"[{progress.step}/{progress.of}] {progress.model}: {progress.phase}", flush=True)


def _checked(built: Built) -> str:
    parity = built.manifest.parity
    return (
        f"checked on {parity['images']} images, {parity['matched']} of {parity['rows']} rows as the reference's, "
        f"greatest difference {parity['box_px']:.4f} px and {parity['score']:.6f} in score"
    )


def _print_ready(settings: Settings, built: Built) -> None:
    if settings.log_format == "json":
        return  # the log says it
    fingerprint, model = built.manifest.fingerprint, built.manifest.model
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104
    url = f"http://{host}:{settings.port}"
    sample = next(iter(sorted(SAMPLES.glob("*.jpg"))), Path("image.jpg"))
    print(
        f"\n{model.name} at {model.imgsz} px on {fingerprint.backend} {fingerprint.precision}, batch up to "
        f"{fingerprint.batch}: {_checked(built)}\n"
        f"Ready at {url} (page), {url}/docs, {url}/metrics. Try:\n\n"
        f"  curl --data-binary @{shlex.quote(str(sample))} {url}/v1/detect\n",
        flush=True,
    )


def _fail(error: SetupError) -> int:
    print(f"yolopard: {error}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("yolopard", description="Serve YOLOv8 at the speed of the engine.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("build", "make the engine and exit"), ("serve", "make the engine if need be, and serve it")):
        command = commands.add_parser(name, help=text, allow_abbrev=False)
        for field, info in Settings.model_fields.items():
            flags = dict.fromkeys((f"--{field.replace('_', '-')}", f"--{field}"))
            command.add_argument(*flags, dest=field, help=f"{info.description} (default: {info.default})")
    return parser


if __name__ == "__main__":
    sys.exit(main())
