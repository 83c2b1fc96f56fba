"""Counts the bytes, lines and chunks of a request, and refuses too many."""

from app.http.refusal import Refused

MAX_LINES = 256  # of a head, and of trailers: as Python objects they take forty times their bytes
MIN_COUNTED_CHUNKS, MIN_CHUNK_BYTES = 1024, 8  # above this number of chunks, their minimum average size
_FRAMING = "the body's chunks hold too little content"


class Measure:
    """Counters of the current request of one connection. Methods raise Refused above a limit."""

    def __init__(self, head_bytes: int) -> None:
        self._head_bytes = head_bytes
        self.bytes = 0  # of the request, without those that arrived together with its first byte
        self.body_bytes = 0
        self._piece = self._begun = 0  # bytes being parsed, and requests that begin in them
        self._lines = self._chunks = 0

    def add(self, size: int) -> None:
        """Count `size` received bytes, before they are parsed."""
        self._piece, self._begun = size, 0
        self.bytes += size

    def begin(self) -> None:
        """Reset the counters: a request begins in the bytes being parsed."""
        self.bytes = self.body_bytes = self._lines = self._chunks = 0
        self._begun += 1

    def add_line(self, *, in_head: bool) -> None:
        """Count a header or trailer line. Raises Refused above MAX_LINES."""
        self._lines += 1
        if self._lines > MAX_LINES:
            raise Refused(431 if in_head else 400, f"the request has more than {MAX_LINES} header lines")

    def add_body(self, size: int) -> None:
        """Count a chunk of the body, or a part of one: `size` bytes. Raises Refused if chunks are too small."""
        self._chunks += 1
        self.body_bytes += size
        if self._chunks > MIN_COUNTED_CHUNKS and self.body_bytes < MIN_CHUNK_BYTES * self._chunks:
            raise Refused(400, _FRAMING)

    @property
    def head_may_be_long(self) -> bool:
        """True if a head that has just ended may exceed the limit; some of the bytes may be its body."""
        return self.bytes + self._piece > self._head_bytes

    def end_piece(self, *, alone: bool, in_head: bool, complete: bool, has_lines: bool) -> None:
        """Raise Refused if the head is too long or the chunks are too small, once the bytes are parsed.

        `alone`: no request was in progress before these bytes. `in_head`, `complete`: where the request is after them.
        `has_lines`: the head has header lines.
        """
        if alone and self._begun == 1:
            self.bytes = self._piece
        if in_head and self.bytes > self._head_bytes:
            if has_lines:
                raise Refused(431, f"the request's head is larger than {self._head_bytes} bytes")
            raise Refused(414, f"the request's line is longer than {self._head_bytes} bytes")
        if not complete and self.bytes > 2 * self.body_bytes + self._piece + self._head_bytes:
            raise Refused(400, _FRAMING)
