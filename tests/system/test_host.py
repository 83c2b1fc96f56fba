"""CPU cores and memory that this process may use."""

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from app.system import host

ROOT = Path(__file__).parents[2]


@pytest.fixture
def a_host(monkeypatch):
    """Return a function that simulates a host with `cores` cores and only these files."""

    def set_up(cores: int, files: dict[str, str]) -> None:
        def read_text(path: Path) -> str:
            if str(path) not in files:
                raise FileNotFoundError(path)
            return files[str(path)]

        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
        monkeypatch.setattr(Path, "read_text", read_text)

    return set_up


@pytest.mark.parametrize(
    ("cores", "quota", "expected"),
    [
        (8, "max 100000\n", 8),
        (8, "400000 100000\n", 4),
        (8, "350000 100000\n", 3),
        (8, "50000 100000\n", 1),
        (8, "1000 100000\n", 1),
        (2, "400000 100000\n", 2),
        (8, "20000 10000\n", 2),
        (1, "max 100000\n", 1),
    ],
)
def test_cores_are_limited_by_affinity_and_cgroup_quota_and_are_at_least_1(a_host, cores, quota, expected):
    a_host(cores, {"/sys/fs/cgroup/cpu.max": quota})
    assert host.cpus() == expected


@pytest.mark.parametrize("text", ["", "max", "1 2 3"])
def test_an_invalid_cgroup_quota_is_ignored(a_host, text):
    a_host(6, {"/sys/fs/cgroup/cpu.max": text})
    assert host.cpus() == 6


MACHINE = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
V2, V1 = "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, MACHINE),
        ({V2: "max\n"}, MACHINE),
        ({V2: "1000000000\n"}, 1_000_000_000),
        ({V1: "1000000000\n"}, 1_000_000_000),
        ({V1: "9223372036854771712\n"}, MACHINE),  # "no limit" in version 1
        ({V2: ""}, MACHINE),
    ],
)
def test_memory_is_that_of_the_machine_or_the_cgroup_limit(a_host, files, expected):
    a_host(2, files)
    assert host.memory_bytes() == expected


def test_held_bytes_is_the_memory_of_a_process_and_0_after_its_end():
    before = host.held_bytes(os.getpid())
    block = b"x" * 50_000_000
    assert 40_000_000 < host.held_bytes(os.getpid()) - before < 200_000_000
    del block
    child = subprocess.Popen(["true"])
    child.wait()
    assert host.held_bytes(child.pid) == 0


def test_without_cgroups_only_the_affinity_limits_the_cores(a_host):
    a_host(6, {})
    assert host.cpus() == 6


def test_the_affinity_of_this_process_is_respected():
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert host.cpus() == 1
    finally:
        os.sched_setaffinity(0, mine)
    assert 1 <= host.cpus() <= len(mine)


def test_the_cpu_name_is_read_from_cpuinfo(a_host):
    cpuinfo = (
        "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Fast CPU: 3 GHz\nflags\t\t: avx2\nmodel name\t: Fast CPU: 3 GHz\n"
    )
    a_host(2, {"/proc/cpuinfo": cpuinfo})
    assert host.cpu_name() == "Fast CPU: 3 GHz"


@pytest.mark.parametrize("files", [{}, {"/proc/cpuinfo": "processor\t: 0\nCPU part\t: 0xd0c\n"}])
def test_a_cpu_without_a_name_is_named_by_its_architecture(a_host, monkeypatch, files):
    a_host(2, files)
    monkeypatch.setattr(host.platform, "processor", lambda: "")
    assert host.cpu_name() == host.platform.machine() != ""


# Memory

FAULTS = """
import resource, sys, threading
import numpy as np
from app.system import host

if sys.argv[1] == "kept":
    host.keep_freed_memory()

def batches(count):
    for _ in range(count):
        [np.ones(3 << 20, np.uint8) for _ in range(4)]

def images():
    batches(3)  # warm-up: malloc adapts its thresholds
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    batches(20)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

images()
thread = threading.Thread(target=images)
thread.start()
thread.join()
"""


def page_faults(how: str) -> list[int]:
    """Return the page faults of 20 times four images of 3 MB in a new process: [main thread, second thread]."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", FAULTS, how]
    ended = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return [int(line) for line in ended.stdout.split()]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_kept_memory_avoids_page_faults_for_every_image():
    default, kept = page_faults("as it comes"), page_faults("kept")
    assert min(default) > 60  # 61,000 with pages of 4 KB, 120 with huge pages
    for before, after in zip(default, kept, strict=True):
        assert after < before / 10


def arenas(how: str) -> int:
    """Return the number of malloc arenas of a process where four threads allocated at the same time."""
    code = """
import ctypes, sys, threading
import numpy as np
from app.system import host

if sys.argv[1] == "kept":
    host.keep_freed_memory()

together = threading.Barrier(4)

def work():
    kept = [np.ones(3 << 20, np.uint8)]
    together.wait(10)

threads = [threading.Thread(target=work) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
sys.stdout.flush()
libc = ctypes.CDLL(None)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", code, how]
    ended = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return ended.stdout.count("<heap nr=")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="not glibc")
def test_memory_freed_by_one_thread_is_reused_by_all_threads():
    """Memory grew by an eighth in 100,000 mixed requests: each decode thread had its own arena."""
    assert arenas("as it comes") > 1
    assert arenas("kept") == 1


IDLE = """
import sys, time
import numpy as np
from app.system import host

def resident_mb():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

host.IDLE_S = 0.2
host.keep_freed_memory()
kept = [np.ones(3 << 20, np.uint8) for _ in range(60)]
last = kept.pop()  # after the others, so that they are not at the end of the heap
kept.clear()
before, deadline = resident_mb(), time.monotonic() + 60
if sys.argv[1] == "given back":
    host.give_back_when_idle()
    while resident_mb() > before - 170 and time.monotonic() < deadline:
        time.sleep(0.1)
print(before - resident_mb())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_kept_memory_is_returned_when_the_server_is_idle():
    """Resident memory rose by 10 % from the 10,000th mixed request to the 25,000th, without more memory in use."""
    freed = {}
    for how in ("kept", "given back"):
        command = [sys.executable, "-c", IDLE, how]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=90)
        freed[how] = int(ended.stdout)
    assert freed["kept"] < 10
    assert freed["given back"] >= 170


def test_a_c_library_without_mallopt_is_not_changed(monkeypatch):
    class Musl:
        """Has no mallopt: access raises AttributeError, like for every library without it."""

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Musl())
    host.keep_freed_memory()
    host.give_back_when_idle()
    assert "give-back" not in {thread.name for thread in threading.enumerate()}


def test_mallopt_gets_the_parameters_of_malloc_h_within_the_limits_of_glibc(monkeypatch):
    """mallopt refuses an M_MMAP_THRESHOLD above half a heap, 32 MiB."""
    options: dict[int, int] = {}

    class Glibc:
        mallopt = staticmethod(options.__setitem__)

    monkeypatch.setattr(ctypes, "CDLL", lambda _: Glibc())
    host.keep_freed_memory()
    assert options.keys() == {-3, -1, -8}
    assert 16 << 20 <= options[-3] <= 32 << 20
    assert options[-1] > options[-3]
