"""The host as this process may use it."""

import contextlib
import ctypes
import os
import platform
import resource
import threading
import time
from pathlib import Path
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
IDLE_S = 10.0  # between two looks whether there is something to do
LOOK_S, MAX_KEPT_BYTES = (
    1.0,
    256 << 20,
)  # between two looks at what malloc keeps, and bytes of it that go back under any load
MAX_IDLE_RATIO = 0.02  # of a core, under which there is not
MAX_QUIET_RATIO, MAX_QUIET_KEPT_BYTES = (
    0.25,
    64 << 20,
)  # of a core, under which there is little; bytes that malloc keeps and that are many


_MALLINFO = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _MallInfo(ctypes.Structure):
    """malloc.h; `fordblks` are the bytes that are free and kept."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _MALLINFO)


def cpus() -> int:
    """Cores this process may use: its affinity, less where a cgroup quota (containers) gives fewer; at least 1.

    OpenVINO and ONNX Runtime ignore quotas by themselves: https://github.com/openvinotoolkit/openvino/issues/37838
    """
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def memory_bytes() -> int:
    """Memory this process may use: the machine's, less where a cgroup (containers) gives fewer; bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # cgroup v2, v1
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            memory = min(memory, int(Path(path).read_text()))
    return memory


def held_bytes(pid: int) -> int:
    """Memory that a process holds and the kernel cannot drop: all but pages of files. Bytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    kinds = ("RssAnon:", "RssShmem:", "VmSwap:")
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(kinds))


def allow_open_files(wanted: int) -> int:
    """Files and connections this process may have open, raised to `wanted` where the system permits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else soft


def cpu_name() -> str:
    """As the kernel names it, such as "AMD EPYC"."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def facts() -> dict[str, object]:
    """What to know of a machine whose figures one reads."""
    return {
        "cpu": cpu_name(),
        "cpus": cpus(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def architecture() -> str:
    """What portable CPU engines depend on, such as "cpu x86_64"."""
    return f"cpu {platform.machine()}"


def keep_freed_memory() -> None:
    """Make malloc keep what is freed, for the next image, instead of giving it back to the system page by page.

    Images are megabytes each: as glibc comes, every one is mapped anew, and touching new pages cost as much as decoding
    (loadtest/RESULTS.md). Blocks over 16 MiB still go back. All threads share one arena: with one each, what one had
    freed was no use to the others, and memory grew for hours. Other C libraries have no such knobs.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 16 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 512 << 20)
        libc.mallopt(_M_ARENA_MAX, 1)


def give_back_when_idle() -> None:
    """Give the system what malloc keeps, once this process has little to do, or keeps more than it will want again.

    That is as much as was ever wanted at once, and rises as long as larger requests happen to meet.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim") and hasattr(libc, "mallinfo2"):  # glibc from 2.33 on
        libc.mallinfo2.restype = _MallInfo
        threading.Thread(target=_give_back, args=(libc,), name="give-back", daemon=True).start()


def _give_back(libc: Any) -> None:
    used, busy = time.process_time(), True
    while True:
        in_use, until = 0, time.monotonic() + IDLE_S
        while time.monotonic() < until:
            time.sleep(min(LOOK_S, IDLE_S))
            if (resident := _resident_bytes()) - in_use > MAX_KEPT_BYTES:
                in_use = resident - _trim(libc, MAX_KEPT_BYTES)
        before, used = used, time.process_time()
        was_busy, busy = busy, used - before > MAX_IDLE_RATIO * IDLE_S
        if was_busy and not busy:
            libc.malloc_trim(0)
        elif used - before < MAX_QUIET_RATIO * IDLE_S:
            _trim(libc, MAX_QUIET_KEPT_BYTES)


def _trim(libc: Any, most: int) -> int:
    """Give back what malloc keeps if it is more than `most` bytes. Returns how much it kept.

    mallinfo2 goes through all free blocks with malloc locked: once a second it took 2 % of a busy event loop.
    """
    kept: int = libc.mallinfo2().fordblks
    if kept > most:
        libc.malloc_trim(0)
    return kept


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
