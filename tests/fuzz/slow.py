"""Clients that are slow, stop, close their writing side or send without end.

Their connections stay open while others are added. Each sends a little whenever another is added.
"""

import contextlib
import re
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from hypothesis import strategies as st

from fuzz import wire
from fuzz.parts import Draw

MAX_OPEN = 48  # connections at the same time
ENDLESS = [b"x", b"X: y\r\n", b"\r\n", b"1\r\nx\r\n", b"--b\r\n", b"[", b"a=&", b"\0", b"1;x=y\r\n \r\n"]
PIECE_BYTES = 8 << 10  # that an endless client sends at a time
LINES = [*wire.LINES[:4], b"POST /v1/vision/detection", b"POST /infer/object_detection", b"POST /model/add", b"HEAD /"]


@dataclass
class SlowClient:
    """A client that sends `first`, then `repeated` again and again. If `half`, it only sends `first` and closes its
    writing side.
    """

    first: bytes
    repeated: bytes
    half: bool
    connection: socket.socket | None = None
    received: bytearray = field(default_factory=bytearray)


@st.composite
def slow_clients(draw: Draw) -> SlowClient:
    request = draw(st.sampled_from(LINES)) + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    request += draw(
        st.sampled_from(
            [b"", b"Content-Type: application/json\r\n", b"Content-Type: multipart/form-data; boundary=b\r\n"]
        )
    )
    request += draw(wire.bodies())
    cut = draw(st.integers(0, len(request)))
    kind = draw(st.sampled_from(["slow", "half", "endless", "stopped"]))
    repeated = {"slow": request[cut : cut + 1] or b"x", "endless": b""}.get(kind, b"")
    if kind == "endless":
        piece = draw(st.sampled_from(ENDLESS))
        repeated = piece * (PIECE_BYTES // len(piece))
    return SlowClient(request[:cut], repeated, kind == "half")


class SlowClients:
    """The open connections. `report` receives the status of each response, or `none` if a client got no response."""

    def __init__(self, url: str, report: Callable[[str, Any], None]) -> None:
        address = urlsplit(url)
        self._address = (address.hostname, address.port)
        self._report = report
        self._open: deque[SlowClient] = deque()

    def add(self, new: SlowClient) -> None:
        """Connect the client, let all send and read a little, and close the oldest if more than MAX_OPEN are open."""
        new = SlowClient(new.first, new.repeated, new.half)  # a request may be sent twice
        with contextlib.suppress(OSError):
            new.connection = socket.create_connection(self._address, 1)
            new.connection.setblocking(False)
            new.connection.send(new.first)
            if new.half:
                new.connection.shutdown(socket.SHUT_WR)
        self._open.append(new)
        for each in self._open:
            self._continue(each)
        if len(self._open) > MAX_OPEN:
            self._close(self._open.popleft())

    def ports(self) -> set[int]:
        """Return the local ports of the open connections."""
        return {each.connection.getsockname()[1] for each in self._open if each.connection}

    def _continue(self, client: SlowClient) -> None:
        if not client.connection:
            return
        with contextlib.suppress(OSError):
            if client.repeated and not client.half:
                client.connection.send(client.repeated)
        with contextlib.suppress(OSError):
            client.received += client.connection.recv(1 << 16)

    def _close(self, client: SlowClient) -> None:
        if client.connection:
            client.connection.close()
        for status in re.findall(rb"(?m)^HTTP/1\.1 (\d{3})", client.received) or [b"none"]:
            self._report(status.decode(), (client.first, client.repeated[:50], client.half))

    def close(self) -> None:
        while self._open:
            self._close(self._open.popleft())
