"""Sources of settings, and the errors of wrong settings."""

import argparse
import re
from pathlib import Path

import pydantic
import pytest

from app.__main__ import _parser
from app.errors import SettingsError
from app.settings import FIELDS, PREFIX, RENAMED, Settings

SAMPLE = {  # field: (a text that is not its default, the parsed value)
    "weights": ("yolov8s.pt", "yolov8s.pt"),
    "imgsz": ("320", 320),
    "batch": ("16", 16),
    "precision": ("fp16", "fp16"),
    "backend": ("onnxruntime", "onnxruntime"),
    "simulated_ms": ("5,6.9", "5,6.9"),
    "fallback": ("pytorch", "pytorch"),
    "gate_dir": ("/val", Path("/val")),
    "gate_fp32": ("0.5", 0.5),
    "gate_fp16": ("0.5", 0.5),
    "gate_int8": ("0.5", 0.5),
    "gate_map_loss": ("0.5", 0.5),
    "calibration_dir": ("/train", Path("/train")),
    "compare": ("pytorch", "pytorch"),
    "shadow": ("0.01", 0.01),
    "build_memory_bytes": ("4000000000", 4_000_000_000),
    "engines_dir": ("/var/engines", Path("/var/engines")),
    "decode": ("fast", "fast"),
    "instances": ("2", 2),
    "threads": ("4", 4),
    "host": ("0.0.0.0", "0.0.0.0"),
    "port": ("9000", 9000),
    "protocols": ("v1, deepstack", ("v1", "deepstack")),
    "api_keys": (f"{'a' * 16},{'b' * 20}", ("a" * 16, "b" * 20)),
    "allow_anonymous": ("1", True),
    "allow_urls": ("example.com,cam.example:8080", ("example.com", "cam.example:8080")),
    "cors_origins": ("https://example.com", ("https://example.com",)),
    "grpc_port": ("8001", 8001),
    "max_wait_ms": ("2.5", 2.5),
    "max_pending": ("32", 32),
    "deadline_ms": ("500", 500.0),
    "max_json_bytes": ("1000", 1000),
    "max_side": ("4096", 4096),
    "max_inflight_bytes": ("5000", 5000),
    "max_inflight_pixels": ("6000", 6000),
    "max_connections": ("10", 10),
    "max_connections_per_peer": ("5", 5),
    "max_head_bytes": ("2000", 2000),
    "head_timeout_ms": ("300", 300.0),
    "keep_alive_ms": ("400", 400.0),
    "send_timeout_ms": ("600", 600.0),
    "min_bytes_per_s": ("0", 0),
    "allow_hosts": ("example.com,[::1]", ("example.com", "[::1]")),
    "max_body_bytes": ("1000", 1000),
    "max_tensor_bytes": ("2000", 2000),
    "max_pixels": ("1000000", 1_000_000),
    "max_files": ("3", 3),
    "log_level": ("debug", "debug"),
    "log_format": ("json", "json"),
    "access_log": ("true", True),
}


def value_of(settings: Settings, field: str) -> object:
    return getattr(settings.server if hasattr(settings.server, field) else settings.model, field)


NEEDS = {"shadow": {"YOLOPARD_COMPARE": "pytorch"}}  # settings that require another setting


@pytest.mark.parametrize("field", FIELDS)
def test_every_setting_can_come_from_the_environment_and_from_an_option(field):
    text, value = SAMPLE[field]
    needs = NEEDS.get(field, {})
    assert value_of(Settings.read({}, needs), field) != value
    assert value_of(Settings.read({}, needs | {PREFIX + field.upper(): text}), field) == value
    assert value_of(Settings.read({field: text}, needs), field) == value


def test_options_have_priority_over_the_environment():
    settings = Settings.read({"batch": "2"}, {"YOLOPARD_BATCH": "4", "YOLOPARD_PORT": "9000"})
    assert (settings.model.batch, settings.server.port) == (2, 9000)


def test_an_option_overrides_a_wrong_value_in_the_environment():
    assert Settings.read({"batch": "2"}, {"YOLOPARD_BATCH": "many"}).model.batch == 2


def test_the_environment_of_the_process_is_read_by_default(monkeypatch):
    monkeypatch.setenv("YOLOPARD_BATCH", "3")
    assert Settings.read({}).model.batch == 3


def test_variables_without_the_prefix_are_ignored():
    assert (
        Settings.read({}, {"BATCH": "no", "PATH": "/bin", "yolopard_batch": "no", "XYOLOPARD_BATCH": "no"})
        == Settings()
    )


@pytest.mark.parametrize(
    ("options", "environ"),
    [({"bach": "4"}, {}), ({}, {"YOLOPARD_BACH": "4"})],
    ids=["option", "environment"],
)
def test_an_unknown_name_is_refused_with_the_known_names(options, environ):
    with pytest.raises(SettingsError, match=r"BACH: no such setting; the settings are WEIGHTS, .*BATCH"):
        Settings.read(options, environ)


