"""Progress of a start-up, for the terminal and /readyz."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

PHASES = ("weights", "graph", "engine", "check", "publish", "warm-up")


@dataclass(frozen=True, slots=True)
class Progress:
    """A phase that has begun or advanced; it is number `step` of `of` phases."""

    phase: str
    step: int
    of: int
    model: str
    detail: str = ""  # such as "fp16: Compiling backend 12/340"

    @classmethod
    def at(cls, phase: str, model: str, detail: str = "") -> "Progress":
        """Return the progress of a phase of PHASES. Raises ValueError for another one."""
        return cls(phase, PHASES.index(phase) + 1, len(PHASES), model, detail)

    def __str__(self) -> str:
        return f"[{self.step}/{self.of}] {self.model}: {self.phase}" + (f", {self.detail}" if self.detail else "")

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self)
        if not self.detail:
            del fields["detail"]
        return fields


Report = Callable[[Progress], None]
