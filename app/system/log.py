"""The log's format, text or JSON, one line a record, on standard error."""

import json
import logging
import logging.config
import re
from datetime import UTC, datetime

FLOOD, FLOOD_S = 20, 10.0  # records of one kind, and the time in which there may be so many
FLOOD_KINDS = 1000
_EVERY = {"yolopard.access"}  # loggers of which every line is wanted
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonLines(logging.Formatter):
    """Time, level, logger, message, and whatever `extra` a record carries."""

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
    """Time, level, message, then `extra` as name=value."""

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
    """Without control characters, which a client may have put there: they would forge lines and steer a terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Flood(logging.Filter):
    """Lets so many records of one kind, which share a text before its values are in it, through in a while; the first
    one after it tells how many were left out.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}  # logger and text: since when, how many

    def filter(self, record: logging.LogRecord) -> bool:
        kind = record.name, str(record.msg)
        if record.name in _EVERY:
            return True
        since, count = self._seen.get(kind, (record.created, 0))
        if record.created - since >= FLOOD_S:
            if count > FLOOD:
                record.msg = f"{record.msg} (and {count - FLOOD} more like this in {FLOOD_S:.0f} s)"
            since, count = record.created, 0
        self._seen[kind] = since, count + 1
        if len(self._seen) > FLOOD_KINDS:
            del self._seen[next(iter(self._seen))]
        return count < FLOOD


def configure(level: str, style: str) -> None:
    """Send everything, uvicorn's lines too, through one handler."""
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
                "python_multipart": {"level": "ERROR"},  # what ails a form is the client's news
                "uvicorn": {"level": "WARNING", "handlers": [], "propagate": True},
            },
        }
    )