@pytest.mark.parametrize("name", ["YOLOPARD_batch", "YOLOPARD_Batch"])
def test_a_lower_case_name_in_the_environment_is_refused(name):
    with pytest.raises(SettingsError, match=f"{name}.*upper case"):
        Settings.read({}, {name: "4"})


@pytest.mark.parametrize(
    ("field", "text"),
    [
        *[("imgsz", text) for text in ("31", "8193", "-640", "640.5", "")],
        *[("imgsz", text) for text in ("640x", "640x640,", "640x640;384x640", "640x640, 384x640", "640X640")],
        *[("imgsz", text) for text in ("0x640", "640x31", "640x8193", "640x640,384x640,640x640")],
        ("imgsz", ",".join(f"{32 * i}x640" for i in range(1, 18))),
        *[("batch", text) for text in ("0", "-1", "1025", "2.5", "many", "")],
        *[("precision", text) for text in ("fp8", "FP16", "")],
        *[("backend", text) for text in ("tensorflow", "")],
        *[("simulated_ms", text) for text in ("", "5", "5,", "5,6,7", "-1,2", "5, 6", "a,b", "nan,1", "1e3,1", "5;6")],
        *[("decode", "quick"), ("instances", "0"), ("threads", "0")],
        *[("port", "0"), ("port", "65536"), ("port", "http"), ("grpc_port", "0")],
        *[("max_wait_ms", text) for text in ("-1", "10001", "nan", "inf", "soon")],
        *[("deadline_ms", text) for text in ("0", "-5", "3600001", "nan")],
        *[("protocols", text) for text in ("", "v1,http", "V1", ",")],
        *[("allow_urls", text) for text in ("http://example.com", "example.com/a", "Example.com", "a@b", "a:b")],
        *[
            ("max_pending", "0"),
            ("max_body_bytes", "0"),
            ("max_tensor_bytes", "0"),
            ("max_pixels", "0"),
            ("max_files", "0"),
        ],
        *[("log_level", "verbose"), ("log_format", "xml"), ("access_log", "2")],
    ],
)
def test_a_wrong_value_is_refused_with_name_and_value(field, text):
    with pytest.raises(SettingsError) as caught:
        Settings.read({}, {PREFIX + field.upper(): text})
    assert str(caught.value).startswith(f"{field.upper()}={text}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shadow": "0.01"}, "SHADOW=0.01 needs a second engine: give COMPARE=pytorch too"),
        ({"shadow": "1e-05"}, "SHADOW=1e-05 needs a second engine: give COMPARE=pytorch too"),
        (
            {"compare": "pytorch", "backend": "pytorch"},
            "COMPARE=pytorch is BACKEND=pytorch itself: there is nothing to compare",
        ),
        (
            {"fallback": "onnxruntime", "backend": "onnxruntime"},
            "FALLBACK=onnxruntime is BACKEND=onnxruntime itself: name another one",
        ),
        (
            {"compare": "pytorch", "weights": "a/w.onnx"},
            "COMPARE=pytorch cannot run a/w.onnx: give the .pt that it was exported from, or leave COMPARE out",
        ),
        (
            {"fallback": "pytorch", "weights": "w.onnx"},
            "FALLBACK=pytorch cannot run w.onnx: give the .pt that it was exported from, or leave FALLBACK out",
        ),
        (
            {"backend": "pytorch", "weights": "w.onnx"},
            "BACKEND=pytorch cannot run w.onnx: give the .pt that it was exported from, or leave BACKEND out",
        ),
        (
            {"fallback": "onnxruntime", "weights": "w.engine"},
            "FALLBACK=onnxruntime cannot run w.engine: give the .pt that it was exported from, or leave FALLBACK out",
        ),
        (
            {"compare": "pytorch", "weights": "w.engine"},
            "COMPARE=pytorch cannot run w.engine: give the .pt that it was exported from, or leave COMPARE out",
        ),
    ],
)
def test_conflicting_settings_are_refused_in_one_line_that_names_both(options, message):
    with pytest.raises(SettingsError) as caught:
        Settings.read(options, {})
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("big", "give the longest side in px, such as 640, or HEIGHTxWIDTH,... such as 640x640,384x640"),
        ("31", "a side is 32 to 8192 px, not 31"),
        ("640x640,16x640", "a side is 32 to 8192 px, not 16"),
        ("640x640,384x640,640x640", "640x640 is given twice"),
        (",".join(f"{32 * i}x640" for i in range(1, 18)), "give at most 16 shapes: each may need an engine of its own"),
    ],
)
def test_a_wrong_size_is_refused_with_the_reason(text, message):
    with pytest.raises(SettingsError) as caught:
        Settings.read({"imgsz": text}, {})
    assert str(caught.value) == f"IMGSZ={text}: {message}"


def test_the_order_of_shapes_does_not_matter():
    given = [Settings.read({"imgsz": text}, {}) for text in ("640x640,384x640,640x384", "640x384,640x640,384x640")]
    assert given[0] == given[1]


