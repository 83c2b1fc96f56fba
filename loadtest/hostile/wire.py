"""The attackers' sockets: send a request, hold a connection, or never read."""

import asyncio
import contextlib
import re
import socket
import time
from collections.abc import Iterable
from pathlib import Path

from loadtest.hostile.row import Target

CONNECT_S = 5.0
ASK_S = 20.0  # maximum wait for a response
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


def head(line: str, *headers: str) -> bytes:
    """Return the head of a request from "POST /v1/predict" and "Name: value" lines."""
    return "\r\n".join([f"{line} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]).encode("latin-1")


def post(path: str, body: bytes, kind: str = "application/json", *headers: str) -> bytes:
    return head(f"POST {path}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", *headers) + body


async def connect(target: Target, receive_buffer: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a connection. Raises OSError or TimeoutError."""
    plain = socket.socket()
    plain.setblocking(False)
    if receive_buffer:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        async with asyncio.timeout(CONNECT_S):
            await asyncio.get_running_loop().sock_connect(plain, (target.host, target.port))
    except BaseException:
        plain.close()
        raise
    return await asyncio.open_connection(sock=plain)


async def ask(target: Target, request: bytes | Iterable[bytes], patience_s: float = ASK_S) -> str:
    """Send a request while reading; return the status, "closed", "reset", "silent" or "unreachable"."""
    started, status, size = time.monotonic(), "silent", 0
    try:
        reader, writer = await connect(target)
    except (OSError, TimeoutError):
        target.outcome.answered("unreachable", time.monotonic() - started)
        return "unreachable"
    writing = asyncio.create_task(_write(writer, request))
    try:
        async with asyncio.timeout(patience_s):
            status, size = await _read_response(reader)
    except TimeoutError:
        pass
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        writer.transport.abort()
    target.outcome.answered(status, time.monotonic() - started, size)
    return status


async def _write(writer: asyncio.StreamWriter, request: bytes | Iterable[bytes]) -> None:
    with contextlib.suppress(OSError):
        for part in [request] if isinstance(request, bytes) else request:
            writer.write(part)
            await writer.drain()


async def _read_response(reader: asyncio.StreamReader) -> tuple[str, int]:
    """Return the status of the first response that is no 100, and its size in bytes."""
    try:
        while True:
            start = await reader.readuntil(b"\r\n\r\n")
            if not (found := _STATUS.match(start)):
                return "garbage", len(start)
            if found[1] != b"100":
                break
        length = _LENGTH.search(start)
        left = size = int(length[1]) if length else 0
        while left and (data := await reader.read(min(left, 1 << 20))):
            left -= len(data)
        return (found[1].decode() if not left else f"{found[1].decode()} cut"), len(start) + size
    except asyncio.IncompleteReadError:
        return "closed", 0
    except asyncio.LimitOverrunError:
        return "garbage", 0
    except OSError:
        return "reset", 0


async def hold(target: Target, first: bytes, drip: bytes = b"", every_s: float = 1.0) -> None:
    """Send `first`, then `drip` every `every_s`, until the server closes or patience_s ends."""
    started = time.monotonic()
    try:
        reader, writer = await connect(target)
    except (OSError, TimeoutError):
        target.outcome.answered("unreachable", time.monotonic() - started)
        return
    received = bytearray()
    reading = asyncio.create_task(_read_all(reader, received))
    writer.write(first)
    while not reading.done() and time.monotonic() < started + target.patience_s:
        await asyncio.wait([reading], timeout=every_s)
        if drip and not reading.done():
            writer.write(drip)
    seconds = time.monotonic() - started
    found = [status.decode() for status in _STATUS.findall(bytes(received)) if status != b"100"]
    target.outcome.statuses[found[0] if found else "closed" if reading.done() else "held"] += 1
    if reading.done():
        target.outcome.closed_s.append(seconds)
    else:
        target.outcome.left_open += 1
        reading.cancel()
    writer.transport.abort()


async def _read_all(reader: asyncio.StreamReader, received: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(1 << 16):
            received += data[: 1024 - len(received)] if len(received) < 1024 else b""


async def never_read(target: Target, request: bytes, count: int) -> None:
    """Send `request` on `count` connections with small windows without reading; count those that the server keeps."""
    started, loop, sockets = time.monotonic(), asyncio.get_running_loop(), {}
    for _ in range(count):
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.setblocking(False)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(CONNECT_S):
                await loop.sock_connect(plain, (target.host, target.port))
            sockets[plain.getsockname()[1]] = plain
    sending = [asyncio.create_task(_send(each, request)) for each in sockets.values()]
    left = set(sockets)
    while left and time.monotonic() < started + target.patience_s:
        await asyncio.sleep(0.25)
        closed = left - server_peers(target.port)
        target.outcome.closed_s += [time.monotonic() - started] * len(closed)
        left -= closed
    target.outcome.left_open += len(left)
    target.outcome.statuses["held" if left else "closed"] += len(sockets)
    for each in sending:
        each.cancel()
    await asyncio.gather(*sending, return_exceptions=True)
    for plain in sockets.values():
        plain.close()


async def _send(plain: socket.socket, request: bytes) -> None:
    with contextlib.suppress(OSError):
        await asyncio.get_running_loop().sock_sendall(plain, request)


def server_peers(port: int) -> set[int]:
    """Return the client ports of all connections that a process still holds at this local port, from /proc/net/tcp."""
    peers = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, *_, inode = line.split()[:10]
        if int(local.rpartition(":")[2], 16) == port and inode != "0":
            peers.add(int(remote.rpartition(":")[2], 16))
    return peers


async def rounds(seconds: float, every_s: float, *calls: object) -> None:
    """Call each of `calls` in turn, with pauses, for `seconds`, and each at least once."""
    started = time.monotonic()
    while True:
        for call in calls:
            await call()  # type: ignore[operator]
            await asyncio.sleep(every_s)
        if time.monotonic() > started + seconds:
            return
