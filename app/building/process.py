"""The builder in a process of its own, and what it reports."""

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

POLL_S = 0.1  # between two looks at the builder's memory
MEMORY_SHARE = 0.9  # of the machine's or container's: past that the kernel ends what it likes, the server too


def _nothing() -> None:
    """The log as Python has it."""


class BuildProcess:
    """Finds or builds one engine. `run` blocks; `cancel`, from any thread, ends it.

    `configure_log` is called in the new process too, and so has to be one that pickle can name. A build that holds more
    than `memory_bytes` is ended; MEMORY_SHARE of what there is if None. It is watched, because a limit of the kernel's
    counts reserved addresses (RLIMIT_AS: CUDA reserves more than there is memory) or needs a cgroup that few may make.
    """

    def __init__(
        self, order: BuildRequest, configure_log: Callable[[], None] = _nothing, memory_bytes: int | None = None
    ) -> None:
        self._order = order
        self._configure_log = configure_log
        self._memory_bytes = memory_bytes or int(MEMORY_SHARE * host.memory_bytes())
        self._cancelled = threading.Event()
        self._process: BaseProcess | None = None

    def run(self, report: Report) -> StoredEngine:
        """The engine, from the store if it is there. Raises a SetupError."""
        report(Progress.at("weights", self._order.name))
        found = builder.find(self._order)
        return found if found else self._build(report)

    def cancel(self) -> None:
        """End the build; nothing half-built stays that a later build would trust."""
        self._cancelled.set()
        if self._process is not None:
            self._process.kill()

    def _build(self, report: Report) -> StoredEngine:
        receiver, sender = processes.SPAWN.Pipe(duplex=False)
        self._process = processes.SPAWN.Process(
            target=_child, args=(self._order, sender, self._configure_log), name="builder", daemon=True
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
            raise self._died(self._process.exitcode) from None
        except BaseException:  # Ctrl-C too: the child must not be waited for, it has hours of work
            self._process.kill()
            raise
        finally:
            self._process.join()

    def _require_memory(self) -> None:
        assert self._process is not None
        assert self._process.pid is not None
        if (held := host.held_bytes(self._process.pid)) > self._memory_bytes:
            raise BuildFailed(
                f"the build held {held:,} bytes of memory and was ended, as BUILD_MEMORY_BYTES allows "
                f"{self._memory_bytes:,}: give more, or try a smaller BATCH or IMGSZ"
            )

    def _died(self, exitcode: int | None) -> BuildFailed:
        if self._cancelled.is_set():
            return BuildFailed("the build was cancelled")
        cause = f"signal {-exitcode}" if exitcode and exitcode < 0 else f"exit code {exitcode}"
        hint = ": most often the machine is out of memory; try a smaller BATCH or IMGSZ" if exitcode == -9 else ""
        return BuildFailed(f"the builder process ended with {cause}{hint}")


def _child(order: BuildRequest, sender: Connection, configure_log: Callable[[], None]) -> None:
    os.umask(os.umask(0o077) | 0o022)  # what libraries write is code to be loaded later
    processes.exit_with_parent()  # or it would go on for minutes before it next tells something, and hold its lock
    configure_log()
    with contextlib.suppress(BrokenPipeError):  # the parent was killed: nobody is left to tell
        _build_and_tell(order, sender)


def _build_and_tell(order: BuildRequest, sender: Connection) -> None:
    try:
        sender.send(builder.build(order, sender.send))
    except SetupError as error:
        sender.send(error)
    except MemoryError:
        sender.send(BuildFailed("the build ran out of memory: try a smaller BATCH or IMGSZ"))
    except Exception as error:  # a defect: the traceback goes to the terminal, one line to the user
        sender.send(BuildFailed(f"the build failed: {type(error).__name__}: {error}"))
        raise
