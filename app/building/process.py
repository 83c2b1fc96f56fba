"""Runs the builder in its own process, and forwards its reports."""

import contextlib
import os
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from app.building import builder
from app.errors import BuildFailed, SetupError
from app.progress import Progress, Report
from app.serving.spec import BuildRequest
from app.store.manifest import StoredEngine
from app.system import host, processes

POLL_S = 0.1  # between two checks of the builder's memory
MAX_MEMORY_SHARE = 0.9  # of the machine or container; above it the kernel may kill any process, also the server


def _nothing() -> None:
    """Keep Python's default logging."""


class BuildProcess:
    """Finds or builds one engine. `run` blocks; `cancel`, from any thread, ends it.

    `configure_log` is also called in the new process, so pickle must be able to import it. A build that uses more than
    `memory_bytes` is killed (None: MAX_MEMORY_SHARE of all memory). The memory is polled, because the kernel's limits
    count reserved addresses (RLIMIT_AS; CUDA reserves more than all memory) or need a cgroup, which few may create.
    """

    def __init__(
        self, request: BuildRequest, configure_log: Callable[[], None] = _nothing, memory_bytes: int | None = None
    ) -> None:
        self._request = request
        self._configure_log = configure_log
        self._memory_bytes = memory_bytes or int(MAX_MEMORY_SHARE * host.memory_bytes())
        self._cancelled = threading.Event()
        self._process: BaseProcess | None = None

    def run(self, report: Report) -> StoredEngine:
        """Return the engine, from the store if it is there. Raises a SetupError."""
        report(Progress.at("weights", self._request.name))
        found = builder.find(self._request)
        return found if found else self._build(report)

    def cancel(self) -> None:
        """End the build. Later builds ignore its incomplete files."""
        self._cancelled.set()
        if self._process is not None:
            self._process.kill()

    def _build(self, report: Report) -> StoredEngine:
        receiver, sender = processes.SPAWN.Pipe(duplex=False)
        self._process = processes.SPAWN.Process(
            target=_child, args=(self._request, sender, self._configure_log), name="builder", daemon=True
        )
        processes.start(self._process)
        sender.close()
        if self._cancelled.is_set():
            self._process.kill()
        try:
            while True:
                while not receiver.poll(POLL_S):
                    self._require_memory()
                message = receiver.recv()
                if isinstance(message, StoredEngine):
                    return message
                if isinstance(message, SetupError):
                    raise message
                report(message)
        except EOFError:
            self._process.join()
            raise self._failure(self._process.exitcode) from None
        except BaseException:  # Ctrl-C too: do not wait for the child, which may work for hours
            self._process.kill()
            raise
        finally:
            self._process.join()

    def _require_memory(self) -> None:
        assert self._process is not None
        assert self._process.pid is not None
        if (held := host.held_bytes(self._process.pid)) > self._memory_bytes:
            raise BuildFailed(
                f"the build used {held:,} bytes of memory and was ended, because BUILD_MEMORY_BYTES allows "
                f"{self._memory_bytes:,}: raise it, or try a smaller BATCH or IMGSZ"
            )

    def _failure(self, exitcode: int | None) -> BuildFailed:
        if self._cancelled.is_set():
            return BuildFailed("the build was cancelled")
        cause = f"signal {-exitcode}" if exitcode and exitcode < 0 else f"exit code {exitcode}"
        hint = ": most often the machine is out of memory; try a smaller BATCH or IMGSZ" if exitcode == -9 else ""
        return BuildFailed(f"the builder process ended with {cause}{hint}")


def _child(request: BuildRequest, sender: Connection, configure_log: Callable[[], None]) -> None:
    os.umask(os.umask(0o077) | 0o022)  # libraries write files that are loaded as code later
    processes.exit_with_parent()  # otherwise it would run for minutes until its next report, and keep its lock
    configure_log()
    with contextlib.suppress(BrokenPipeError):  # the parent was killed
        _build_and_report(request, sender)


def _build_and_report(request: BuildRequest, sender: Connection) -> None:
    try:
        sender.send(builder.build(request, sender.send))
    except SetupError as error:
        sender.send(error)
    except MemoryError:
        sender.send(BuildFailed("the build ran out of memory: try a smaller BATCH or IMGSZ"))
    except Exception as error:  # a bug: the traceback goes to the terminal, one line to the user
        sender.send(BuildFailed(f"the build failed: {type(error).__name__}: {error}"))
        raise
