"""A stand-in for pynvml on a machine with GPUs. Checks calls against the signatures of the real module."""

import inspect
from types import SimpleNamespace

import pynvml


class Driver:
    """pynvml with the names, arguments, constants and exceptions of the real module."""

    def __init__(self, uuids: list[str]) -> None:
        self.uuids = uuids
        self.errors: dict[str, int] = {}  # function name -> NVML error code
        self.initialized = False

    def __getattr__(self, name: str):
        real = getattr(pynvml, name)
        if not inspect.isfunction(real):
            return real

        def call(*arguments, **named):
            bound = inspect.signature(real).bind(*arguments, **named)
            if name in self.errors:
                raise pynvml.NVMLError(self.errors[name])
            if name != "nvmlInit" and not self.initialized:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)
            return type(self).__dict__[f"_{name}"](self, **bound.arguments)

        return call

    def _nvmlInit(self):  # noqa: N802
        self.initialized = True

    def _nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        assert isinstance(index, int)
        if not 0 <= index < len(self.uuids):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return SimpleNamespace(index=index)

    def _nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        if uuid not in self.uuids:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return SimpleNamespace(index=self.uuids.index(uuid))

    def _nvmlSystemGetDriverVersion(self):  # noqa: N802
        return "595.71.05"

    def _nvmlSystemGetCudaDriverVersion(self):  # noqa: N802
        return 13020

    def _nvmlDeviceGetIndex(self, handle):  # noqa: N802
        return handle.index

    def _nvmlDeviceGetName(self, handle):  # noqa: N802
        return f"NVIDIA A1{handle.index}G"

    def _nvmlDeviceGetUtilizationRates(self, handle):  # noqa: N802
        return pynvml.c_nvmlUtilization_t(gpu=87, memory=40)

    def _nvmlDeviceGetMemoryInfo(self, handle):  # noqa: N802
        return pynvml.c_nvmlMemory_t(total=24 << 30, free=18 << 30, used=6 << 30)

    def _nvmlDeviceGetTemperature(self, handle, sensor):  # noqa: N802
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return 61

    def _nvmlDeviceGetPowerUsage(self, handle):  # noqa: N802
        return 212_345
