"""Counts what has arrived of a request, and refuses too much of it."""

from app.http.refusal import Refused

MAX_LINES = 256  # of a head, and of trailers: as objects they take forty times their bytes
MIN_COUNTED_CHUNKS, MIN_CHUNK_BYTES = 1024, 8  # of a chunked body: from so many on, the least that they hold on average
_FRAMED = "the body's chunks are more frame than content"


class Measure:
    """Counts the requests of one connection, one after the other. Its methods raise Refused."""

    def __init__(self, head_bytes: int) -> None:
        self._head_bytes = head_bytes
        self.bytes = 0  # of the request, less those that came in one piece with its first one
        self.body_bytes = 0
        self._piece = self._begun = 0  # bytes that are parsed at the moment, and requests that begin in them
        self._lines = self._chunks = 0

    def add(self, size: int) -> None:
        """So many bytes have come."""
        self._piece, self._begun = size, 0
        self.bytes += size

    def begin(self) -> None:
        """A request begins in them."""
        self.bytes = self.body_bytes = self._lines = self._chunks = 0
        self._begun += 1

    def add_line(self, *, in_head: bool) -> None:
        """A header, or a trailer."""
        self._lines += 1
        if self._lines > MAX_LINES:
            raise Refused(431 if in_head else 400, f"the request has more than {MAX_LINES} header lines")

    def add_body(self, size: int) -> None:
        """A chunk of the body, or what has come of it."""
        self._chunks += 1
        self.body_bytes += size
        if self._chunks > MIN_COUNTED_CHUNKS and self.body_bytes < MIN_CHUNK_BYTES * self._chunks:
            raise Refused(400, _FRAMED)

    @property
    def head_may_be_long(self) -> bool:
        """When it has just ended; what came with it may be its body."""
        return self.bytes + self._piece > self._head_bytes

    def end_piece(self, *, alone: bool, in_head: bool, complete: bool, has_lines: bool) -> None:
        """The bytes are parsed: `alone` if no request was on its way before them, and then in its head or complete."""
        if alone and self._begun == 1:
            self.bytes = self._piece
        if in_head and self.bytes > self._head_bytes:
            if has_lines:
                raise Refused(431, f"the request's head is larger than {self._head_bytes} bytes")
            raise Refused(414, f"the request's line is longer than {self._head_bytes} bytes")
        if not complete and self.bytes > 2 * self.body_bytes + self._piece + self._head_bytes:
            raise Refused(400, _FRAMED)
