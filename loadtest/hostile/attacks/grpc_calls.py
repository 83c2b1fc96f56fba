"""gRPC: large messages."""

import asyncio
import gzip

import grpc

from loadtest.hostile.row import MB, Target, row

KIND = "gRPC"
PATH = "/inference.GRPCInferenceService/"
NO_LIMIT = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


async def ask(target: Target, method: str, data: bytes, compression: grpc.Compression | None = None) -> None:
    """Make one call on its own connection; `data` is the serialized message."""
    loop = asyncio.get_running_loop()
    started, options = loop.time(), [*NO_LIMIT, ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"{target.host}:{target.grpc_port}", options=options) as channel:
        call = channel.unary_unary(PATH + method, request_serializer=bytes)
        try:
            await call(data, timeout=20, compression=compression)
            status = "OK"
        except grpc.aio.AioRpcError as error:
            status = error.code().name
    target.outcome.answered(status, loop.time() - started)


async def at_once(
    target: Target, method: str, data: bytes, count: int, compression: grpc.Compression | None = None
) -> None:
    await asyncio.gather(*(ask(target, method, data, compression) for _ in range(count)))


SHUT = {"keys": True, "statuses": "UNAUTHENTICATED|RESOURCE_EXHAUSTED|UNAVAILABLE"}
BUSY = {"statuses": "OK|INVALID_ARGUMENT|RESOURCE_EXHAUSTED|UNAVAILABLE|UNIMPLEMENTED|DEADLINE_EXCEEDED|NOT_FOUND"}


def field(number: int, data: bytes) -> bytes:
    """Return a Protocol Buffers field of type bytes or message."""
    size, length = len(data), bytearray()
    while size >= 128:
        length.append(size % 128 + 128)
        size //= 128
    return bytes([number << 3 | 2, *length, size]) + data


@row("grpc-large-messages", KIND, "12 messages of 90 MB without a key", **SHUT)
async def grpc_large_messages(target: Target) -> None:
    await at_once(target, "ModelInfer", field(7, bytes(target.size(90 * MB, 20 * MB))), target.size(12, 4))


@row(
    "grpc-large-messages-others",
    KIND,
    "6 messages of 90 MB without a key to each of the other calls",
    **SHUT | {"statuses": "UNAUTHENTICATED|RESOURCE_EXHAUSTED|UNAVAILABLE|INVALID_ARGUMENT|OK"},
)
async def grpc_large_messages_others(target: Target) -> None:
    data = field(7, bytes(target.size(90 * MB, 20 * MB)))
    for method in ("ServerLive", "ModelMetadata", "RepositoryModelLoad"):
        await at_once(target, method, data, target.size(6, 2))


@row("grpc-large-open", KIND, "12 messages of 90 MB to a server without keys", **BUSY)
async def grpc_large_open(target: Target) -> None:
    await at_once(target, "ModelInfer", field(7, bytes(target.size(90 * MB, 20 * MB))), target.size(12, 4))


@row("grpc-small-fields", KIND, "8 messages of 20 MB with millions of fields", **BUSY)
async def grpc_small_fields(target: Target) -> None:
    size = target.size(20 * MB, 2 * MB)
    for each in (field(5, b""), field(6, b""), field(7, b""), field(5, field(5, b"")), field(4, field(1, b"a"))):
        await at_once(target, "ModelInfer", each * (size // len(each)), target.size(8, 2))


@row("grpc-gzip", KIND, "24 messages of 90 MB, compressed by gzip to 90 KB", **BUSY)
async def grpc_gzip(target: Target) -> None:
    data = field(7, bytes(target.size(90 * MB, 20 * MB)))
    await at_once(target, "ModelInfer", data, target.size(24, 6), grpc.Compression.Gzip)
    await at_once(target, "ModelInfer", gzip.compress(data), 2)
