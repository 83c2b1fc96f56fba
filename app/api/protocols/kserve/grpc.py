"""inference.GRPCInferenceService on a separate port, with the messages of Triton's client package."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from tritonclient.grpc import service_pb2 as messages

from app.api.auth import require_key
from app.api.protocols.kserve.grpc_calls import aborting, handler, refusal, until
from app.api.protocols.kserve.messages import InferRequest, read, read_request, write_response
from app.api.protocols.kserve.reading import Reads
from app.api.protocols.kserve.repository import Repository
from app.api.request.body import MAX_SMALL_BYTES
from app.api.routing import SMALL_DEADLINE_S
from app.errors import (
    BodyTooLarge,
    NotReady,
    Overloaded,
    ServiceError,
    YolopardError,
    forget,
)
from app.serving.inflight import Share
from app.serving.service import Service

crash_log = logging.getLogger("yolopard.crash")

CALLS_PER_CONNECTION = 256
PING_MS = 30_000
MIN_STREAMS = 16  # lower bound of the limit of open streams, for a small budget
LINGER_S = 0.5  # maximum wait for gRPC's stop() once the last call has been answered

_SERVICE = "inference.GRPCInferenceService"
_KEYLESS = ("ServerLive", "ServerReady", "ModelReady")  # calls that need no API key


@asynccontextmanager
async def serving(service: Service, models: Repository, port: int) -> AsyncIterator[None]:
    """Serve gRPC inside the block; on exit, answer the open calls first. Raises RuntimeError if the port is in use."""
    settings = service.settings
    max_message_bytes = max(settings.max_tensor_bytes, settings.max_body_bytes)
    limits = {
        "grpc.max_receive_message_length": max_message_bytes,
        "grpc.max_send_message_length": -1,
        "grpc.max_metadata_size": settings.max_head_bytes,
        "grpc.absolute_max_metadata_size": settings.max_head_bytes,
        "grpc.max_concurrent_streams": CALLS_PER_CONNECTION,
        "grpc.max_allowed_incoming_connections": settings.max_connections,
        "grpc.server_handshake_timeout_ms": round(settings.head_timeout_ms),
        # gRPC checks at this interval, so it closes connections idle for one to two intervals. Clients reconnect.
        "grpc.max_connection_idle_ms": round(settings.keep_alive_ms / 2),
        "grpc.compression_enabled_algorithms_bitset": 1,  # none: 90 KB could inflate to 90 MB before it is counted
        "grpc.keepalive_time_ms": PING_MS,  # detects clients that vanished without closing
        "grpc.keepalive_timeout_ms": round(settings.send_timeout_ms),
        "grpc.so_reuseport": 0,
    }
    calls = _Calls(service, models, max_message_bytes)
    server = grpc.aio.server(options=list(limits.items()), maximum_concurrent_rpcs=settings.max_connections)
    server.add_registered_method_handlers(_SERVICE, calls.handlers())
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    server.add_insecure_port(f"{host}:{port}")
    await server.start()
    try:
        yield
    finally:
        calls.close()
        stopping = asyncio.create_task(server.stop(settings.deadline_ms / 1000))
        await calls.idle.wait()
        await asyncio.wait({stopping}, timeout=LINGER_S)  # stop() also waits for clients stuck in the handshake


class _Calls:
    """The implemented calls of the service. gRPC itself answers UNIMPLEMENTED to all others.

    Every call is registered as a stream of requests, also those with one request: so the API key is checked before the
    first message is read, and the number of messages in memory that are not counted yet is limited.
    """

    def __init__(self, service: Service, models: Repository, max_message_bytes: int) -> None:
        self._service, self._models = service, models
        self.closing = asyncio.Event()  # set: streams accept no further request
        budget = service.inflight.max_bytes
        self._reads = Reads(max(1, budget // (2 * max_message_bytes)))
        self._free_streams = max(MIN_STREAMS, budget // max_message_bytes)
        self._open_calls = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def close(self) -> None:
        """Accept no more requests, and shorten the time limit of messages that are being read."""
        self.closing.set()
        self._reads.close()

    @contextmanager
    def _active(self) -> Iterator[None]:
        """Count an open call."""
        self._open_calls += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._open_calls -= 1
            if not self._open_calls:
                self.idle.set()

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        """Return the handlers by method name."""
        models = self._models
        by_request: dict[str, Callable[[Any], dict[str, Any] | None]] = {
            "ModelReady": self._model_ready,
            "ModelMetadata": lambda request: models.metadata(request.name, request.version),
            "ModelConfig": lambda request: {"config": models.config(request.name, request.version)},
            "ModelStatistics": lambda request: models.statistics(request.name, request.version),
            "RepositoryModelLoad": lambda request: models.load(request.model_name, changed=bool(request.parameters)),
            "RepositoryModelUnload": lambda request: models.unload(request.model_name),
        }
        without_request: dict[str, Callable[[], dict[str, Any]]] = {  # their request messages are empty and not read
            "ServerLive": lambda: {"live": True},
            "ServerReady": lambda: {"ready": self._service.ready},
            "ServerMetadata": models.server,
            "RepositoryIndex": lambda: {"models": models.index()},
        }
        one, stream = grpc.stream_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        calls = {name: self._call(name, reply) for name, reply in by_request.items()}
        calls |= {name: self._empty_call(name, reply) for name, reply in without_request.items()}
        return {name: handler(one, name, call) for name, call in calls.items()} | {
            "ModelInfer": handler(one, "ModelInfer", aborting(self._infer_one)),
            "ModelStreamInfer": handler(stream, "ModelStreamInfer", self._infer_stream),
        }

    def _call(self, name: str, reply: Callable[[Any], dict[str, Any] | None]) -> Callable[[Any, Any], Any]:
        request_type, response_type = (getattr(messages, f"{name}{side}") for side in ("Request", "Response"))

        async def call(_: AsyncIterator[bytes], context: Any) -> Any:
            with self._active(), self._service.inflight.share() as share:
                self._require_key(name, context)
                data = await self._reads.receive(context, SMALL_DEADLINE_S, share)
                if len(data) > MAX_SMALL_BYTES:
                    raise BodyTooLarge(f"the message is larger than {MAX_SMALL_BYTES} bytes")
                return ParseDict(reply(read(request_type, data)) or {}, response_type())

        return aborting(call)

    def _empty_call(self, name: str, reply: Callable[[], dict[str, Any]]) -> Callable[[Any, Any], Any]:
        response_type = getattr(messages, f"{name}Response")

        async def call(_: AsyncIterator[bytes], context: Any) -> Any:
            self._require_key(name, context)
            return ParseDict(reply(), response_type())

        return aborting(call)

    def _require_key(self, name: str, context: Any) -> None:
        """Raises Unauthorized if the call needs an API key and its metadata has no valid one."""
        if name not in _KEYLESS:
            headers = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
            require_key(self._service.settings.api_keys, headers)

    def _model_ready(self, request: Any) -> dict[str, Any]:
        try:
            self._models.require_ready(request.name, request.version)
        except NotReady:
            return {"ready": False}
        return {"ready": True}

    async def _infer_one(self, _: AsyncIterator[bytes], context: Any) -> Any:
        with self._active(), self._counted(), self._service.inflight.share() as share:
            self._require_key("ModelInfer", context)
            deadline_s = self._deadline_s(context)
            self._service.predictor.require_room(deadline_s)
            request = self._read(await self._reads.receive(context, deadline_s, share))
            return await self._infer(request, share, context)

    async def _infer_stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
        """Answer the requests of a stream one by one, in order. An error ends only its own request."""
        if refusal := self._refuse_stream(context):
            await context.abort(*refusal)
        self._free_streams -= 1
        try:
            with self._active():
                async for data in until(self.closing, requests):
                    yield await self._infer_next(data, context)
        finally:
            self._free_streams += 1

    def _refuse_stream(self, context: Any) -> tuple[grpc.StatusCode, str] | None:
        try:
            self._require_key("ModelStreamInfer", context)
            if not self._free_streams:
                raise Overloaded("the maximum number of open streams is reached")
        except YolopardError as error:
            with suppress(YolopardError), self._counted():
                raise
            return refusal(error)
        return None

    async def _infer_next(self, data: bytes, context: Any) -> Any:
        """Return the response to one request of a stream; for a YolopardError, one with its error message."""
        request_id = ""
        try:
            with self._counted(), self._service.inflight.share() as share:
                share.add_bytes(len(data))
                request = self._read(data)
                request_id = request.id
                response = await self._infer(request, share, context)
        except YolopardError as error:
            forget(error)
            empty = messages.ModelInferResponse(id=request_id)
            return messages.ModelStreamInferResponse(error_message=str(error), infer_response=empty)
        response.parameters["triton_final_response"].bool_param = True
        return messages.ModelStreamInferResponse(infer_response=response)

    def _read(self, data: bytes) -> InferRequest:
        return read_request(data, self._service.settings.max_json_bytes)

    async def _infer(self, request: InferRequest, share: Share, context: Any) -> Any:
        models, deadline_s = self._models, self._deadline_s(context)
        deadline = asyncio.get_running_loop().time() + deadline_s
        model = models.find(request.model, request.version)
        pixels, answer_bytes = models.weigh(model, request.inference)
        share.add_bytes(answer_bytes)
        share.add_pixels(pixels)
        share.admitted = True
        with self._service.predictor.admission_slot(deadline_s):
            outputs = await models.infer(model, request.inference, deadline)
            share.add_bytes(sum(output.size for output in outputs))
            return write_response(model, request.id, outputs)

    def _deadline_s(self, context: Any) -> float:
        remaining_s = context.time_remaining()
        return min(self._service.settings.deadline_ms / 1000, math.inf if remaining_s is None else remaining_s)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the request in the metrics, with the HTTP status that its outcome maps to."""
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
            loaded = service.loaded[:1]
            labels = [(each.labels.model, each.name) for each in loaded] or [("", "")]
            service.metrics.requests.labels(*labels[0], "kserve", str(status)).inc()
            service.metrics.request_seconds.labels(*labels[0], "kserve").observe(time.perf_counter() - started)
