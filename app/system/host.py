"""The CPUs, memory and files that this process may use, and malloc settings."""

import contextlib
import ctypes
import os
import platform
import resource
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
IDLE_S = 10.0  # interval of the checks of this process's CPU use
TRIM_CHECK_S = 1.0  # interval of the checks of resident memory
MAX_KEPT_BYTES = 256 << 20  # freed memory that malloc may keep under any load
MAX_QUIET_KEPT_BYTES = 64 << 20  # the same under little load
MAX_IDLE_RATIO = 0.02  # CPU use below which the process is idle, as a share of one core
MAX_QUIET_RATIO = 0.25  # CPU use below which its load is little, as a share of one core


_MALLINFO = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _MallInfo(ctypes.Structure):
    """struct mallinfo2 of malloc.h; `fordblks` is the number of free bytes that malloc keeps."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _MALLINFO)


def cpus() -> int:
    """Return the number of cores this process may use: its affinity or, if smaller, its cgroup v2 quota; at least 1.

    OpenVINO and ONNX Runtime ignore quotas: https://github.com/openvinotoolkit/openvino/issues/37838
    """
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def memory_bytes() -> int:
    """Return the memory this process may use, bytes: the machine's or, if smaller, the cgroup's limit (containers)."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # cgroup v2, v1
        with contextlib.suppress(OSError, ValueError):  # missing, or "max"
            memory = min(memory, int(Path(path).read_text()))
    return memory


def held_bytes(pid: int) -> int:
    """Return the memory of a process that the kernel cannot drop (no file pages), bytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    kinds = ("RssAnon:", "RssShmem:", "VmSwap:")
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(kinds))


def allow_open_files(wanted: int) -> int:
    """Raise the limit of open files to `wanted` if permitted. Return the number that may be open; `wanted` if there
    is no limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else soft


def cpu_name() -> str:
    """Return the CPU's model name from the kernel, such as "AMD EPYC"."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def facts() -> dict[str, object]:
    """Return the facts about this machine that belong beside measurements."""
    return {
        "cpu": cpu_name(),
        "cpus": cpus(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def architecture() -> str:
    """Return the architecture that portable CPU engines depend on, such as "cpu x86_64"."""
    return f"cpu {platform.machine()}"


def keep_freed_memory() -> None:
    """Make malloc keep freed memory for the next image instead of returning it to the system.

    Images take megabytes each. By default glibc maps new pages for every one, and touching them cost as much as
    decoding (loadtest/RESULTS.md). Blocks over 16 MiB are still returned. All threads share one arena: with one arena
    per thread, no thread could reuse what another had freed, and memory grew for hours. Does nothing without mallopt.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 16 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 512 << 20)
        libc.mallopt(_M_ARENA_MAX, 1)


def give_back_when_idle() -> None:
    """Start a thread that returns malloc's free memory to the system when the load is little or too much is kept.

    malloc keeps the peak of all memory ever used at once, which grows whenever more large requests coincide.
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
            time.sleep(min(TRIM_CHECK_S, IDLE_S))
            if (resident := _resident_bytes()) - in_use > MAX_KEPT_BYTES:
                in_use = resident - _trim(libc, MAX_KEPT_BYTES)
        before, used = used, time.process_time()
        was_busy, busy = busy, used - before > MAX_IDLE_RATIO * IDLE_S
        if was_busy and not busy:
            libc.malloc_trim(0)
        elif used - before < MAX_QUIET_RATIO * IDLE_S:
            _trim(libc, MAX_QUIET_KEPT_BYTES)


def _trim(libc: Any, max_bytes: int) -> int:
    """Return malloc's free memory to the system if it is more than `max_bytes`. Returns its size before, bytes.

    mallinfo2 walks all free blocks with malloc locked: once a second it took 2 % of a busy event loop.
    """
    kept: int = libc.mallinfo2().fordblks
    if kept > max_bytes:
        libc.malloc_trim(0)
    return kept


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
