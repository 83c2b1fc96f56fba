"""Requests that are read although no key was seen yet, since their protocol has it in the body: few at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

from app.serving.inflight import Share

PLACES = 16


class UnauthenticatedSlots:
    """Where all places are taken, the request that is being read for longest gives way: a sound one takes milliseconds,
    so that strangers who send slowly take places from each other. Belongs to one event loop.
    """

    def __init__(self, count: int = PLACES) -> None:
        self._count = count
        self._reading: dict[Share, None] = {}  # the oldest first

    @contextmanager
    def place(self, share: Share) -> Iterator[None]:
        """Hold one while the request is being read."""
        if len(self._reading) >= self._count:
            oldest = next(iter(self._reading))
            del self._reading[oldest]
            oldest.evict()
        self._reading[share] = None
        try:
            yield
        finally:
            self._reading.pop(share, None)
