"""Calls in a child process: their results, their failures, and that the child ends with its parent."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.system import processes
from app.system.processes import ChildDied

TESTS = Path(__file__).parent


def doubled(number: int) -> int:
    return 2 * number


def crash() -> None:
    os._exit(9)


def fail() -> None:
    raise ValueError("broken")


def wait() -> None:
    """Print `begun`, and never return."""
    print("begun", flush=True)
    signal.pause()


def test_call_returns_the_result_of_the_child():
    assert processes.call(doubled, 21) == 42


def test_a_child_that_crashes_raises_child_died():
    with pytest.raises(ChildDied):
        processes.call(crash)


def test_a_child_that_raises_prints_its_traceback(capfd):
    with pytest.raises(ChildDied):
        processes.call(fail)
    assert "ValueError: broken" in capfd.readouterr().err


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_a_child_ends_with_its_parent_after_sigint_and_sigkill(sent):
    call = "from app.system import processes; import test_processes; processes.call(test_processes.wait)"
    with subprocess.Popen(
        [sys.executable, "-c", call], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=TESTS.parents[1],
        env=os.environ | {"PYTHONPATH": f"{TESTS.parents[1]}:{TESTS}"}, text=True,
    ) as parent:  # fmt: skip
        assert parent.stdout.readline() == "begun\n"
        parent.send_signal(sent)
        parent.communicate(timeout=20)  # its output ends when the child, which shares it, has ended
        assert parent.returncode != 0
