"""The cost of a request to the server, in seconds of CPU and in MB, from /proc."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

MAX_CPU_S, MAX_MB = 1.0, 200.0  # for a request of at most 1 MB
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Return the CPU time that all threads of the process have used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def peak_mb(pid: int) -> float:
    return _memory_mb(pid, "VmHWM")


def resident_mb(pid: int) -> float:
    return _memory_mb(pid, "VmRSS")


def reset_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _memory_mb(pid: int, name: str) -> float:
    return int(re.search(rf"{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1000


class Meter:
    """Measures the cost of requests. A request above a maximum is sent again, and reported if it is above it again.

    `report` receives the text of the failure.
    """

    def __init__(self, pid: int, report: Callable[[str], None]) -> None:
        self._pid, self._report = pid, report
        self._base_mb = 0.0
        self._reset()

    def _reset(self) -> None:
        reset_peak(self._pid)
        self._base_mb = resident_mb(self._pid)

    def _cost(self, send: Callable[[], None]) -> tuple[float, float]:
        before = cpu_s(self._pid)
        send()
        return cpu_s(self._pid) - before, peak_mb(self._pid) - self._base_mb

    def watch(self, send: Callable[[Any], None], made: Any) -> None:
        seconds, megabytes = self._cost(lambda: send(made))
        if seconds <= MAX_CPU_S and megabytes <= MAX_MB:
            return
        self._reset()
        seconds, megabytes = self._cost(lambda: send(made))
        if seconds > MAX_CPU_S or megabytes > MAX_MB:
            self._report(f"cost: {seconds:.1f} s of CPU, {megabytes:.0f} MB: {made!r}")
        self._reset()
