"""The log lines on standard error."""

import json
import logging
import logging.config
from datetime import UTC, datetime, timedelta

import pytest

from app.system import log

NAMES = (None, "yolopard", "yolopard.api", "uvicorn", "uvicorn.error", "other")


@pytest.fixture(autouse=True)
def _logging_as_it_was():
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(logger.level, logger.handlers[:], logger.propagate) for logger in loggers]
    yield
    for logger, (level, handlers, propagate) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.handlers[:] = handlers
        logger.propagate = propagate


@pytest.fixture
def lines(capsys):
    """Return a function that returns the lines logged since its last call. Standard output must stay empty."""

    def read() -> list[str]:
        out, err = capsys.readouterr()
        assert out == ""
        return err.splitlines()

    return read


def test_a_json_line_has_time_level_logger_message_and_extra(lines):
    log.configure("info", "json")
    logging.getLogger("yolopard.api").info("served %d", 3, extra={"code": 200, "path": "/v1/detect"})
    (line,) = map(json.loads, lines())
    time = datetime.fromisoformat(line.pop("time"))
    assert timedelta() <= datetime.now(UTC) - time < timedelta(minutes=1)
    assert line == {
        "level": "info",
        "logger": "yolopard.api",
        "message": "served 3",
        "code": 200,
        "path": "/v1/detect",
    }


def test_a_json_record_is_always_one_line(lines):
    log.configure("info", "json")
    logging.getLogger("yolopard").warning(
        "two\nlines and \N{CAT FACE}",
        extra={
            "what": {
                1,
            },
            "text": "a\nb",
        },
    )
    (line,) = lines()
    assert json.loads(line)["message"] == "two\nlines and \N{CAT FACE}"
    assert json.loads(line)["what"] == "{1}"


def test_an_exception_is_part_of_its_json_line(lines):
    log.configure("info", "json")
    try:
        raise ValueError("no such thing")
    except ValueError:
        logging.getLogger("yolopard").exception("failed")
    (line,) = map(json.loads, lines())
    assert line["exception"].splitlines()[0] == "Traceback (most recent call last):"
    assert line["exception"].endswith("ValueError: no such thing")


def test_a_text_line_ends_with_extra(lines):
    log.configure("info", "text")
    logging.getLogger("yolopard").warning("served", extra={"code": 200})
    (line,) = lines()
    assert line.endswith("WARNING served code=200")
    assert datetime.strptime(line[:19], "%Y-%m-%d %H:%M:%S")  # noqa: DTZ007  # the machine's own time


@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_records_below_the_level_are_not_logged(lines, level, count, style):
    log.configure(level, style)
    for each in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logging.getLogger("yolopard").log(each, "hello")
    assert len(lines()) == count


@pytest.mark.parametrize("name", ["uvicorn", "uvicorn.error", "other"])
def test_other_loggers_log_from_warning_on_in_the_same_format(lines, name):
    log.configure("debug", "json")
    logging.getLogger(name).info("chatter")
    logging.getLogger(name).warning("beware", extra={"color_message": "\x1b[33mbeware"})
    (line,) = map(json.loads, lines())
    assert (line["message"], line["logger"], line.get("color_message")) == ("beware", name, None)


def test_configuring_twice_does_not_duplicate_lines(lines):
    log.configure("info", "json")
    log.configure("info", "json")
    logging.getLogger("yolopard").info("once")
    assert len(lines()) == 1


def test_a_logger_created_before_configure_still_logs(lines):
    early = logging.getLogger("yolopard.early")
    log.configure("info", "text")
    early.info("heard")
    assert len(lines()) == 1


FORGED = "/x\n2026-01-01 00:00:00,000 CRITICAL all is lost\x1b[2J\x9b1m\u2028"


@pytest.mark.parametrize("style", ["text", "json"])
def test_control_characters_of_a_client_are_escaped(lines, style):
    log.configure("info", style)
    logging.getLogger("yolopard.access").info("request %s", FORGED, extra={"path": FORGED})
    (line,) = lines()
    assert not any(ord(character) < 32 or 127 <= ord(character) < 160 for character in line)
    assert "CRITICAL all is lost" in line


def test_the_lines_of_a_traceback_are_indented(lines):
    log.configure("info", "text")
    try:
        raise ValueError(FORGED)
    except ValueError:
        logging.getLogger("yolopard").exception("failed")
    first, *others = lines()
    assert first.endswith("failed")
    assert others
    assert all(line.startswith("  ") for line in others)
    assert "\x1b" not in "".join(others)


def test_repeated_records_are_limited_and_counted(lines, monkeypatch):
    log.configure("info", "text")
    logger = logging.getLogger("yolopard.http")
    for number in range(log.MAX_RECORDS + 30):
        logger.warning("connection %d was closed", number)
    logger.warning("another kind")
    assert len(lines()) == log.MAX_RECORDS + 1
    monkeypatch.setattr(log, "MAX_RECORDS_S", 0)
    logger.warning("connection %d was closed", 99)
    (line,) = lines()
    assert "connection 99 was closed (and 30 more like this" in line


def test_the_access_log_is_not_limited(lines):
    log.configure("info", "text")
    for _ in range(log.MAX_RECORDS * 3):
        logging.getLogger("yolopard.access").info("request")
    assert len(lines()) == log.MAX_RECORDS * 3
