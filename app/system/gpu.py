"""GPU metrics and facts from NVML, read at every scrape."""

import os
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

try:
    import pynvml
except ImportError:  # installed with TensorRT
    pynvml = None

_GAUGES: tuple[tuple[str, str, Callable[[Any], float]], ...] = (
    (
        "utilization_ratio",
        "Share of the last sample period in which at least one kernel ran on the GPU",
        lambda gpu: float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu) / 100,
    ),
    (
        "memory_used_bytes",
        "Device memory used by all processes",
        lambda gpu: float(pynvml.nvmlDeviceGetMemoryInfo(gpu).used),
    ),
    (
        "memory_total_bytes",
        "Total device memory",
        lambda gpu: float(pynvml.nvmlDeviceGetMemoryInfo(gpu).total),
    ),
    (
        "temperature_celsius",
        "Temperature of the GPU",
        lambda gpu: float(pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU)),
    ),
    (
        "power_watts",
        "Power draw of the GPU",
        lambda gpu: float(pynvml.nvmlDeviceGetPowerUsage(gpu)) / 1000,
    ),
)


class GpuCollector(Collector):
    """Gauges of one GPU. A value that NVML does not report is left out."""

    def __init__(self, gpu: Any) -> None:
        self._gpu = gpu
        self._labels = (str(pynvml.nvmlDeviceGetIndex(gpu)), str(pynvml.nvmlDeviceGetName(gpu)))

    def facts(self) -> dict[str, str]:
        """Return name, driver version, and the newest CUDA version that the driver supports. Raises NVMLError."""
        cuda = int(pynvml.nvmlSystemGetCudaDriverVersion())
        return {
            "name": self._labels[1],
            "driver": str(pynvml.nvmlSystemGetDriverVersion()),
            "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}",
        }

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, text, read in _GAUGES:
            family = GaugeMetricFamily(f"yolopard_gpu_{name}", text, labels=("gpu", "name"))
            try:
                family.add_metric(self._labels, read(self._gpu))
            except pynvml.NVMLError:
                continue
            yield family


def open_gpu() -> GpuCollector | None:
    """Return the GPU that engines use; None if NVML, its driver or the GPU is missing."""
    if pynvml is None:
        return None
    try:
        pynvml.nvmlInit()
        return GpuCollector(_visible())
    except pynvml.NVMLError:
        return None


def _visible() -> Any:
    """Return the NVML handle of CUDA's device 0: the first in CUDA_VISIBLE_DEVICES, by index or UUID.

    With several GPUs, CUDA and NVML use the same indices only under CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    if first.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(first))
    return pynvml.nvmlDeviceGetHandleByUUID(first)


def facts() -> dict[str, str] | None:
    """Return name, driver version and newest CUDA version of the GPU; None if there is none."""
    gpu = open_gpu()
    return gpu.facts() if gpu else None
