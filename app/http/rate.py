"""How fast a client sends and takes."""

import math


class Rate:
    """Looks at counters now and then, and tells whether they have moved enough since the last look."""

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._since = 0.0
        self._received = self._left = 0
        self._drained = False

    def begin(self, now: float, received: int = 0, left: int = 0) -> None:
        """A new look back starts here. `left` are the bytes that are still to go out."""
        self._since, self._received, self._left, self._drained = now, received, left, False

    def drained(self) -> None:
        """What was to go out has gone out, almost all of it; more may have followed."""
        self._drained = True

    @property
    def sends(self) -> bool:
        """True when there was something to go out at the last look."""
        return self._left > 0

    def too_slow(self, now: float, window_s: float, received: int, left: int) -> bool:
        """Whether less than the minimum rate came in, and less was taken, in at least `window_s`.

        Without a minimum rate, a client that takes nothing at all of what is left for it is too slow.
        """
        if now - self._since < window_s:
            return False
        taken = math.inf if self._drained else self._left - left
        moved = max(taken, received - self._received)
        wanted = max(self._bytes_per_s * window_s, 1 if left else 0)
        self.begin(now, received, left)
        return moved < wanted
