"""Work in a process of its own, which does not outlive the one that asked for it."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")

SPAWN = multiprocessing.get_context("spawn")


class ChildDied(Exception):
    """It ended without an answer."""


def call(work: Callable[..., T], *arguments: Any) -> T:
    """What `work` returns there; pickle must be able to name it. Raises ChildDied if it crashed, also if it raised."""
    receiver, sender = SPAWN.Pipe(duplex=False)
    child = SPAWN.Process(target=_answer, args=(sender, work, arguments))
    child.start()
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
