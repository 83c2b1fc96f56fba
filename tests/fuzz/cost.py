"""What a request costs the server: seconds of CPU and megabytes, as Linux tells them."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

CPU_S, MB = 1.0, 200.0  # most for a request of at most 1 MB
_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Of all threads of the process, so far."""
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
    """Around what is sent. What costs too much is sent once more, alone, before it is told as a failure."""

    def __init__(self, pid: int, tell: Callable[[str], None]) -> None:
        self._pid, self._tell = pid, tell
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
        if seconds <= CPU_S and megabytes <= MB:
            return
        self._reset()
        seconds, megabytes = self._cost(lambda: send(made))
        if seconds > CPU_S or megabytes > MB:
            self._tell(f"cost: {seconds:.1f} s of CPU, {megabytes:.0f} MB: {made!r}")
        self._reset()
