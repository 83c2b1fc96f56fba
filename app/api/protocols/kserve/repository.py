"""The KServe calls, independent of the transport: metadata, statistics and inference."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import ValidationError

from app import __version__
from app.api.errors import explain_validation
from app.api.protocols.kserve.models import ImageModel, Model, P, TensorModel, export_metadata
from app.api.protocols.kserve.specs import TensorSpec
from app.api.protocols.kserve.statistics import Statistics
from app.api.protocols.kserve.tensors import BYTES, Tensor
from app.api.protocols.predict import PredictParams
from app.api.routing import count_pixels
from app.errors import BadParameter, NotFound, NotReady, Unsupported
from app.model import ModelInfo
from app.serving.service import Service
from app.system.gather import together
from app.vision.postprocess import Thresholds

PROTO_BYTES = 8  # of segment's mask prototypes per pixel of a frame: 32 in FP32, a quarter of its height and width
VERSION = "1"  # the only version of both models

_PLATFORMS = {"tensorrt": "tensorrt_plan", "onnxruntime": "onnxruntime_onnx", "pytorch": "pytorch_libtorch"}
_KINDS = (TensorModel, ImageModel)


@dataclass(frozen=True, slots=True)
class Inference:
    """An inference request, from either transport."""

    inputs: Sequence[Tensor]
    outputs: Sequence[str] = ()  # requested names; empty = all
    parameters: dict[str, Any] | None = None
    id: str = ""


class Repository:
    """Both models and their statistics, shared by HTTP and gRPC."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._statistics = {kind.suffix: Statistics() for kind in _KINDS}

    def find(self, name: str, version: str = "") -> Model[Any]:
        """Raises NotFound for an unknown name or version, and NotReady before the model is known."""
        info, max_images = self._service.predictor.model, self._service.settings.max_files
        for kind in _KINDS:
            if name == info.name + kind.suffix and version in ("", VERSION):
                return kind(info, max_images)
        known = f"there is {info.name}, which takes tensors, and {info.name}{ImageModel.suffix}, which takes images"
        requested = f"{name!r} version {version}" if version else repr(name)
        raise NotFound(f"Request for unknown model: {requested} is not found; {known}, version {VERSION} of each")

    def require_ready(self, name: str, version: str = "") -> None:
        """Raises NotFound as `find` does, and NotReady."""
        self.find(name, version)
        if not self._service.ready:
            raise NotReady(f"Model {name!r} is not ready: {self._service.readiness()['phase']}")

    def server(self) -> dict[str, Any]:
        extensions = ["binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics"]
        return {"name": "yolopard", "version": __version__, "extensions": extensions}

    def metadata(self, name: str, version: str = "") -> dict[str, Any]:
        model = self.find(name, version)

        def to_json(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
            return [{"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)} for spec in specs]

        return {
            "name": model.name,
            "versions": [VERSION],
            "platform": self._platform,
            "inputs": to_json([model.input]),
            "outputs": to_json(model.outputs),
        }

    def config(self, name: str, version: str = "") -> dict[str, Any]:
        model, loaded = self.find(name, version), self._service.loaded[0]

        def to_json(specs: Sequence[TensorSpec]) -> list[dict[str, Any]]:
            types = {BYTES: "TYPE_STRING"}
            return [
                {
                    "name": spec.name,
                    "data_type": types.get(spec.datatype, f"TYPE_{spec.datatype}"),
                    "dims": list(spec.shape[1:] if model.max_batch else spec.shape),
                }
                for spec in specs
            ]

        return {
            "name": model.name,
            "platform": self._platform,
            "backend": loaded.name,
            "max_batch_size": model.max_batch,
            "input": to_json([model.input]),
            "output": to_json(model.outputs),
            "dynamic_batching": {
                "preferred_batch_size": [loaded.profile.batch],
                "max_queue_delay_microseconds": round(self._service.model_settings.max_wait_ms * 1000),
            },
            "parameters": {"metadata": {"string_value": str(export_metadata(model.info))}}
            | {spec.name: {"string_value": spec.layout} for spec in (model.input, *model.outputs)},
        }

    @property
    def _platform(self) -> str:
        name = self._service.loaded[0].name
        return _PLATFORMS.get(name, name)

    def statistics(self, name: str = "", version: str = "") -> dict[str, Any]:
        """Return the statistics of one model, or of both without a name. Raises NotFound."""
        own = self._service.predictor.model.name
        models = [self.find(name, version)] if name else [self.find(own + kind.suffix) for kind in _KINDS]
        return {
            "model_stats": [
                {"name": model.name, "version": VERSION, **self._statistics[model.suffix].to_json()} for model in models
            ]
        }

    def index(self) -> list[dict[str, str]]:
        """Return name, version and state of both models; empty before the model is known."""
        if not self._service.stored:
            return []
        own = self._service.stored.manifest.model.name
        state = {"state": "READY"} if self._service.ready else {"state": "UNAVAILABLE", "reason": "not ready"}
        return [{"name": own + kind.suffix, "version": VERSION, **state} for kind in _KINDS]

    def load(self, name: str, *, changed: bool) -> None:
        """Do nothing: the model is loaded. Raises NotFound, and Unsupported if files or a configuration are given."""
        self.find(name)
        if changed:
            raise Unsupported("models cannot be changed while the server runs: set WEIGHTS and restart it")

    def unload(self, name: str) -> None:
        """Raises NotFound, else Unsupported."""
        self.find(name)
        raise Unsupported("models cannot be unloaded while the server runs: stop it")

    def weigh(self, model: Model[Any], requested: Inference) -> tuple[int, int]:
        """Return the number of pixels in the request's images, and the bytes of mask prototypes in the response."""
        max_pixels = self._service.settings.max_pixels
        pixels = sum(
            count_pixels(tensor.elements, max_pixels) if tensor.datatype == BYTES else math.prod(tensor.shape) // 3
            for tensor in requested.inputs
        )
        has_protos = model.info.task == "segment" and isinstance(model, TensorModel)
        return pixels, PROTO_BYTES * pixels if has_protos else 0

    async def infer(self, model: Model[Any], requested: Inference, deadline: float) -> list[Tensor]:
        """Return the requested outputs, in the requested order. `deadline` is a loop time.

        Raises BadParameter, and the predictor's errors.
        """
        statistics, started = self._statistics[model.suffix], time.perf_counter()
        try:
            predictions, outputs = await self._infer(model, requested, deadline)
        except BaseException:  # also if the client disconnects
            statistics.fail(time.perf_counter() - started)
            raise
        statistics.succeed(time.perf_counter() - started, predictions)
        return outputs

    async def _infer(self, model: Model[P], requested: Inference, deadline: float) -> tuple[list[P], list[Tensor]]:
        parameters = dict(requested.parameters or {})
        parameters.pop("priority", None)  # ignored: all requests have the same priority
        parameters.pop("triton_enable_empty_final_response", None)  # from perf_analyzer; each request has one response
        deadline = min(deadline, _deadline(parameters.pop("timeout", None)))
        thresholds = _thresholds(model.defaults | parameters, model.info)
        given, known = _only_input(model, requested.inputs), [spec.name for spec in model.outputs]
        if unknown := [name for name in requested.outputs if name not in known]:
            raise BadParameter(f"unexpected inference output {unknown[0]!r} for model {model.name!r}")
        if len(set(requested.outputs)) < len(requested.outputs):
            raise BadParameter(f"outputs: {', '.join(requested.outputs[:9])}: each may be requested once")
        predictor = self._service.predictor
        found = await together(model.works(given, predictor, thresholds, deadline), "image")
        write = partial(model.tensors, found, thresholds, requested.outputs or known)
        return found, await predictor.finish(write) if model.info.task == "segment" else write()  # masks take long


def _only_input(model: Model[Any], inputs: Sequence[Tensor]) -> Tensor:
    """Return the model's one input. Raises BadParameter for other inputs or a wrong number of images."""
    spec = model.input
    if [tensor.name for tensor in inputs] != [spec.name]:
        names = ", ".join(tensor.name for tensor in inputs)
        raise BadParameter(f"model {model.name!r} has one input, {spec.name!r}; the request has {names or 'none'}")
    given = inputs[0]
    if not 0 < (count := given.shape[0] if given.shape else 0) <= model.max_images:
        raise BadParameter(f"{spec.name}: {count} images; a request has 1 to {model.max_images}")
    return given


def _thresholds(parameters: dict[str, Any], info: ModelInfo) -> Thresholds:
    """Return the thresholds for postprocessing. Raises BadParameter."""
    classes = parameters.get("classes", "")
    try:
        return PredictParams.model_validate(parameters | {"classes": [str(classes)]}).thresholds(info)
    except ValidationError as error:
        raise explain_validation(error) from error


def _deadline(timeout_us: Any) -> float:
    """Return the loop time of the deadline, inf without a timeout. Raises BadParameter."""
    if timeout_us is None:
        return float("inf")
    if not isinstance(timeout_us, int) or timeout_us <= 0:
        raise BadParameter(f"timeout: {timeout_us!r} is not a number of microseconds")
    return asyncio.get_running_loop().time() + timeout_us / 1e6
