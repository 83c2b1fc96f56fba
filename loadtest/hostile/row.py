"""The definition of an attack: the server's settings, the requests and the limits."""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

MB = 1 << 20
BUDGET = {"max_inflight_bytes": 256 * MB, "max_inflight_pixels": 60_000_000}  # default of every row
TIMEOUTS_MS = {"head_timeout_ms": 1000, "keep_alive_ms": 1000, "send_timeout_ms": 1000}  # of the quick form
REFUSED = r"4\d\d|503|closed|reset"  # a client error, "busy", or a closed connection


@dataclass
class Outcome:
    """Counts the responses and times of the attackers. Times are seconds of one connection."""

    statuses: Counter[str] = field(default_factory=Counter)
    answers_s: list[float] = field(default_factory=list)
    closed_s: list[float] = field(default_factory=list)  # from connecting until the server has closed
    left_open: int = 0  # connections that the server still kept after patience_s
    largest_answer: int = 0  # bytes

    def answered(self, status: str, seconds: float, size: int = 0) -> None:
        self.statuses[status] += 1
        self.answers_s.append(seconds)
        self.largest_answer = max(self.largest_answer, size)


@dataclass
class Target:
    """The attacked server."""

    host: str
    port: int
    grpc_port: int
    pid: int
    quick: bool = False
    once: bool = False  # the attack is not repeated
    outcome: Outcome = field(default_factory=Outcome)

    def size(self, full: int, quick: int) -> int:
        """Return `full`, or `quick` in the quick form."""
        return quick if self.quick else full

    @property
    def patience_s(self) -> float:
        """Seconds to wait until the server closes a connection."""
        return 8.0 if self.quick else 18.0


Attack = Callable[[Target], Awaitable[None]]


@dataclass(frozen=True)
class Row:
    """An attack and its limits, in addition to those of every row (see `play`)."""

    name: str
    kind: str
    text: str
    attack: Attack
    settings: dict[str, Any] = field(default_factory=dict)
    keys: bool = False  # the server has API_KEYS; the good client sends one, the attackers do not
    files: int = 0  # `ulimit -n` of the server
    statuses: str = REFUSED  # pattern of the statuses that attackers may get
    memory_mb: int | None = None  # maximum above base; None = the configured budget + 150
    answer_s: float | None = None  # maximum of the median response time of attackers
    end: str = "SIGTERM"
    end_after_s: float = 1.5  # from the start of the attack to the signal
    log: str = ""  # pattern that the log must match
    shares_engine: bool = False  # the attackers' images are inferred too, so the good client may wait for them
    good_from_s: float = 0.0  # evaluate the good client from this time after the start of the attack

    def __post_init__(self) -> None:
        assert self.name not in ROWS, self.name

    @property
    def budget_mb(self) -> float:
        given = BUDGET | self.settings
        if self.memory_mb is not None:
            return self.memory_mb
        return (given["max_inflight_bytes"] + 4 * given["max_inflight_pixels"]) / MB + 150


ROWS: dict[str, Row] = {}


def row(name: str, kind: str, text: str, **more: Any) -> Callable[[Attack], Attack]:
    """Register the decorated attack."""

    def register(attack: Attack) -> Attack:
        ROWS[name] = Row(name, kind, text, attack, **more)
        return attack

    return register
