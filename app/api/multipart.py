"""multipart/form-data -> the bytes of its `file` parts, in memory. Starlette's own parser goes by temporary files."""

from collections.abc import Iterator
from contextlib import contextmanager

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import BadParameter, EmptyBody, MalformedBody, TooManyFiles


class FileParts:
    """Fed with the body's chunks, it holds the files of the parts named `file`, in order."""

    def __init__(self, content_type: str, max_files: int) -> None:
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not boundary:
            raise MalformedBody("the Content-Type of a multipart body names its boundary; this one does not")
        self._max_files = max_files
        self._files: list[bytearray] = []
        self._field, self._value = bytearray(), bytearray()
        self._disposition = b""
        self._complete = False
        callbacks = {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_file,
            "on_part_data": lambda data, start, end: self._files[-1].extend(data[start:end]),
            "on_end": self._end,
        }
        with _explained():
            self._parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]

    def feed(self, chunk: bytes) -> None:
        """Raises MalformedBody, BadParameter for a part that is no file, or TooManyFiles."""
        with _explained():
            self._parser.write(chunk)

    def files(self) -> list[bytes]:
        """After the last chunk. Raises MalformedBody for a body that was cut short, EmptyBody for one without files."""
        if not self._complete:
            raise MalformedBody("the multipart body ends before its closing boundary")
        if not self._files:
            raise EmptyBody("the multipart body has no part: send a file part named 'file' for each image")
        return [bytes(file) for file in self._files]

    def _begin_part(self) -> None:
        self._disposition = b""

    def _end_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._field.clear()
        self._value.clear()

    def _begin_file(self) -> None:
        options = parse_options_header(self._disposition)[1]
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name != "file" or b"filename" not in options:
            raise BadParameter(f"part {name!r}: images go in file parts named 'file', parameters in the query")
        if len(self._files) == self._max_files:
            raise TooManyFiles(f"a request may have {self._max_files} files")
        self._files.append(bytearray())

    def _end(self) -> None:
        self._complete = True


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except FormParserError as error:
        raise MalformedBody(f"the multipart body cannot be read: {error}") from error
