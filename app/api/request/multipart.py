"""Parses multipart/form-data into parts in memory. Starlette's parser uses temporary files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import BadParameter, EmptyBody, MalformedBody, TooManyFiles

MAX_FIELDS = 64
MAX_PREAMBLE = 16 << 10  # bytes before the first boundary (RFC 2046, 5.1.1)


@dataclass(slots=True)
class Part:
    name: str
    is_file: bool
    data: bytearray = field(default_factory=bytearray)


class Parts:
    """Collects the parts, in order, from the body's chunks. Without `fields` all parts must be files named `file`."""

    def __init__(self, content_type: str, max_files: int, *, fields: bool) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not boundary:
            raise MalformedBody("the Content-Type of the multipart body has no boundary")
        self._collector = _Collector(max_files, fields=fields)
        self._delimiter, self._preamble = b"--" + boundary, bytearray()
        self._begun = False
        with _explained():
            self._parser = MultipartParser(boundary, self._collector.callbacks())  # type: ignore[arg-type]

    def feed(self, chunk: bytes) -> None:
        """Parse the next chunk. Raises MalformedBody, BadParameter for a part that is not allowed, or TooManyFiles."""
        if not self._begun:
            chunk = self._after_preamble(chunk)
        with _explained():
            self._parser.write(chunk)

    def parts(self) -> list[Part]:
        """Return the parts, after the last chunk. Raises MalformedBody if the body is cut off, EmptyBody for none."""
        if not self._collector.complete:
            raise MalformedBody("the multipart body ends before its closing boundary")
        if not self._collector.parts:
            raise EmptyBody("the multipart body has no part: send a file part named 'file' for each image")
        return self._collector.parts

    def field(self, name: str) -> str:
        """Return the field's value if it has fully arrived, otherwise an empty string."""
        parts = self._collector.parts
        whole = parts if self._collector.complete else parts[:-1]
        return next((part.data.decode("utf-8", "replace") for part in whole if part.name == name), "")

    def _after_preamble(self, chunk: bytes) -> bytes:
        """Return the bytes from the first boundary on. Some clients write text before it, for readers without MIME."""
        self._preamble += chunk
        at = self._preamble.find(self._delimiter)
        while at > 0 and self._preamble[at - 1] != 10:
            at = self._preamble.find(self._delimiter, at + 1)
        if at >= 0:
            self._begun = True
            return bytes(self._preamble[at:])
        if len(self._preamble) > MAX_PREAMBLE:
            raise MalformedBody("the multipart body does not begin with its boundary")
        return b""


class _Collector:
    """The parser's callbacks. Has no reference to the parser: with a reference cycle each body would be freed late."""

    def __init__(self, max_files: int, *, fields: bool) -> None:
        self.parts: list[Part] = []
        self.complete = False
        self._max_files, self._fields = max_files, fields
        self._field, self._value = bytearray(), bytearray()
        self._disposition = b""

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_data,
            "on_part_data": lambda data, start, end: self.parts[-1].data.extend(data[start:end]),
            "on_end": self._end,
        }

    def _begin_part(self) -> None:
        self._disposition = b""

    def _end_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._field.clear()
        self._value.clear()

    def _begin_data(self) -> None:
        options = parse_options_header(self._disposition)[1]
        name = options.get(b"name", b"").decode("utf-8", "replace")
        part = Part(name, not self._fields or b"filename" in options or b"filename*=" in self._disposition.lower())
        if not self._fields and name != "file":
            raise BadParameter(f"part {name[:99]!r}: images go in parts named 'file', parameters in the query")
        count = sum(other.is_file == part.is_file for other in self.parts)
        if part.is_file and count == self._max_files:
            raise TooManyFiles(f"a request may have {self._max_files} file{'s' * (self._max_files > 1)}")
        if count == MAX_FIELDS and not part.is_file:
            raise MalformedBody(f"the form has more than {MAX_FIELDS} fields")
        self.parts.append(part)

    def _end(self) -> None:
        self.complete = True


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except FormParserError as error:
        raise MalformedBody(f"the multipart body cannot be read: {error}") from error
