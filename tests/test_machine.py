"""What the host lets this process use."""

import os
from pathlib import Path

import pytest

from app import machine


@pytest.fixture
def host(monkeypatch):
    """A host of so many cores, with these files and no others."""

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
def test_cores_are_the_affinity_less_the_cgroup_quota_and_at_least_1(host, cores, quota, expected):
    host(cores, {"/sys/fs/cgroup/cpu.max": quota})
    assert machine.cpus() == expected


@pytest.mark.parametrize("text", ["", "max", "1 2 3"])
def test_a_quota_that_is_not_understood_limits_nothing(host, text):
    host(6, {"/sys/fs/cgroup/cpu.max": text})
    assert machine.cpus() == 6


def test_without_cgroups_the_affinity_counts(host):
    host(6, {})
    assert machine.cpus() == 6


def test_this_machine_has_a_core_and_its_affinity_is_heeded():
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert machine.cpus() == 1
    finally:
        os.sched_setaffinity(0, mine)
    assert 1 <= machine.cpus() <= len(mine)


def test_the_cpu_is_named_as_the_kernel_names_it(host):
    cpuinfo = (
        "processor\t: 0\nmodel\t\t: 85\nmodel name\t: Fast CPU: 3 GHz\nflags\t\t: avx2\nmodel name\t: Fast CPU: 3 GHz\n"
    )
    host(2, {"/proc/cpuinfo": cpuinfo})
    assert machine.cpu_name() == "Fast CPU: 3 GHz"


@pytest.mark.parametrize("files", [{}, {"/proc/cpuinfo": "processor\t: 0\nCPU part\t: 0xd0c\n"}])
def test_a_cpu_without_a_name_goes_by_its_kind(host, monkeypatch, files):
    host(2, files)
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    assert machine.cpu_name() == machine.platform.machine() != ""
