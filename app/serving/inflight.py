"""Limits the bytes and the pixels that all requests hold at a time."""

import threading
from collections.abc import Callable
from time import monotonic

from app.errors import BodyTooLarge, Overloaded, Stopping, TooManyPixels
from app.system import host

MIB = 1 << 20
EVICT_AFTER_S = 1.0  # a request that has waited for its client this long may be evicted if memory is short
MAX_SMALL_BYTES, MAX_SMALL_PIXELS = MIB, 4_000_000  # of a request that may also use the last eighth of the limit


def default_bytes() -> int:
    """Return an eighth of this process's memory in bytes, at least 128 MiB and at most 1 GiB."""
    return min(max(host.memory_bytes() // 8, 128 * MIB), 1024 * MIB)


def default_pixels() -> int:
    """Return one pixel per 32 bytes of this process's memory, 64 to 512 million. A decoded pixel takes 3 to 8 bytes."""
    return min(max(host.memory_bytes() // 32, 64_000_000), 512_000_000)


class Inflight:
    """The totals of all requests. Methods may be called from any thread."""

    def __init__(self, max_bytes: int | None, max_pixels: int | None) -> None:
        self.max_bytes, self.max_pixels = max_bytes or default_bytes(), max_pixels or default_pixels()
        self._large_bytes = _large_limit(self.max_bytes, MAX_SMALL_BYTES)
        self._large_pixels = _large_limit(self.max_pixels, MAX_SMALL_PIXELS)
        self.bytes = self.pixels = 0
        self._closed = False
        self._lock = threading.RLock()
        self._waiting: dict[Share, None] = {}  # shares that wait for their client, longest wait first

    @property
    def waiting(self) -> int:
        """Number of requests whose body is being read or whose response is being sent."""
        return len(self._waiting)

    def share(self) -> "Share":
        """Return the empty share of a new request."""
        return Share(self)

    def close(self) -> None:
        """Refuse further bytes and pixels, except those of admitted requests."""
        self._closed = True

    def _change(self, share: "Share", size: int, pixels: int) -> None:
        if share.bytes + size > self._large_bytes:
            raise BodyTooLarge(f"a request may hold {self._large_bytes} bytes of MAX_INFLIGHT_BYTES={self.max_bytes}")
        if share.pixels + pixels > self._large_pixels:
            limit = f"{self._large_pixels} pixels of MAX_INFLIGHT_PIXELS={self.max_pixels}"
            raise TooManyPixels(f"the images of a request may have {limit}")
        if self._closed and not share.admitted and (size > 0 or pixels > 0):
            raise Stopping("the server is stopping")
        with self._lock:
            if size > 0:
                self._require_bytes(share, size)
            if pixels > 0:
                self._require_pixels(share, pixels)
            self.bytes += size
            self.pixels += pixels
            share.bytes += size
            share.pixels += pixels

    def _require_bytes(self, share: "Share", size: int) -> None:
        limit = self.max_bytes if share.bytes + size <= MAX_SMALL_BYTES else self._large_bytes
        evictable_since = monotonic() - EVICT_AFTER_S
        while self.bytes + size > limit and (slow := next((each for each in self._waiting if each.bytes), None)):
            if slow is share or slow.waiting_since > evictable_since:
                break
            del self._waiting[slow]
            self.bytes -= slow.bytes
            slow.bytes = 0
            slow.evict()
        if self.bytes + size > limit:
            raise Overloaded(f"the requests in flight hold {self.bytes} bytes, of {self.max_bytes} allowed")

    def _require_pixels(self, share: "Share", pixels: int) -> None:
        limit = self.max_pixels if share.pixels + pixels <= MAX_SMALL_PIXELS else self._large_pixels
        if self.pixels + pixels > limit:
            raise Overloaded(f"the images in flight have {self.pixels} pixels, of {self.max_pixels} allowed")


def _large_limit(limit: int, small: int) -> int:
    """Return the limit for large requests: the last eighth is reserved for small ones."""
    return max(limit - limit // 8, min(limit, small))


def _do_nothing() -> None:
    """Stand in for `evict` while the request does not wait for its client."""


class Share:
    """The bytes and pixels that one request holds, from the first byte received to the last byte sent."""

    __slots__ = ("_evict", "_inflight", "admitted", "bytes", "evicted", "pixels", "waiting_since")

    def __init__(self, inflight: Inflight) -> None:
        self._inflight = inflight
        self.bytes = self.pixels = 0
        self.admitted = False  # a server that stops still processes it
        self.evicted = False
        self.waiting_since = 0.0
        self._evict: Callable[[], None] = _do_nothing

    def __enter__(self) -> "Share":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add_bytes(self, size: int) -> None:
        """Add `size` bytes. Raises Overloaded if all requests together would exceed the limit, BodyTooLarge if this
        one alone would, and Stopping.
        """
        if self.evicted:
            raise Overloaded("the client was too slow, and the memory of its request was needed")
        self._inflight._change(self, size, 0)  # noqa: SLF001  # Share and Inflight belong together

    def add_pixels(self, pixels: int) -> None:
        """Add `pixels`. Raises Overloaded if all requests together would exceed the limit, TooManyPixels if this one
        alone would, and Stopping.
        """
        self._inflight._change(self, 0, pixels)  # noqa: SLF001

    def hold_only(self, size: int) -> None:
        """Set the held bytes to `size`. Raises the errors of `add_bytes`."""
        self.add_bytes(size - self.bytes)

    def begin_waiting(self, evict: Callable[[], None]) -> None:
        """Mark the request as waiting for its client: it may be evicted, and `evict` is then called, on any thread."""
        with self._inflight._lock:  # noqa: SLF001
            self._evict, self.waiting_since = evict, monotonic()
            self._inflight._waiting[self] = None  # noqa: SLF001

    def end_waiting(self) -> None:
        """Mark the request as no longer waiting for its client."""
        with self._inflight._lock:  # noqa: SLF001
            self._inflight._waiting.pop(self, None)  # noqa: SLF001
            self._evict = _do_nothing  # the callback refers to this share; a reference cycle would be freed late

    def evict(self) -> None:
        """End the wait for the client, because the memory or slot is needed."""
        self.evicted = True
        self._evict()

    def close(self) -> None:
        """Release all bytes and pixels."""
        self.end_waiting()
        self._inflight._change(self, -self.bytes, -self.pixels)  # noqa: SLF001
