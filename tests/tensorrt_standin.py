"""A strict stand-in for TensorRT's Python bindings: the real names and signatures, run by ONNX Runtime.

The names and signatures are those of tests/surfaces. An unknown name, a wrong number of arguments, keyword or type, and
a write to a read-only property fail as in the bindings. Calls that would end or corrupt a real process fail the test.
"""

import ctypes
import functools
import hashlib
import json
import re
import threading
import types
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
from cuda_standin import ALIGNMENT, Cuda

SURFACES = Path(__file__).parent / "surfaces"
VERSIONS = sorted(path.stem.removeprefix("tensorrt-") for path in SURFACES.glob("*.json"))
SEVERITIES = {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4}
TYPES = {
    "UINT8": np.uint8,
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT8": np.int8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}
NO_IMPLEMENTATION = (
    "IBuilder::buildSerializedNetwork: Error Code 10: Internal Error "
    "(Could not find any implementation for node {ForeignNode[images...rows]}.)"
)
_MAGIC = b"ptrt"
_PARAMETER = re.compile(r"(\w+): (.+?)(?: = ([^,]+))?(?=, \w+: |$)")


@functools.total_ordering
class _Enum:
    """An enumeration like those of pybind: not an int, but int() accepts it."""

    __slots__ = ("_value",)
    __members__: ClassVar[dict[str, "_Enum"]]

    def __init__(self, value: int) -> None:
        self._value = value

    value = property(lambda self: self._value)
    name = property(lambda self: next(name for name, member in self.__members__.items() if member == self))

    def __int__(self) -> int:
        return self._value

    __index__ = __int__

    def __hash__(self) -> int:
        return self._value

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._value == other._value

    def __lt__(self, other: object) -> bool:
        if type(self) is not type(other):
            raise TypeError("Expected an enumeration of matching type!")
        return self._value < other._value

    def __str__(self) -> str:
        return f"{type(self).__name__}.{self.name}"

    def __repr__(self) -> str:
        return f"<{self}: {self._value}>"


def _enum(name: str, values: dict[str, int]) -> type:
    made = type(name, (_Enum,), {"__slots__": ()})
    made.__members__ = {member: made(value) for member, value in values.items()}
    for member, value in made.__members__.items():
        setattr(made, member, value)
    return made


class Dims(Sequence):
    __slots__ = ("_sizes",)
    MAX_DIMS = 8

    def __init__(self, shape: Sequence[int] = ()) -> None:
        if not _is_sizes(shape):
            raise TypeError(f"__init__(): incompatible constructor arguments: {shape!r}")
        self._sizes = tuple(map(int, shape))

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: Any) -> Any:
        return self._sizes[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, list | tuple):
            raise TypeError("__eq__(): incompatible function arguments")
        return list(self._sizes) == list(other)

    __hash__ = None

    def __repr__(self) -> str:
        return str(self._sizes)


def _is_int(value: object) -> bool:
    return hasattr(value, "__int__") and not isinstance(value, float | str)


def _is_sizes(value: object) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str) and all(map(_is_int, value))


def _is_buffer(value: object) -> bool:
    try:
        memoryview(value)
    except TypeError:
        return False
    return True


_TYPE_CHECKS = {
    "bool": lambda value: isinstance(value, bool),
    "int": _is_int,
    "str": lambda value: isinstance(value, str),
    "tuple": lambda value: isinstance(value, tuple),
    "list": lambda value: isinstance(value, list),
    "typing.SupportsInt": _is_int,
    "typing.SupportsFloat": lambda value: isinstance(value, int | float),
    "typing_extensions.Buffer": _is_buffer,
    "collections.abc.Sequence[typing.SupportsInt]": _is_sizes,
    "Dims": lambda value: isinstance(value, Dims) or _is_sizes(value),
}


