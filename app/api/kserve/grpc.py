"""inference.GRPCInferenceService on a port of its own, with the messages of Triton's client package."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2 as messages

from app.api.keys import require_key
from app.api.kserve.models import Model
from app.api.kserve.repository import VERSION, Inference, Repository
from app.api.kserve.tensors import BYTES, Tensor, from_elements, from_raw, from_values
from app.api.service import Service
from app.errors import BadParameter, MalformedBody, NotReady, ServiceError, YolopardError

crash_log = logging.getLogger("yolopard.crash")

_SERVICE = "inference.GRPCInferenceService"
_OPEN = ("ServerLive", "ServerReady", "ModelReady")  # to who shows no key
_STATUS = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}  # what else there is, the client can mend: INVALID_ARGUMENT
_CONTENTS = {"FP32": "fp32_contents", "UINT8": "uint_contents"}


@asynccontextmanager
async def serving(service: Service, models: Repository, port: int) -> AsyncIterator[None]:
    """Open meanwhile; at the end what has come in is still answered. Raises RuntimeError for a port that is taken."""
    settings = service.settings
    most = max(settings.max_tensor_bytes, settings.max_body_bytes)
    limits = [("grpc.max_receive_message_length", most), ("grpc.max_send_message_length", -1)]
    calls = _Calls(service, models)
    server = grpc.aio.server(options=[*limits, ("grpc.so_reuseport", 0)])
    server.add_registered_method_handlers(_SERVICE, calls.handlers())
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    server.add_insecure_port(f"{host}:{port}")
    await server.start()
    try:
        yield
    finally:
        calls.closing.set()
        await server.stop(settings.deadline_ms / 1000)


class _Calls:
    """Those of the service that are answered here. gRPC itself answers UNIMPLEMENTED to the others."""

    def __init__(self, service: Service, models: Repository) -> None:
        self._service, self._models = service, models
        self.closing = asyncio.Event()  # streams take no further request

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        """By name."""
        models = self._models
        facts: dict[str, Callable[[Any], dict[str, Any] | None]] = {
            "ServerLive": lambda _: {"live": True},
            "ServerReady": lambda _: {"ready": self._service.ready},
            "ServerMetadata": lambda _: models.server(),
            "ModelReady": self._model_ready,
            "ModelMetadata": lambda asked: models.metadata(asked.name, asked.version),
            "ModelConfig": lambda asked: {"config": models.config(asked.name, asked.version)},
            "ModelStatistics": lambda asked: models.statistics(asked.name, asked.version),
            "RepositoryIndex": lambda _: {"models": models.index()},
            "RepositoryModelLoad": lambda asked: models.load(asked.model_name, changed=bool(asked.parameters)),
            "RepositoryModelUnload": lambda asked: models.unload(asked.model_name),
        }
        one, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        keys = self._service.settings.api_keys
        calls = {name: _fact(name, fact, () if name in _OPEN else keys) for name, fact in facts.items()}
        return {name: _handler(one, name, call) for name, call in calls.items()} | {
            "ModelInfer": _handler(one, "ModelInfer", self._infer_one),
            "ModelStreamInfer": _handler(stream, "ModelStreamInfer", self._infer_stream),
        }

    def _model_ready(self, asked: Any) -> dict[str, Any]:
        try:
            self._models.require_ready(asked.name, asked.version)
        except NotReady:
            return {"ready": False}
        return {"ready": True}

    async def _infer_one(self, data: bytes, context: Any) -> Any:
        try:
            with self._counted():
                return await self._infer(_read(messages.ModelInferRequest, data), context)
        except YolopardError as error:
            await _abort(context, error)

    async def _infer_stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        """One after the other, as they came; an error ends only its own request."""
        async for data in _until(self.closing, requests):
            request_id = ""
            try:
                with self._counted():
                    request = _read(messages.ModelInferRequest, data)
                    request_id = request.id
                    response = await self._infer(request, context)
            except YolopardError as error:
                nothing = messages.ModelInferResponse(id=request_id)
                yield messages.ModelStreamInferResponse(error_message=str(error), infer_response=nothing)
            else:
                response.parameters["triton_final_response"].bool_param = True
                yield messages.ModelStreamInferResponse(infer_response=response)

    async def _infer(self, request: Any, context: Any) -> Any:
        service, models = self._service, self._models
        remaining_s = context.time_remaining()
        deadline_s = min(service.settings.deadline_ms / 1000, math.inf if remaining_s is None else remaining_s)
        deadline = asyncio.get_running_loop().time() + deadline_s
        with _keyed(service.settings.api_keys, context), service.predictor.admitted(deadline_s):
            model = models.find(request.model_name, request.model_version)
            outputs = await models.infer(model, _inference(request), deadline)
            return _response(model, request.id, outputs)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """In the metrics, with the status that HTTP would have."""
        service, started, status = self._service, time.perf_counter(), 200
        try:
            yield
        except YolopardError as error:
            status = error.status
            if isinstance(error, ServiceError):
                service.count_refusal(error.code)
            raise
        except asyncio.CancelledError:
            status = 499
            service.count_refusal("client_gone")
            raise
        except Exception as error:
            status = 500
            crash_log.exception("a defect, please report it")
            raise YolopardError("an internal error; the server's log has more") from error
        finally:
            deployed = service.deployed[:1]
            labels = [(each.labels.model, each.name) for each in deployed] or [("", "")]
            service.metrics.requests.labels(*labels[0], "kserve", str(status)).inc()
            service.metrics.request_seconds.labels(*labels[0], "kserve").observe(time.perf_counter() - started)


async def _until(closing: asyncio.Event, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """A stream's requests: its client may keep it open without any, which must not keep the server."""
    ended = asyncio.ensure_future(closing.wait())
    following = asyncio.ensure_future(anext(requests, None))
    try:
        while True:
            await asyncio.wait((following, ended), return_when=asyncio.FIRST_COMPLETED)
            if not following.done() or following.result() is None:
                return
            yield following.result()
            following = asyncio.ensure_future(anext(requests, None))
    finally:
        following.cancel()
        ended.cancel()


