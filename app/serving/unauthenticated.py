"""Limits the requests that are read without a key in the headers, because their protocol has it in the body."""

from collections.abc import Iterator
from contextlib import contextmanager

from app.serving.inflight import Share

MAX_SLOTS = 16


class UnauthenticatedSlots:
    """Slots for such requests. If all are taken, a new request evicts the one that has been read the longest: a normal
    one takes milliseconds, so clients that send slowly evict each other. Belongs to one event loop.
    """

    def __init__(self, count: int = MAX_SLOTS) -> None:
        self._count = count
        self._reading: dict[Share, None] = {}  # oldest first

    @contextmanager
    def place(self, share: Share) -> Iterator[None]:
        """Hold a slot while the request is being read."""
        if len(self._reading) >= self._count:
            oldest = next(iter(self._reading))
            del self._reading[oldest]
            oldest.evict()
        self._reading[share] = None
        try:
            yield
        finally:
            self._reading.pop(share, None)