class _Strict(type):
    """Metaclass of the strict classes. Like pybind's, it refuses a subclass that does not call __init__."""

    def __call__(cls, *arguments: Any, **keywords: Any) -> Any:
        made = super().__call__(*arguments, **keywords)
        if not hasattr(made, "_inner"):
            raise TypeError(f"{cls.__base__.__name__}.__init__() must be called when overriding __init__")
        return made


@dataclass(eq=False)
class TensorRT:
    """`module` is the stand-in for the module; tests set and read the other attributes."""

    version: str
    cuda: Cuda
    refuse: set[str] = field(default_factory=set)  # methods that return False (None, -1) instead of doing their work
    refuse_in_capture: bool = False  # execute_async_v3 returns False while its stream captures
    refuse_plans: bool = False
    build_fails: str = ""  # if set, builds fail and log this, such as NO_IMPLEMENTATION
    phases: Sequence[tuple[str, str | None, int]] = (("Building", None, 3), ("Tactics", "Building", 4))  # parent, steps
    rows: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None  # changes the outputs
    memory_size: int = 1 << 20  # bytes per context
    memory_per_pixel: int = 0  # additional bytes per context, for each pixel of a frame of fixed shape
    contexts: int | None = None  # maximum number that fits into the device
    weakly_typed: bool = False  # True: a weakly typed network was made
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.alive = weakref.WeakSet()  # engines and contexts
        self.module = types.ModuleType("tensorrt")
        self.module.__version__ = self.version
        self._classes: dict[str, type] = {"ILogger.Severity": _enum("Severity", SEVERITIES), "Dims": Dims}
        surface = json.loads((SURFACES / f"tensorrt-{self.version}.json").read_text())
        for name, entry in surface.items():
            if name not in self._classes:
                made = _enum(name, entry["enum"]) if "enum" in entry else self._strict_class(name, entry["members"])
                self._classes[name] = made
            setattr(self.module, name, self._classes[name])

    @property
    def device(self) -> list[str]:
        return [self.cuda.name.decode(), f"{self.cuda.major}.{self.cuda.minor}"]

    def type_of(self, dtype: np.dtype) -> _Enum:
        return getattr(self.module.DataType, next(name for name, kind in TYPES.items() if kind == dtype))

    def log(self, logger: Any, severity: str, text: str) -> None:
        try:
            logger.log(getattr(self.module.ILogger, severity), text)
        except Exception as error:
            self.cuda.fault(f"the logger raised {error!r}")

    def host_memory(self, data: bytes) -> Any:
        """Return an object that only has the buffer protocol: no len(), no slices."""
        bases = (self._classes["IHostMemory"], ctypes.Array)
        inner = types.SimpleNamespace(nbytes=len(data), dtype=self.type_of(np.int8))
        body = {"_type_": ctypes.c_byte, "_length_": len(data), "__slots__": (), "_inner": inner}
        body |= dict.fromkeys(("__len__", "__getitem__", "__setitem__", "__iter__"))
        return type("IHostMemory", bases, body).from_buffer_copy(data)

    def needs_driver(self) -> None:
        if not self.cuda.driver or not self.cuda.devices:
            raise SystemError("the process would have died here")

    def _strict_class(self, name: str, members: dict[str, Any]) -> type:
        body: dict[str, Any] = {"__slots__": () if name == "IHostMemory" else ("_inner",)}
        for member, entry in members.items():
            if name in ("ILogger", "Logger") and (member == "Severity" or member in SEVERITIES):
                severity = self._classes["ILogger.Severity"]
                body[member] = getattr(severity, member, severity)
            elif member == "__init__":
                body[member] = self._constructor(name, entry["sig"])
            elif entry["kind"] == "property":
                body[member] = self._property(name, member, entry)
            else:
                body[member] = self._method(name, member, entry["sig"])
        return (type if name == "IHostMemory" else _Strict)(name, (), body)

    def _constructor(self, name: str, lines: list[str]) -> Callable[..., None]:
        def __init__(outer: Any, *arguments: Any, **keywords: Any) -> None:  # noqa: N807
            if not lines:
                raise TypeError(f"{name}: No constructor defined!")
            values = self._bound_arguments(name, lines, arguments, keywords)
            inner = globals().get(name)
            outer._inner = inner(self, *values) if inner else None

        return __init__

    def _property(self, name: str, member: str, entry: dict[str, Any]) -> property:
        kind = entry["sig"].rpartition(" -> ")[2]

        def read(outer: Any) -> Any:
            return self._wrapped(self._member(outer, name, member))

        def write(outer: Any, value: Any) -> None:
            self._member(outer, name, member)
            if value is not None and not self._fits(kind, value):
                raise TypeError(f"{name}.{member} takes {kind}, not {value!r}")
            self.calls.append(member)
            setattr(outer._inner, member, value)

        return property(read, write if entry["settable"] else None)

    def _method(self, name: str, member: str, lines: list[str]) -> Callable[..., Any]:
        refusal = {"bool": False, "int": -1}.get(lines[-1].rpartition(" -> ")[2])

        def call(outer: Any, *arguments: Any, **keywords: Any) -> Any:
            values = self._bound_arguments(member, lines, arguments, keywords)
            self.calls.append(member)
            method = self._member(outer, name, member)
            if member in self.refuse:
                outer._inner.refused(member)
                return refusal
            return self._wrapped(method(*values))

        return call

    def _member(self, outer: Any, name: str, member: str) -> Any:
        try:
            return getattr(outer._inner, member)
        except AttributeError:
            raise NotImplementedError(f"{name}.{member} is not in the stand-in") from None

    def _wrapped(self, value: Any) -> Any:
        if not isinstance(value, _Inner):
            return value
        outer = object.__new__(self._classes[type(value).__name__])
        outer._inner = value
        return outer

    def _bound_arguments(self, name: str, lines: list[str], arguments: tuple, keywords: dict[str, Any]) -> list[Any]:
        """Return the arguments in order, for the first overload that fits. Raises TypeError if none does."""
        for line in lines:
            parameters = _PARAMETER.findall(line[line.index("(") + 1 : line.rindex(")")])[1:]
            names = [parameter[0] for parameter in parameters]
            given = dict(zip(names, arguments, strict=False)) | keywords
            if len(given) != len(arguments) + len(keywords) or given.keys() - set(names) or "*args" in line:
                continue
            if all(self._fits(kind, given[key], other) if key in given else other for key, kind, other in parameters):
                return [self._unwrapped(given[key]) for key in names if key in given]
        raise TypeError(f"{name}(): incompatible arguments {arguments} {keywords}; supported: {lines}")

    def _unwrapped(self, value: Any) -> Any:
        inner = getattr(value, "_inner", None)
        return inner if isinstance(inner, _Inner) and type(inner).__name__ != "Logger" else value

    def _fits(self, kind: str, value: object, default: str = "") -> bool:
        kind = kind.rpartition("::")[2]
        if value is None and default == "None":
            return True
        if kind in self._classes and kind != "Dims":
            return isinstance(value, self._classes[kind])
        # An object of a class outside the surface cannot exist here.
        return _TYPE_CHECKS[kind](value) if kind in _TYPE_CHECKS else not kind[:1].isupper()


