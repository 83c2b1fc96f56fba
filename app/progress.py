"""Where a start-up stands, for the terminal and /readyz."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

PHASES = ("weights", "graph", "engine", "check", "publish", "warm-up")


@dataclass(frozen=True, slots=True)
class Progress:
    """A phase has begun; `step` of `of`."""

    phase: str
    step: int
    of: int
    model: str

    @classmethod
    def at(cls, phase: str, model: str) -> "Progress":
        """The place of a phase in the whole start-up."""
        return cls(phase, PHASES.index(phase) + 1, len(PHASES), model)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


Report = Callable[[Progress], None]
