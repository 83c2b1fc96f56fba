"""Work in a process of its own, which does not outlive the one that asked for it."""

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
    """It ended without an answer."""


def call(work: Callable[..., T], *arguments: Any) -> T:
    """What `work` returns there; pickle must be able to name it. Raises ChildDied if it crashed, also if it raised."""
    receiver, sender = SPAWN.Pipe(duplex=False)
    child = SPAWN.Process(target=_answer, args=(sender, work, arguments))
    start(child)
    sender.close()
    try:
        answer: T = receiver.recv()
    except EOFError:
        raise ChildDied from None
    except BaseException:  # Ctrl-C or SIGTERM: it must not be waited for
        child.kill()
        raise
    else:
        return answer
    finally:
        child.join()


def start(child: BaseProcess) -> None:
    """Start it without the program's main module, which multiprocessing would run in the child too: a script that uses
    Yolopard without `if __name__ == "__main__"` would start itself again. What the child runs is not of that module.

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
    """Called in a child: end when the parent does, however that ends; and leave Ctrl-C, which reaches all, to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_the_parent, daemon=True).start()


def _answer(sender: Connection, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    exit_with_parent()
    sender.send(work(*arguments))


def _die_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