@dataclass(eq=False)
class _Inner:
    """The implementation of the strict class of the same name."""

    trt: TensorRT

    def refused(self, method: str) -> None:
        """Called if a test makes the method refuse."""


@dataclass(eq=False)
class Logger(_Inner):
    min_severity: Any = None
    lines: list[str] = field(default_factory=list)

    def log(self, severity: _Enum, msg: str) -> None:
        self.lines.append(f"{severity} {msg}")


@dataclass(eq=False)
class Builder(_Inner):
    logger: Any

    def __post_init__(self) -> None:
        self.trt.needs_driver()

    def create_network(self, flags: int = 0) -> "INetworkDefinition":
        strong = self.trt.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        network = INetworkDefinition(self.trt, self, self.trt.version >= "11" or bool(flags >> int(strong) & 1))
        self.trt.weakly_typed |= not network.strong
        return network

    def create_builder_config(self) -> "IBuilderConfig":
        return IBuilderConfig(self.trt, self)

    def create_optimization_profile(self) -> "IOptimizationProfile":
        return IOptimizationProfile(self.trt)

    def build_serialized_network(self, network: "INetworkDefinition", config: "IBuilderConfig") -> Any:
        if network.builder is not self or config.builder is not self:
            self.trt.cuda.fault("the network or the config is of another builder")
        problem = network.problem(config) or self._cancelled(config.progress_monitor) or self.trt.build_fails
        if problem:
            return self.trt.log(self.logger, "ERROR", problem)
        if config.cache:
            config.cache.facts["entries"] += 1
        return self.trt.host_memory(_plan(self.trt, network.model, config.profiles))

    def _cancelled(self, monitor: Any) -> str:
        """Return an error text if the monitor cancels. Reports from another thread, as TensorRT does."""
        continues: list[bool] = []
        if monitor is not None:
            thread = threading.Thread(target=lambda: continues.append(self._run_phases(monitor, None)))
            thread.start()
            thread.join()
        return "" if all(continues) else "Error Code 9: the build was cancelled by the progress monitor"

    def _run_phases(self, monitor: Any, parent: str | None) -> bool:
        for phase, above, steps in self.trt.phases:
            if above == parent:
                _report(monitor.phase_start, phase, parent, steps)
                continues = self._run_phases(monitor, phase)
                for step in range(steps):
                    continues = continues and _report(monitor.step_complete, phase, step)
                _report(monitor.phase_finish, phase)
                if not continues:
                    return False
        return True


