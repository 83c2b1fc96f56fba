"""One attack: its server's settings, what it sends, and what must come of it."""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

MB = 1 << 20
BUDGET = {"max_inflight_bytes": 256 * MB, "max_inflight_pixels": 60_000_000}  # of every row that gives no other
TIMEOUTS_MS = {"head_timeout_ms": 1000, "keep_alive_ms": 1000, "send_timeout_ms": 1000}  # of the quick form
REFUSED = r"4\d\d|503|closed|reset"  # with an error of the client's, with "busy", or by closing


@dataclass
class Outcome:
    """What the strangers saw. Times are seconds of one connection."""

    statuses: Counter[str] = field(default_factory=Counter)
    answers_s: list[float] = field(default_factory=list)
    closed_s: list[float] = field(default_factory=list)  # from connecting until the server has closed
    left_open: int = 0  # connections that the server still had when patience ended
    largest_answer: int = 0  # bytes

    def answered(self, status: str, seconds: float, size: int = 0) -> None:
        self.statuses[status] += 1
        self.answers_s.append(seconds)
        self.largest_answer = max(self.largest_answer, size)


@dataclass
class Target:
    """The server, as an attack sees it."""

    host: str
    port: int
    grpc_port: int
    pid: int
    quick: bool = False
    once: bool = False  # the attack is not begun again when it is over
    outcome: Outcome = field(default_factory=Outcome)

    def size(self, full: int, quick: int) -> int:
        """How much or how many, in the full or in the quick form."""
        return quick if self.quick else full

    @property
    def patience_s(self) -> float:
        """For how long a connection is watched that the server should close."""
        return 8.0 if self.quick else 18.0


Attack = Callable[[Target], Awaitable[None]]


@dataclass(frozen=True)
class Row:
    """What must hold besides what holds for every row (see `play`)."""

    name: str
    kind: str
    text: str
    attack: Attack
    settings: dict[str, Any] = field(default_factory=dict)
    keys: bool = False  # the server has API_KEYS; the good client shows one, the strangers do not
    files: int = 0  # `ulimit -n` of the server
    statuses: str = REFUSED  # pattern of what strangers may get
    memory_mb: int | None = None  # most above base; None = the declared budget + 150
    answer_s: float | None = None  # most for the median answer to a stranger
    end: str = "SIGTERM"
    end_after_s: float = 1.5  # from the begin of the attack that the signal meets
    log: str = ""  # pattern that the log must have
    shares_engine: bool = False  # the strangers' images are served too, so the good client may wait for them
    good_from_s: float = 0.0  # the good client is evaluated from so long after the attack's begin

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
