"""Slow, half and endless clients: each is kept open while others come, and sends a little with every one of them."""

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

KEPT = 48  # connections at a time
ENDLESS = [b"x", b"X: y\r\n", b"\r\n", b"1\r\nx\r\n", b"--b\r\n", b"[", b"a=&", b"\0", b"1;x=y\r\n \r\n"]
PIECES = 8 << 10  # bytes that an endless client sends at a time
LINES = [*wire.LINES[:4], b"POST /v1/vision/detection", b"POST /infer/object_detection", b"POST /model/add", b"HEAD /"]


@dataclass
class Stranger:
    """What it has sent at first, what it sends then, and whether it shuts its writing side after the first."""

    first: bytes
    drip: bytes
    half: bool
    connection: socket.socket | None = None
    received: bytearray = field(default_factory=bytearray)


@st.composite
def strangers(draw: Draw) -> Stranger:
    made = draw(st.sampled_from(LINES)) + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    made += draw(
        st.sampled_from(
            [b"", b"Content-Type: application/json\r\n", b"Content-Type: multipart/form-data; boundary=b\r\n"]
        )
    )
    made += draw(wire.bodies())
    cut = draw(st.integers(0, len(made)))
    manner = draw(st.sampled_from(["slow", "half", "endless", "stopped"]))
    drip = {"slow": made[cut : cut + 1] or b"x", "endless": b""}.get(manner, b"")
    if manner == "endless":
        piece = draw(st.sampled_from(ENDLESS))
        drip = piece * (PIECES // len(piece))
    return Stranger(made[:cut], drip, manner == "half")


class Strangers:
    """Those that are open. `tell` gets the status of each answer, and `none` for who leaves without one."""

    def __init__(self, url: str, tell: Callable[[str, Any], None]) -> None:
        address = urlsplit(url)
        self._address = (address.hostname, address.port)
        self._tell = tell
        self._open: deque[Stranger] = deque()

    def add(self, new: Stranger) -> None:
        """Connect it, let the others send and read a little, and end the oldest where there are too many."""
        new = Stranger(new.first, new.drip, new.half)  # a request may be sent twice
        with contextlib.suppress(OSError):
            new.connection = socket.create_connection(self._address, 1)
            new.connection.setblocking(False)
            new.connection.send(new.first)
            if new.half:
                new.connection.shutdown(socket.SHUT_WR)
        self._open.append(new)
        for each in self._open:
            self._go_on(each)
        if len(self._open) > KEPT:
            self._end(self._open.popleft())

    def ports(self) -> set[int]:
        """Local ports of the connections that are open here."""
        return {each.connection.getsockname()[1] for each in self._open if each.connection}

    def _go_on(self, stranger: Stranger) -> None:
        if not stranger.connection:
            return
        with contextlib.suppress(OSError):
            if stranger.drip and not stranger.half:
                stranger.connection.send(stranger.drip)
        with contextlib.suppress(OSError):
            stranger.received += stranger.connection.recv(1 << 16)

    def _end(self, stranger: Stranger) -> None:
        if stranger.connection:
            stranger.connection.close()
        for status in re.findall(rb"(?m)^HTTP/1\.1 (\d{3})", stranger.received) or [b"none"]:
            self._tell(status.decode(), (stranger.first, stranger.drip[:50], stranger.half))

    def close(self) -> None:
        while self._open:
            self._end(self._open.popleft())