def _report(report: Callable[..., Any], *arguments: Any) -> bool:
    """Return the monitor's answer. An exception counts as False, which cancels; the bindings print it."""
    try:
        return bool(report(*arguments))
    except Exception:
        return False


@dataclass(eq=False)
class IBuilderConfig(_Inner):
    builder: Builder
    progress_monitor: Any = None
    builder_optimization_level: int = 3
    max_aux_streams: int = -1
    max_num_tactics: int = -1
    cache: "ITimingCache | None" = None
    profiles: list["IOptimizationProfile"] = field(default_factory=list)
    chosen: dict[Any, Any] = field(default_factory=dict)  # flags and pools

    def __post_init__(self) -> None:
        self.hardware_compatibility_level = self.trt.module.HardwareCompatibilityLevel.NONE
        self.profiling_verbosity = self.trt.module.ProfilingVerbosity.LAYER_NAMES_ONLY

    def set_flag(self, flag: _Enum) -> None:
        self.chosen[flag] = True

    def clear_flag(self, flag: _Enum) -> None:
        self.chosen.pop(flag, None)

    def get_flag(self, flag: _Enum) -> bool:
        return flag in self.chosen

    def set_memory_pool_limit(self, pool: _Enum, pool_size: int) -> None:
        self.chosen[pool] = pool_size

    def get_memory_pool_limit(self, pool: _Enum) -> int:
        return self.chosen.get(pool, self.trt.cuda.total_bytes)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def add_optimization_profile(self, profile: "IOptimizationProfile") -> int:
        if not profile.shapes:
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: Any) -> "ITimingCache | None":
        blob = bytes(serialized_timing_cache)
        try:
            facts = json.loads(
                blob or json.dumps({"version": self.trt.version, "device": self.trt.device, "entries": 0})
            )
        except ValueError:
            return self.trt.log(self.builder.logger, "ERROR", "Serialization assertion failed: no timing cache")
        return ITimingCache(self.trt, facts)

    def set_timing_cache(self, cache: "ITimingCache", ignore_mismatch: bool) -> bool:
        fits = cache.facts["device"] == self.trt.device or ignore_mismatch
        if cache.facts["version"] != self.trt.version or not fits:
            self.trt.log(self.builder.logger, "WARNING", "The timing cache was made by another version or device")
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> "ITimingCache | None":
        return self.cache


