"""Bytes and pixels that all requests hold at a time, against two limits."""

import threading
from collections.abc import Callable
from time import monotonic

from app.errors import BodyTooLarge, Overloaded, Stopping, TooManyPixels
from app.system import host

MIB = 1 << 20
SLOW_S = 1.0  # a client that has been waited for so long gives way where memory is short
SMALL_BYTES, SMALL_PIXELS = MIB, 4_000_000  # up to which a request may take of the last eighth of the budget, too


def default_bytes() -> int:
    """An eighth of this process's memory, 128 MiB to 1 GiB."""
    return min(max(host.memory_bytes() // 8, 128 * MIB), 1024 * MIB)


def default_pixels() -> int:
    """One for each 32 bytes of this process's memory, 64 to 512 million: a decoded image takes 3 to 8 bytes a pixel."""
    return min(max(host.memory_bytes() // 32, 64_000_000), 512_000_000)


class Inflight:
    """The sums over all shares. Methods may be called from any thread."""

    def __init__(self, max_bytes: int | None, max_pixels: int | None) -> None:
        self.max_bytes, self.max_pixels = max_bytes or default_bytes(), max_pixels or default_pixels()
        self._large_bytes, self._large_pixels = _most(self.max_bytes, SMALL_BYTES), _most(self.max_pixels, SMALL_PIXELS)
        self.bytes = self.pixels = 0
        self._closed = False
        self._lock = threading.Lock()
        self._waiting: dict[Share, None] = {}  # shares that wait for their client, the longest first

    @property
    def waiting(self) -> int:
        """Requests whose bodies are being read, or whose answers are being sent."""
        return len(self._waiting)

    def share(self) -> "Share":
        """The part of a new request, which holds nothing yet."""
        return Share(self)

    def close(self) -> None:
        """From now on nothing more is taken in; who has been admitted is still answered."""
        self._closed = True

    def _change(self, share: "Share", size: int, pixels: int) -> None:
        if share.bytes + size > self._large_bytes:
            raise BodyTooLarge(f"the request holds more than one may of MAX_INFLIGHT_BYTES={self.max_bytes}")
        if share.pixels + pixels > self._large_pixels:
            raise TooManyPixels(
                f"the request's images have more pixels than one request may of MAX_INFLIGHT_PIXELS={self.max_pixels}"
            )
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
        most = self.max_bytes if share.bytes + size <= SMALL_BYTES else self._large_bytes
        old = monotonic() - SLOW_S
        while self.bytes + size > most and (slow := next((each for each in self._waiting if each.bytes), None)):
            if slow is share or slow.waiting_since > old:
                break
            del self._waiting[slow]
            self.bytes -= slow.bytes
            slow.bytes = 0
            slow.evict()
        if self.bytes + size > most:
            raise Overloaded(f"the requests in flight hold {self.bytes} bytes, of {self.max_bytes} allowed")

    def _require_pixels(self, share: "Share", pixels: int) -> None:
        most = self.max_pixels if share.pixels + pixels <= SMALL_PIXELS else self._large_pixels
        if self.pixels + pixels > most:
            raise Overloaded(f"the images in flight have {self.pixels} pixels, of {self.max_pixels} allowed")


def _most(limit: int, small: int) -> int:
    """The part of a limit that one large request may hold: the last eighth is reserved for small ones."""
    return max(limit - limit // 8, min(limit, small))


def _nothing() -> None:
    """Nobody waits for the client."""


class Share:
    """Bytes and pixels that one request holds, from its first byte in to its last byte out."""

    __slots__ = ("_evict", "_inflight", "admitted", "bytes", "evicted", "pixels", "waiting_since")

    def __init__(self, inflight: Inflight) -> None:
        self._inflight = inflight
        self.bytes = self.pixels = 0
        self.admitted = False  # it is answered, even by a server that stops
        self.evicted = False
        self.waiting_since = 0.0
        self._evict: Callable[[], None] = _nothing

    def __enter__(self) -> "Share":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add_bytes(self, size: int) -> None:
        """Raises Overloaded where all requests would hold more than is allowed, BodyTooLarge where this one would, and
        Stopping.
        """
        if self.evicted:
            raise Overloaded("the client was too slow, and the memory of its request was needed")
        self._inflight._change(self, size, 0)  # noqa: SLF001  # two halves of one thing

    def add_pixels(self, pixels: int) -> None:
        """Raises Overloaded where all images would have more than is allowed, TooManyPixels where this one's would, and
        Stopping.
        """
        self._inflight._change(self, 0, pixels)  # noqa: SLF001

    def hold_only(self, size: int) -> None:
        """Hold so many bytes instead of those so far. Raises what `add_bytes` raises."""
        self.add_bytes(size - self.bytes)

    def begin_waiting(self, evict: Callable[[], None]) -> None:
        """From now on it is the client's turn, and the request may lose its memory to others: `evict` is then called,
        on any thread.
        """
        self._evict, self.waiting_since = evict, monotonic()
        self._inflight._waiting[self] = None  # noqa: SLF001

    def end_waiting(self) -> None:
        """The client has done its part."""
        self._inflight._waiting.pop(self, None)  # noqa: SLF001
        self._evict = _nothing  # what it was refers to this share: a circle is freed late

    def evict(self) -> None:
        """The memory is needed: whoever waits for the client has to give up."""
        self.evicted = True
        self._evict()

    def close(self) -> None:
        """Give everything back."""
        self.end_waiting()
        self._inflight._change(self, -self.bytes, -self.pixels)  # noqa: SLF001
