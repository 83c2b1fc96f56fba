"""The host as this process may use it."""

import os
import platform
from pathlib import Path


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
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu_name(),
        "cpus": cpus(),
        "memory_bytes": memory,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def architecture() -> str:
    """What portable CPU engines depend on, such as "cpu x86_64"."""
    return f"cpu {platform.machine()}"