@dataclass(eq=False)
class ITimingCache(_Inner):
    facts: dict[str, Any]

    def serialize(self) -> Any:
        return self.trt.host_memory(json.dumps(self.facts).encode())


@dataclass(eq=False)
class IOptimizationProfile(_Inner):
    shapes: dict[str, list[list[int]]] = field(default_factory=dict)

    def set_shape(self, name: str, low: Sequence[int], best: Sequence[int], high: Sequence[int]) -> None:
        if not len(low) == len(best) == len(high) or not all(
            0 <= a <= b <= c for a, b, c in zip(low, best, high, strict=True)
        ):
            raise ValueError(f"Shape provided for {name} is inconsistent with other shapes.")
        self.shapes[name] = [list(map(int, shape)) for shape in (low, best, high)]

    def get_shape(self, name: str) -> list[Dims]:
        return [Dims(shape) for shape in self.shapes[name]]


@dataclass(eq=False)
class INetworkDefinition(_Inner):
    builder: Builder
    strong: bool
    model: onnx.ModelProto | None = None
    name: str = "Unnamed Network 0"

    num_inputs = property(lambda self: len(self.model.graph.input) if self.model else 0)
    num_outputs = property(lambda self: len(self.model.graph.output) if self.model else 0)
    num_layers = property(lambda self: len(self.model.graph.node) if self.model else 0)

    def get_input(self, index: int) -> "ITensor":
        return ITensor(self.trt, self.model.graph.input[index], is_network_input=True)

    def get_output(self, index: int) -> "ITensor":
        return ITensor(self.trt, self.model.graph.output[index], is_network_input=False)

    def problem(self, config: IBuilderConfig) -> str:
        """Return why the network cannot be built, as TensorRT logs it; '' if it can."""
        if self.model is None:
            return "Error Code 4: API Usage Error (Network must have at least one output)"
        flags = [flag for flag in ("FP16", "BF16", "INT8", "FP8") if hasattr(self.trt.module.BuilderFlag, flag)]
        if self.strong and any(config.get_flag(getattr(self.trt.module.BuilderFlag, flag)) for flag in flags):
            return "Error Code 3: API Usage Error (a precision flag is set for a strongly typed network)"
        for value in self.model.graph.input:
            shape = _shape(value)
            if -1 in shape and not config.profiles:
                return "Network has dynamic or shape inputs, but no optimization profile has been defined."
            for i, profile in enumerate(config.profiles):
                given = profile.shapes.get(value.name, [shape] * 3)
                for n, sizes in enumerate(zip(shape, *given, strict=False)):
                    if len(given[0]) != len(shape) or (sizes[0] != -1 and set(sizes) != {sizes[0]}):
                        return (
                            f"({value.name}: for dimension number {n} in profile {i} does not match network definition)"
                        )
                if -1 in given[0]:
                    return f"({value.name}: dynamic input is missing dimensions in profile {i}.)"
        return ""


@dataclass(eq=False)
class ITensor(_Inner):
    value: onnx.ValueInfoProto
    is_network_input: bool

    name = property(lambda self: self.value.name)
    shape = property(lambda self: Dims(_shape(self.value)))
    dtype = property(lambda self: self.trt.type_of(_dtype(self.value)))
    is_network_output = property(lambda self: not self.is_network_input)


