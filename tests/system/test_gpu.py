"""The GPU metrics for Prometheus. A machine without a GPU exports none."""

import pynvml
import pytest
from nvml_standin import Driver
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from app.system import gpu

VALUES = {
    "yolopard_gpu_utilization_ratio": 0.87,
    "yolopard_gpu_memory_used_bytes": 6 << 30,
    "yolopard_gpu_memory_total_bytes": 24 << 30,
    "yolopard_gpu_temperature_celsius": 61,
    "yolopard_gpu_power_watts": 212.345,
}
MEMORY = {"yolopard_gpu_memory_used_bytes", "yolopard_gpu_memory_total_bytes"}


@pytest.fixture
def driver(monkeypatch):
    """Two GPUs, and no CUDA_VISIBLE_DEVICES."""
    driver = Driver(["GPU-aaaa", "GPU-bbbb"])
    monkeypatch.setattr(gpu, "pynvml", driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return driver


def scraped(collector: gpu.GpuCollector) -> dict[str, float]:
    """Return the values that /metrics exports, by series name."""
    registry = CollectorRegistry()
    registry.register(collector)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {sample.name: sample.value for family in families for sample in family.samples}


def labels(collector: gpu.GpuCollector) -> list[dict[str, str]]:
    return [sample.labels for family in collector.collect() for sample in family.samples]


def test_load_memory_temperature_and_power_are_exported_in_base_units(driver):
    assert scraped(gpu.open_gpu()) == VALUES


def test_every_gpu_metric_is_a_gauge(driver):
    assert {family.type for family in gpu.open_gpu().collect()} == {"gauge"}


@pytest.mark.parametrize(
    ("visible", "index"),
    [(None, 0), ("0", 0), ("1", 1), ("1,0", 1), (" 1 , 0", 1), ("GPU-aaaa", 0), ("GPU-bbbb,GPU-aaaa", 1)],
)
def test_the_first_visible_gpu_is_used(driver, monkeypatch, visible, index):
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert labels(gpu.open_gpu()) == [{"gpu": str(index), "name": f"NVIDIA A1{index}G"}] * len(VALUES)


@pytest.mark.parametrize("visible", ["", "-1", "2", "GPU-cccc", "NoDevFiles"])
def test_open_gpu_returns_none_without_a_visible_gpu(driver, monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu.open_gpu() is None


@pytest.mark.parametrize(
    ("function", "omitted"),
    [
        ("nvmlDeviceGetUtilizationRates", {"yolopard_gpu_utilization_ratio"}),
        ("nvmlDeviceGetMemoryInfo", MEMORY),
        ("nvmlDeviceGetTemperature", {"yolopard_gpu_temperature_celsius"}),
        ("nvmlDeviceGetPowerUsage", {"yolopard_gpu_power_watts"}),
    ],
)
@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND])
def test_a_value_that_the_driver_does_not_report_is_omitted(driver, function, omitted, code):
    driver.errors[function] = code
    assert set(scraped(gpu.open_gpu())) == set(VALUES) - omitted


def test_a_lost_gpu_exports_no_values_until_it_returns(driver):
    collector = gpu.open_gpu()
    functions = ("UtilizationRates", "MemoryInfo", "Temperature", "PowerUsage")
    driver.errors = {f"nvmlDeviceGet{what}": pynvml.NVML_ERROR_GPU_IS_LOST for what in functions}
    assert scraped(collector) == {}
    driver.errors = {}
    assert scraped(collector) == VALUES


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetIndex", "nvmlDeviceGetName"])
@pytest.mark.parametrize(
    "code",
    [
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
        pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH,
        pynvml.NVML_ERROR_NO_PERMISSION,
    ],
)
def test_open_gpu_returns_none_if_the_driver_fails(driver, function, code):
    driver.errors[function] = code
    assert gpu.open_gpu() is None


@pytest.mark.usefixtures("driver")
def test_facts_hold_name_driver_and_cuda_version():
    assert gpu.facts() == {"name": gpu.open_gpu()._labels[1], "driver": "595.71.05", "cuda": "13.2"}


def test_facts_are_none_without_pynvml(monkeypatch):
    monkeypatch.setattr(gpu, "pynvml", None)
    assert gpu.facts() is None


def test_open_gpu_returns_none_without_pynvml(monkeypatch):
    monkeypatch.setattr(gpu, "pynvml", None)
    assert gpu.open_gpu() is None


def test_the_gpu_of_this_machine_is_read_without_output(monkeypatch, capfd):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    collector = gpu.open_gpu()
    assert capfd.readouterr() == ("", "")
    if collector is None:
        with pytest.raises(pynvml.NVMLError):
            pynvml.nvmlDeviceGetHandleByIndex(0)
    else:
        found = scraped(collector)
        assert set(found) <= set(VALUES)
        assert 0 < found["yolopard_gpu_memory_used_bytes"] <= found["yolopard_gpu_memory_total_bytes"]
