"""Logging to standard error as text or JSON, one line per record."""

import json
import logging
import logging.config
import re
from datetime import UTC, datetime

MAX_RECORDS, MAX_RECORDS_S = 20, 10.0  # maximum number of records of one kind in this time
MAX_KINDS = 1000  # that are counted
_UNLIMITED = {"yolopard.access"}  # loggers whose records are never dropped
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonLines(logging.Formatter):
    """Time, level, logger, message, and every `extra` of the record."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """Time, level, message, then every `extra` as name=value."""

    def format(self, record: logging.LogRecord) -> str:
        extra = [f"{name}={value}" for name, value in vars(record).items() if name not in _STANDARD]
        line = " ".join([escaped(self.formatMessage(_with_message(record))), *map(escaped, extra)])
        if not record.exc_info:
            return line
        trace = self.formatException(record.exc_info)
        return "\n".join([line, *(f"  {escaped(each)}" for each in trace.splitlines())])


def _with_message(record: logging.LogRecord) -> logging.LogRecord:
    record.message = record.getMessage()
    record.asctime = logging.Formatter().formatTime(record)
    return record


def escaped(text: str) -> str:
    """Return text with control characters escaped: from a client they could forge log lines or control a terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Flood(logging.Filter):
    """Passes at most MAX_RECORDS with the same logger and unformatted text in MAX_RECORDS_S. The next one after that
    says how many were dropped.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}  # (logger, text): (window start, records)

    def filter(self, record: logging.LogRecord) -> bool:
        kind = record.name, str(record.msg)
        if record.name in _UNLIMITED:
            return True
        since, count = self._seen.get(kind, (record.created, 0))
        if record.created - since >= MAX_RECORDS_S:
            if count > MAX_RECORDS:
                record.msg = f"{record.msg} (and {count - MAX_RECORDS} more like this in {MAX_RECORDS_S:.0f} s)"
            since, count = record.created, 0
        self._seen[kind] = since, count + 1
        if len(self._seen) > MAX_KINDS:
            del self._seen[next(iter(self._seen))]
        return count < MAX_RECORDS


def configure(level: str, style: str) -> None:
    """Send all records, uvicorn's too, to one handler. `level`: of our loggers; `style`: "text" or "json"."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "json": {"()": JsonLines},
                "text": {"()": TextLines, "format": "%(asctime)s %(levelname)-7s %(message)s"},
            },
            "filters": {"flood": {"()": Flood}},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": style, "filters": ["flood"]}},
            "root": {"level": "WARNING", "handlers": ["stderr"]},
            "loggers": {
                "yolopard": {"level": level.upper()},
                "python_multipart": {"level": "ERROR"},  # the client gets errors in its form as a response
                "uvicorn": {"level": "WARNING", "handlers": [], "propagate": True},
            },
        }
    )