@dataclass(eq=False)
class OnnxParser(_Inner):
    network: INetworkDefinition
    logger: Any
    errors: list["ParserError"] = field(default_factory=list)

    num_errors = property(lambda self: len(self.errors))

    def parse_from_file(self, model: str) -> bool:
        try:
            loaded = onnx.load(model)
            onnx.checker.check_model(loaded, full_check=True)
        except Exception as error:
            return self._failed("", "", f"{type(error).__name__}: {error}")
        bytes_ = {value.name for value in loaded.graph.input if _dtype(value) == np.uint8}
        for node in loaded.graph.node:
            if bytes_ & set(node.input) and node.op_type != "Cast":
                return self._failed(node.name, node.op_type, "a UINT8 input has to go directly into a Cast")
        self.network.model = loaded
        return True

    def get_error(self, index: int) -> "ParserError":
        return self.errors[index]

    def clear_errors(self) -> None:
        self.errors.clear()

    def refused(self, method: str) -> None:
        if method == "parse_from_file":
            self._failed("/model.22/TopK", "TopK", "Assertion failed: the stand-in refuses")

    def _failed(self, node: str, operator: str, text: str) -> bool:
        self.errors.append(ParserError(self.trt, (node, operator, text)))
        self.trt.log(self.logger, "ERROR", f"ModelImporter.cpp:1: {text}")
        return False


@dataclass(eq=False)
class ParserError(_Inner):
    facts: tuple[str, str, str]

    def node_name(self) -> str:
        return self.facts[0]

    def node_operator(self) -> str:
        return self.facts[1]

    def desc(self) -> str:
        return self.facts[2]

    def code(self) -> _Enum:
        return self.trt.module.ErrorCode.INVALID_NODE


@dataclass(eq=False)
class Runtime(_Inner):
    logger: Any
    engine_host_code_allowed: bool = False
    max_threads: int = 1

    def __post_init__(self) -> None:
        self.trt.needs_driver()

    def deserialize_cuda_engine(self, serialized_engine: Any) -> "ICudaEngine | None":
        trt = self.trt
        try:
            facts, graph = _unpacked(bytes(serialized_engine))
        except ValueError:
            text = "Error Code 1: Serialization (Serialization assertion magicTagRead == kMAGIC_TAG failed.)"
            return trt.log(self.logger, "ERROR", f"IRuntime::deserializeCudaEngine: {text}")
        (name, capability), (own_name, own_capability) = facts["device"], trt.device
        if facts["version"] != trt.version:
            problem = (
                "The engine plan file is not compatible with this version of TensorRT, "
                f"expecting library version {trt.version} got {facts['version']}, please rebuild."
            )
        elif capability != own_capability:
            problem = (
                "The engine plan file is generated on an incompatible device, "
                f"expecting compute {own_capability} got compute {capability}, please rebuild."
            )
        elif trt.refuse_plans:
            problem = "Error Code 2: OutOfMemory (Requested size was 1048576 bytes.)"
        else:
            if name != own_name:
                text = "Using an engine plan file across different models of devices is not recommended"
                trt.log(self.logger, "WARNING", f"{text} and is likely to affect performance or even cause errors.")
            return ICudaEngine(trt, self.logger, onnx.load_from_string(graph), facts["profiles"])
        return trt.log(self.logger, "ERROR", f"IRuntime::deserializeCudaEngine: {problem}")


