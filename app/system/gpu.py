"""The GPU as NVML sees it, read at every scrape."""

import os
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.metrics_core import GaugeMetricFamily
from prometheus_client.registry import Collector

try:
    import pynvml
except ImportError:  # it comes with TensorRT
    pynvml = None

_GAUGES: tuple[tuple[str, str, Callable[[Any], float]], ...] = (
    (
        "utilization_ratio",
        "Share of the last moments in which the GPU had work, however little",
        lambda gpu: float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu) / 100,
    ),
    (
        "memory_used_bytes",
        "Device memory in use, by whomever",
        lambda gpu: float(pynvml.nvmlDeviceGetMemoryInfo(gpu).used),
    ),
    (
        "memory_total_bytes",
        "Device memory there is",
        lambda gpu: float(pynvml.nvmlDeviceGetMemoryInfo(gpu).total),
    ),
    (
        "temperature_celsius",
        "Of the GPU",
        lambda gpu: float(pynvml.nvmlDeviceGetTemperature(gpu, pynvml.NVML_TEMPERATURE_GPU)),
    ),
    (
        "power_watts",
        "What the GPU draws",
        lambda gpu: float(pynvml.nvmlDeviceGetPowerUsage(gpu)) / 1000,
    ),
)


class GpuCollector(Collector):
    """Gauges of one GPU. A value that NVML does not tell is left out."""

    def __init__(self, gpu: Any) -> None:
        self._gpu = gpu
        self._labels = (str(pynvml.nvmlDeviceGetIndex(gpu)), str(pynvml.nvmlDeviceGetName(gpu)))

    def facts(self) -> dict[str, str]:
        """Name, driver, and the newest CUDA version that the driver knows."""
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
    """The GPU that engines use; None where NVML, its driver or the GPU is missing."""
    if pynvml is None:
        return None
    try:
        pynvml.nvmlInit()
        return GpuCollector(_visible())
    except pynvml.NVMLError:
        return None


def _visible() -> Any:
    """CUDA's device 0: the first that CUDA_VISIBLE_DEVICES names, by index or UUID.

    Of several GPUs, CUDA and NVML count alike only under CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()
    if first.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(first))
    return pynvml.nvmlDeviceGetHandleByUUID(first)


def facts() -> dict[str, str] | None:
    """Name, driver and newest CUDA version of the GPU; None where there is none."""
    gpu = open_gpu()
    return gpu.facts() if gpu else None