@pytest.mark.parametrize(
    ("options", "side"),
    [
        ({}, None),
        ({"imgsz": "320"}, 320),
        ({"imgsz": "384x640"}, 640),
        ({"imgsz": "640x384,96x96"}, 640),
    ],
    ids=str,
)
def test_longest_side_is_the_size_or_the_longest_side_of_the_shapes(options, side):
    assert Settings.read(options, {}).model.longest_side == side


@pytest.mark.parametrize("text", ["0,0", "5,6.9", "12.5,0", "0005,1"])
def test_the_times_of_the_simulated_engine_are_two_numbers(text):
    assert Settings.read({"backend": "simulated", "simulated_ms": text}, {}).model.simulated_ms == text


def test_the_same_engine_may_be_fallback_and_second_engine():
    settings = Settings.read(
        {"fallback": "pytorch", "compare": "pytorch", "shadow": "1", "backend": "openvino"}, {}
    ).model
    assert (settings.fallback, settings.compare, settings.shadow) == ("pytorch", "pytorch", 1)


@pytest.mark.parametrize("keys", ["short", f"{'a' * 16},short", "with spaces in the key", "é" * 20])
def test_a_wrong_key_is_refused_and_not_shown_in_the_error(keys):
    with pytest.raises(SettingsError) as caught:
        Settings.read({}, {"YOLOPARD_API_KEYS": keys})
    assert str(caught.value) == (
        "API_KEYS=...: a key is 16 or more printable ASCII characters without spaces and commas"
    )


def test_keys_are_not_in_the_repr_of_the_settings():
    assert "secret" not in repr(Settings.of(api_keys="a-secret-of-mine-0"))


LOOPBACK = ("127.0.0.1", "127.8.8.8", "::1", "localhost")
OTHER_HOSTS = ("0.0.0.0", "::", "192.168.1.5", "example.com")


@pytest.mark.parametrize("host", LOOPBACK)
def test_keys_are_not_required_on_loopback(host):
    Settings.of(host=host).server.require_keys()


@pytest.mark.parametrize("host", OTHER_HOSTS)
def test_keys_or_allow_anonymous_are_required_on_other_hosts(host):
    with pytest.raises(
        SettingsError, match=rf"^HOST={re.escape(host)} is open to other machines: give API_KEYS, .*ALLOW_ANONYMOUS=1"
    ):
        Settings.of(host=host).server.require_keys()
    Settings.of(host=host, api_keys="k" * 16).server.require_keys()
    Settings.of(host=host, allow_anonymous=True).server.require_keys()


def test_weights_without_a_name_are_refused():
    with pytest.raises(SettingsError, match=r"^WEIGHTS=: give a file or a name$"):
        Settings.read({"weights": ""}, {})


def test_every_wrong_setting_is_named_in_one_error():
    with pytest.raises(SettingsError, match=r"BATCH=0: .*; PORT=x: .*; WHAT: no such"):
        Settings.read({"batch": "0"}, {"YOLOPARD_PORT": "x", "YOLOPARD_WHAT": "1"})


def test_settings_are_frozen():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        Settings().model.batch = 2


@pytest.mark.parametrize("field", FIELDS)
def test_every_setting_has_a_description(field):
    assert FIELDS[field].description


def commands() -> dict[str, argparse.ArgumentParser]:
    return next(a.choices for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))


@pytest.mark.parametrize("field", FIELDS)
def test_every_setting_is_an_option_of_every_command_with_dashes_and_underscores(field):
    text, value = SAMPLE[field]
    assert {"build", "serve"} <= commands().keys()
    for command in ("build", "serve"):
        for flag in (f"--{field}", f"--{field.replace('_', '-')}"):
            options = vars(_parser().parse_args([command, flag, text]))
            given = {name: value for name, value in options.items() if value is not None and name != "command"}
            assert value_of(Settings.read(given, NEEDS.get(field, {})), field) == value


def test_missing_options_do_not_override_the_environment():
    options = vars(_parser().parse_args(["serve"]))
    assert {value for name, value in options.items() if name != "command"} == {None}


@pytest.mark.parametrize("line", [["serve", "--bach", "4"], ["serve", "--batc", "4"], ["fly"], []])
def test_a_wrong_command_line_is_refused(line, capsys):
    with pytest.raises(SystemExit) as caught:
        _parser().parse_args(line)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["build", "serve"])
def test_help_lists_every_setting(command):
    text = commands()[command].format_help()
    assert all(f"--{field.replace('_', '-')}" in text for field in FIELDS)


@pytest.mark.parametrize("imgsz", ["640x384,640x640", "320"])
def test_given_returns_settings_that_can_be_read_again(imgsz):
    """The bench passes the settings to its server as text, and a tuple of shapes was not accepted."""
    given = Settings.of(imgsz=imgsz, port=9000)
    assert Settings.read(given.given(), {}) == given


@pytest.mark.parametrize("name", RENAMED)
def test_a_setting_that_was_renamed_is_refused_with_its_new_name(name):
    with pytest.raises(SettingsError) as caught:
        Settings.read({}, {PREFIX + name.upper(): "1"})
    assert str(caught.value) == f"{name.upper()}: {RENAMED[name]}"
    assert name not in FIELDS