@dataclass(eq=False)
class ICudaEngine(_Inner):
    logger: Any
    model: onnx.ModelProto
    profiles: list[dict[str, list[list[int]]]]

    num_io_tensors = property(lambda self: len(self.values))
    num_optimization_profiles = property(lambda self: max(1, len(self.profiles)))
    device_memory_size_v2 = property(lambda self: self.trt.memory_size + self.trt.memory_per_pixel * self.pixels)

    def __post_init__(self) -> None:
        self.inputs = {value.name: value for value in self.model.graph.input}
        self.outputs = {value.name: value for value in self.model.graph.output}
        self.values = self.inputs | self.outputs
        self.pixels = max(0, *(int(np.prod(_shape(value)[1:])) // 3 for value in self.model.graph.input))
        self._lock = threading.Lock()
        self._shapes: dict[str, dict[str, list[int]]] = {}
        self.trt.alive.add(self)

    @functools.cached_property
    def _session(self) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        data = self.model.SerializeToString()
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with self._lock:
            return dict(zip(self.outputs, self._session.run(list(self.outputs), inputs), strict=True))

    def shapes(self, inputs: dict[str, list[int]]) -> dict[str, list[int]]:
        """Return the shapes of all tensors. Runs zeros for sizes that do not follow from the inputs."""
        known = {
            of.dim_param: size
            for name, shape in inputs.items()
            for of, size in zip(self.inputs[name].type.tensor_type.shape.dim, shape, strict=True)
        }
        found = dict(inputs)
        for name, value in self.outputs.items():
            dims = value.type.tensor_type.shape.dim
            found[name] = [known.get(of.dim_param, -1) if of.dim_param else of.dim_value for of in dims]
        if any(-1 in shape for shape in found.values()):
            key = str(sorted(inputs.items()))
            if key not in self._shapes:
                zeros = {name: np.zeros(shape, _dtype(self.inputs[name])) for name, shape in inputs.items()}
                self._shapes[key] = {name: list(array.shape) for name, array in self.run(zeros).items()}
            found |= self._shapes[key]
        return found

    def value(self, name: str) -> onnx.ValueInfoProto:
        return self.values[name] if name in self.values else self.trt.cuda.fault(f"no tensor has the name {name}")

    def get_tensor_name(self, index: int) -> str:
        return list(self.values)[index]

    def get_tensor_mode(self, name: str) -> _Enum:
        self.value(name)
        return self.trt.module.TensorIOMode.INPUT if name in self.inputs else self.trt.module.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> _Enum:
        return self.trt.type_of(_dtype(self.value(name)))

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(_shape(self.value(name)))

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        if name not in self.inputs:
            self.trt.cuda.fault(f"{name} is no input: its profile shape is meaningless")
        return [Dims(shape) for shape in self.limits(name, profile_index)]

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return self.device_memory_size_v2 if 0 <= profile_index < self.num_optimization_profiles else 0

    def limits(self, name: str, profile: int) -> list[list[int]]:
        return self.profiles[profile][name] if self.profiles else [_shape(self.value(name))] * 3

    def create_execution_context(self, strategy: _Enum | None = None) -> "IExecutionContext | None":
        contexts = sum(isinstance(item, IExecutionContext) for item in self.trt.alive)
        if self.trt.contexts is not None and contexts >= self.trt.contexts:
            return self.trt.log(self.logger, "ERROR", "Error Code 2: OutOfMemory (Requested size was 1048576 bytes.)")
        managed = strategy == self.trt.module.ExecutionContextAllocationStrategy.USER_MANAGED
        return IExecutionContext(self.trt, self, managed)


@dataclass(eq=False)
class IExecutionContext(_Inner):
    engine: ICudaEngine
    managed: bool
    profile: int = 0
    block: tuple[int, ...] = ()  # address of its device memory
    given: dict[str, list[int]] = field(default_factory=dict)  # shapes of the inputs
    addresses: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._ran: list[dict[str, list[int]]] = []  # shapes that were executed
        self._forget()
        self.trt.alive.add(self)

    active_optimization_profile = property(lambda self: self.profile)

    def set_device_memory(self, memory: int, size: int) -> None:
        if not self.managed:
            self.trt.cuda.fault("the context manages its own device memory")
        self._aligned(memory, size)
        if size < (needed := self.engine.device_memory_size_v2):
            self.trt.cuda.fault(f"{size} bytes of device memory are given, {needed} needed")
        self.block = (memory,)

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < self.engine.num_optimization_profiles:
            return self._error(f"setOptimizationProfileAsync: no profile {profile_index}")
        self.trt.cuda.enqueue(stream_handle, lambda: None, self.block, self.block)
        self.profile = profile_index
        self._forget()
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        low, _, high = self.engine.limits(name, self.profile) if name in self.engine.inputs else ([], [], [])
        if len(low) != len(shape) or not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            return self._error(
                f"setInputShape: {name} {list(shape)} is not within profile {self.profile}: {low} {high}"
            )
        self.given[name] = list(map(int, shape))
        return True

    def infer_shapes(self) -> list[str]:
        return [name for name in self.engine.inputs if name not in self.given]

    def get_tensor_shape(self, name: str) -> Dims:
        static = _shape(self.engine.value(name))
        return Dims(self.given.get(name, static) if self.infer_shapes() else self.engine.shapes(self.given)[name])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self.engine.values:
            return self._error(f"setTensorAddress: no tensor has the name {name}")
        self._aligned(memory, 1)
        self.addresses[name] = memory
        return True

    def get_tensor_address(self, name: str) -> int:
        return self.addresses.get(name, 0)

    def execute_async_v3(self, stream_handle: int) -> bool:
        cuda = self.trt.cuda
        missing = self.infer_shapes() + [name for name in self.engine.values if name not in self.addresses]
        if missing:
            return self._error(f"enqueueV3: neither shape nor address may be missing: {missing}")
        if self.managed and not self.block:
            cuda.fault("the context is executed before set_device_memory")
        shapes, addresses = self.engine.shapes(self.given), dict(self.addresses)
        for name in shapes:
            self._view(name, shapes, addresses)
        captured = cuda.capturing(stream_handle)
        if captured and self.trt.refuse_in_capture:
            return self._error("enqueueV3: refused while the stream captures")
        if captured and shapes not in self._ran:
            cuda.invalidate(stream_handle)
            return self._error("enqueueV3: shapes that were never executed cannot be captured")

        def run() -> None:
            if captured and shapes != self.engine.shapes(self.given):
                cuda.fault("a graph is launched whose context has other shapes by now")
            self._run(shapes, addresses)

        cuda.enqueue(stream_handle, run, [*addresses.values(), *self.block], self.block)
        self._ran.append(shapes)
        return True

    def _run(self, shapes: dict[str, list[int]], addresses: dict[str, int]) -> None:
        outputs = self.engine.run({name: self._view(name, shapes, addresses).copy() for name in self.engine.inputs})
        for name, array in (self.trt.rows or dict)(outputs).items():
            self._view(name, shapes, addresses)[...] = array

    def _view(self, name: str, shapes: dict[str, list[int]], addresses: dict[str, int]) -> np.ndarray:
        dtype = _dtype(self.engine.values[name])
        size = dtype.itemsize * int(np.prod(shapes[name]))
        return self.trt.cuda.view(addresses[name], size).view(dtype).reshape(shapes[name])

    def _forget(self) -> None:
        self.given = {name: _shape(v) for name, v in self.engine.inputs.items() if -1 not in _shape(v)}

    def _aligned(self, memory: int, size: int) -> None:
        self.trt.cuda.view(memory, size)
        if memory % ALIGNMENT:
            self.trt.cuda.fault(f"{memory:#x} is not aligned to {ALIGNMENT} bytes")

    def _error(self, text: str) -> bool:
        self.trt.log(self.engine.logger, "ERROR", f"IExecutionContext::{text}")
        return False


def _dtype(value: onnx.ValueInfoProto) -> np.dtype:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type))


def _shape(value: onnx.ValueInfoProto) -> list[int]:
    """Return the shape; a dynamic size is -1."""
    return [d.dim_value if d.HasField("dim_value") else -1 for d in value.type.tensor_type.shape.dim]


def _plan(trt: TensorRT, model: onnx.ModelProto, profiles: list[IOptimizationProfile]) -> bytes:
    facts = {"version": trt.version, "device": trt.device, "profiles": [profile.shapes for profile in profiles]}
    header = json.dumps(facts).encode()
    data = _MAGIC + len(header).to_bytes(4, "little") + header + model.SerializeToString()
    return data + hashlib.sha256(data).digest()


def _unpacked(plan: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the facts and the graph of a plan. Raises ValueError if the bytes are not a plan."""
    data, digest = plan[:-32], plan[-32:]
    if not data.startswith(_MAGIC) or hashlib.sha256(data).digest() != digest:
        raise ValueError("no plan")
    end = 8 + int.from_bytes(data[4:8], "little")
    return json.loads(data[8:end]), data[end:]
