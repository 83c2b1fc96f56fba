"""The log's format, text or JSON, one line a record, on standard error."""

import json
import logging
import logging.config
from datetime import UTC, datetime

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
        text = super().format(record)
        extra = [f"{name}={value}" for name, value in vars(record).items() if name not in _STANDARD]
        return " ".join([text, *extra])


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
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": style}},
            "root": {"level": "WARNING", "handlers": ["stderr"]},
            "loggers": {
                "yolopard": {"level": level.upper()},
                "python_multipart": {"level": "ERROR"},  # what ails a form is the client's news
                "uvicorn": {"level": "WARNING", "handlers": [], "propagate": True},
            },
        }
    )
