"""All HTTP connections: how many there may be, and how long each may keep the server waiting."""

import asyncio
import logging
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.http.connection import Connection

log = logging.getLogger("yolopard.http")

SWEEP_S = 0.5
MAX_PIPELINE = 32  # requests behind the one that is being answered
WINDOW_S = 5.0  # over which a rate is seen
LINGER_S = 12.0  # longest time for which the rest of a refused body is read
LINGER_BYTES, LINGER_PAUSE_S = 256 << 20, 0.002  # most of it, and a pause after each piece
DRAIN_S = 2.0  # for which a client may keep the server waiting that is stopping


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may take, from the settings of the same names; times in s."""

    connections: int
    per_peer: int
    head_bytes: int
    head_s: float
    keep_alive_s: float
    send_s: float
    bytes_per_s: int  # of a body coming in, and of an answer going out
    hosts: frozenset[str] | None  # that a Host header may name; None = any


class Connections:
    """Belongs to one event loop. Where there are too many, the one that has kept the server waiting longest is closed:
    a sound client sends its request at once, so that attackers take places from each other.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.draining = False
        self._open: dict[Connection, None] = {}  # the oldest first: many have the same time in uvloop
        self._of_peer: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: "Connection") -> None:
        """A new one; it or another one is closed where there are too many."""
        self._open[connection] = None
        self._of_peer[connection.peer] += 1
        if self._of_peer[connection.peer] > self.limits.per_peer:
            log.warning(
                "%d connections from one address, as MAX_CONNECTIONS_PER_PEER allows: one was closed",
                self.limits.per_peer,
            )
            self._close_slowest([each for each in self._open if each.peer == connection.peer], connection)
        elif len(self._open) > self.limits.connections:
            log.warning(
                "%d connections, as many as MAX_CONNECTIONS or the process's open files allow: one was closed",
                self.limits.connections,
            )
            self._close_slowest(list(self._open), connection)

    def remove(self, connection: "Connection") -> None:
        """It is closed."""
        if connection in self._open:
            del self._open[connection]
            self._of_peer[connection.peer] -= 1
            if not self._of_peer[connection.peer]:
                del self._of_peer[connection.peer]

    def _close_slowest(self, connections: list["Connection"], newcomer: "Connection") -> None:
        slowest = min(connections, key=lambda each: each.waiting_since)
        (slowest if slowest.waiting_since < math.inf else newcomer).give_way()

    async def watch(self) -> None:
        """Close what is overdue, until cancelled."""
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