def _handler(kind: Callable[..., grpc.RpcMethodHandler], name: str, call: Callable[..., Any]) -> grpc.RpcMethodHandler:
    """Requests reach `call` as bytes: what gRPC itself cannot read would be a defect of the server, by its status."""
    return kind(call, response_serializer=getattr(messages, f"{name}Response").SerializeToString)


def _read(kind: Any, data: bytes) -> Any:
    """Raises MalformedBody."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise MalformedBody(f"the message is no {kind.DESCRIPTOR.name}") from error


@contextmanager
def _keyed(keys: Sequence[str], context: Any) -> Iterator[None]:
    """Raises Unauthorized."""
    require_key(keys, {name: value for name, value in context.invocation_metadata() if isinstance(value, str)})
    yield


def _fact(name: str, fact: Callable[[Any], dict[str, Any] | None], keys: Sequence[str]) -> Callable[[Any, Any], Any]:
    asked, told = (getattr(messages, f"{name}{side}") for side in ("Request", "Response"))

    async def call(data: bytes, context: Any) -> Any:
        try:
            with _keyed(keys, context):
                return ParseDict(fact(_read(asked, data)) or {}, told())
        except YolopardError as error:
            await _abort(context, error)

    return call


async def _abort(context: Any, error: YolopardError) -> None:
    await context.abort(_STATUS.get(error.status, grpc.StatusCode.INVALID_ARGUMENT), str(error))


def _inference(request: Any) -> Inference:
    """Raises BadParameter."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise BadParameter(f"raw_input_contents are those of {len(raw)} inputs, and there are {len(request.inputs)}")
    inputs = [
        from_raw(each.name, each.datatype, tuple(each.shape), raw[i]) if raw else _typed(each)
        for i, each in enumerate(request.inputs)
    ]
    parameters = {name: _value(parameter) for name, parameter in request.parameters.items()}
    return Inference(inputs, [output.name for output in request.outputs], parameters, request.id)


def _typed(given: Any) -> Tensor:
    """An input whose values are in `contents`."""
    name, shape, contents = given.name, tuple(given.shape), given.contents
    if given.datatype == BYTES:
        return from_elements(name, shape, list(contents.bytes_contents))
    if given.datatype not in _CONTENTS:
        raise BadParameter(f"{name}: {given.datatype} is read from raw_input_contents")
    return from_values(name, given.datatype, shape, list(getattr(contents, _CONTENTS[given.datatype])))


def _value(parameter: Any) -> Any:
    return getattr(parameter, parameter.WhichOneof("parameter_choice") or "bool_param")


def _response(model: Model[Any], request_id: str, outputs: list[Tensor]) -> Any:
    described = [{"name": output.name, "datatype": output.datatype, "shape": output.shape} for output in outputs]
    raw = [output.raw for output in outputs]
    return messages.ModelInferResponse(
        model_name=model.name, model_version=VERSION, id=request_id, outputs=described, raw_output_contents=raw
    )
