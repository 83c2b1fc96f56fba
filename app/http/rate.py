"""Measures how fast a client sends its request and reads its response."""

import math


class Rate:
    """Compares byte counters with those of the last check."""

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._since = 0.0
        self._received = self._left = 0
        self._drained = False

    def begin(self, now: float, received: int = 0, left: int = 0) -> None:
        """Start a new window. `now`: s; `received`: bytes so far; `left`: response bytes not yet sent."""
        self._since, self._received, self._left, self._drained = now, received, left, False

    def drained(self) -> None:
        """Note that the write buffer ran almost empty; it may have been filled again."""
        self._drained = True

    @property
    def sends(self) -> bool:
        """True if response bytes were left at the last check."""
        return self._left > 0

    def too_slow(self, now: float, window_s: float, received: int, left: int) -> bool:
        """Return True if in at least `window_s` the client both sent and read less than the minimum rate.

        Without a minimum rate, a client that reads nothing of a pending response is too slow. Starts a new window once
        `window_s` have passed.
        """
        if now - self._since < window_s:
            return False
        read = math.inf if self._drained else self._left - left
        moved = max(read, received - self._received)
        required = max(self._bytes_per_s * window_s, 1 if left else 0)
        self.begin(now, received, left)
        return moved < required
