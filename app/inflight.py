"""Bytes and pixels that all requests hold at a time, against two limits."""

import threading
from collections.abc import Callable
from time import monotonic

from app import machine
from app.errors import BodyTooLarge, Overloaded, TooManyPixels

MIB = 1 << 20
SLOW_S = 1.0  # a request that is still being read after so long gives way where memory is short


def default_bytes() -> int:
    """An eighth of this process's memory, 128 MiB to 1 GiB."""
    return min(max(machine.memory_bytes() // 8, 128 * MIB), 1024 * MIB)


def default_pixels() -> int:
    """One for each 32 bytes of this process's memory, 64 to 512 million: a decoded image takes 3 to 8 bytes a pixel."""
    return min(max(machine.memory_bytes() // 32, 64_000_000), 512_000_000)


class Inflight:
    """The sums over all shares. Methods may be called from any thread."""

    def __init__(self, max_bytes: int | None, max_pixels: int | None) -> None:
        self.max_bytes, self.max_pixels = max_bytes or default_bytes(), max_pixels or default_pixels()
        self.bytes = self.pixels = 0
        self._lock = threading.Lock()
        self._reading: dict[Share, None] = {}  # shares whose request is still being read, the oldest first

    @property
    def reading(self) -> int:
        """Requests whose bodies are being read."""
        return len(self._reading)

    def share(self) -> "Share":
        """The part of a new request, which holds nothing yet."""
        return Share(self)

    def _change(self, share: "Share", size: int, pixels: int) -> None:
        if share.bytes + size > self.max_bytes:
            raise BodyTooLarge(f"the request holds more than MAX_INFLIGHT_BYTES={self.max_bytes}")
        if share.pixels + pixels > self.max_pixels:
            raise TooManyPixels(f"the request's images have more pixels than MAX_INFLIGHT_PIXELS={self.max_pixels}")
        with self._lock:
            if size > 0:
                self._make_room(share, size)
            if size > 0 and self.bytes + size > self.max_bytes:
                raise Overloaded(f"the requests in flight hold {self.bytes} bytes, of {self.max_bytes} allowed")
            if pixels > 0 and self.pixels + pixels > self.max_pixels:
                raise Overloaded(f"the images in flight have {self.pixels} pixels, of {self.max_pixels} allowed")
            self.bytes += size
            self.pixels += pixels
            share.bytes += size
            share.pixels += pixels

    def _make_room(self, share: "Share", size: int) -> None:
        """Take the memory of those that are slow to send: a sound client is read in less time."""
        old = monotonic() - SLOW_S
        while self.bytes + size > self.max_bytes:
            victim = next((each for each in self._reading if each is not share and each.bytes), None)
            if victim is None or victim.reading_since > old:
                return
            del self._reading[victim]
            self.bytes -= victim.bytes
            victim.bytes = 0
            victim.evict()


class Share:
    """Bytes and pixels that one request holds, from its first byte in to its last byte out."""

    __slots__ = ("_evict", "_inflight", "bytes", "evicted", "pixels", "reading_since")

    def __init__(self, inflight: Inflight) -> None:
        self._inflight = inflight
        self.bytes = self.pixels = 0
        self.evicted = False
        self.reading_since = 0.0
        self._evict: Callable[[], None] = lambda: None

    def add_bytes(self, size: int) -> None:
        """Raises Overloaded where all requests would hold more than is allowed, BodyTooLarge where this one would."""
        if self.evicted:
            raise Overloaded("the body came too slowly, and its memory was needed")
        self._inflight._change(self, size, 0)  # noqa: SLF001  # two halves of one thing

    def add_pixels(self, pixels: int) -> None:
        """Raises Overloaded where all images would have more than is allowed, TooManyPixels where this one's would."""
        self._inflight._change(self, 0, pixels)  # noqa: SLF001

    def hold_only(self, size: int) -> None:
        """Hold so many bytes instead of those so far. Raises Overloaded."""
        self._inflight._change(self, size - self.bytes, 0)  # noqa: SLF001

    def begin_reading(self, evict: Callable[[], None]) -> None:
        """From now on the request may lose its memory to others; `evict` is then called, on any thread."""
        self._evict, self.reading_since = evict, monotonic()
        self._inflight._reading[self] = None  # noqa: SLF001

    def end_reading(self) -> None:
        """The request is complete: nothing is taken from it any more."""
        self._inflight._reading.pop(self, None)  # noqa: SLF001

    def evict(self) -> None:
        """The memory is gone: whoever reads the request has to give up."""
        self.evicted = True
        self._evict()

    def __enter__(self) -> "Share":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give everything back."""
        self.end_reading()
        self._inflight._change(self, -self.bytes, -self.pixels)  # noqa: SLF001
