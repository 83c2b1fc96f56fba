"""Runs work in a child process that ends with its parent."""

import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

T = TypeVar("T")

SPAWN = multiprocessing.get_context("spawn")

_starting = threading.Lock()


class ChildDied(Exception):
    """The child process ended without a result."""


def call(work: Callable[..., T], *arguments: Any) -> T:
    """Return `work(*arguments)`, run in a child process. Both must be picklable.

    Raises ChildDied if the child crashed or `work` raised.
    """
    receiver, sender = SPAWN.Pipe(duplex=False)
    child = SPAWN.Process(target=_answer, args=(sender, work, arguments))
    start(child)
    sender.close()
    try:
        answer: T = receiver.recv()
    except EOFError:
        raise ChildDied from None
    except BaseException:  # Ctrl-C or SIGTERM: do not wait for the child
        child.kill()
        raise
    else:
        return answer
    finally:
        child.join()


def start(child: BaseProcess) -> None:
    """Start `child` without the program's main module. Its target must not be defined in that module.

    multiprocessing would run the main module in the child too, and a script that uses Yolopard without
    `if __name__ == "__main__"` would start itself again.

    https://docs.python.org/3/library/multiprocessing.html#the-spawn-and-forkserver-start-methods
    """
    with _starting:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            child.start()
        finally:
            sys.modules["__main__"] = main


def exit_with_parent() -> None:
    """In a child: exit as soon as the parent ends for any reason, and ignore Ctrl-C, which the parent handles."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_when_parent_ends, daemon=True).start()


def _answer(sender: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    exit_with_parent()
    sender.send(work(*arguments))


def _exit_when_parent_ends() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
