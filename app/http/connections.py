"""All open HTTP connections: their maximum number and their timeouts."""

import asyncio
import logging
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.http.connection import Connection

log = logging.getLogger("yolopard.http")

SWEEP_S = 0.5  # interval of the timeout checks
MAX_PIPELINE = 32  # requests that wait behind the one being answered
WINDOW_S = 5.0  # over which a rate is measured
LINGER_S = 12.0  # maximum time for reading the rest of a refused body
LINGER_BYTES, LINGER_PAUSE_S = 256 << 20, 0.002  # maximum size of that rest; pause after each read
DRAIN_S = 2.0  # maximum time that a client may delay a stopping server


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on clients, from the settings of the same names; times in s."""

    connections: int
    per_peer: int
    head_bytes: int
    head_s: float
    keep_alive_s: float
    send_s: float
    bytes_per_s: int  # minimum rate of a request body and of a response
    hosts: frozenset[str] | None  # allowed in a Host header; None = any


class Connections:
    """The open connections of one event loop. Above a limit, closes the one that the server has waited for longest:
    a normal client sends its request at once, so attackers displace each other.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.draining = False
        self._open: dict[Connection, None] = {}  # oldest first: in uvloop many have the same waiting_since
        self._of_peer: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: "Connection") -> None:
        """Add a new connection. Above a limit, close it or another one."""
        self._open[connection] = None
        self._of_peer[connection.peer] += 1
        if self._of_peer[connection.peer] > self.limits.per_peer:
            log.warning(
                "%d connections from one address, the limit MAX_CONNECTIONS_PER_PEER: one was closed",
                self.limits.per_peer,
            )
            self._close_slowest([each for each in self._open if each.peer == connection.peer], connection)
        elif len(self._open) > self.limits.connections:
            log.warning(
                "%d connections, the limit of MAX_CONNECTIONS or of the process's open files: one was closed",
                self.limits.connections,
            )
            self._close_slowest(list(self._open), connection)

    def remove(self, connection: "Connection") -> None:
        """Remove a closed connection."""
        if connection in self._open:
            del self._open[connection]
            self._of_peer[connection.peer] -= 1
            if not self._of_peer[connection.peer]:
                del self._of_peer[connection.peer]

    def _close_slowest(self, connections: list["Connection"], newcomer: "Connection") -> None:
        slowest = min(connections, key=lambda each: each.waiting_since)
        (slowest if slowest.waiting_since < math.inf else newcomer).give_way()

    async def watch(self) -> None:
        """Check all connections every SWEEP_S, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_S)
            now = loop.time()
            for connection in list(self._open):
                try:
                    connection.check(now)
                except Exception:
                    log.exception("a defect, please report it")
                    connection.transport.abort()
