"""python -m app.settings: docs/configuration.md, made from the settings."""

from app.settings import FIELDS, RENAMED
from app.settings.places import ROOT

GROUPS = {
    "Model and engine": "weights imgsz batch precision backend instances decode max_wait_ms simulated_ms",
    "When the engine cannot be had, and a second engine": "fallback compare shadow",
    "Accuracy gate and calibration": "gate_dir gate_fp32 gate_fp16 gate_int8 gate_map_loss calibration_dir",
    "Builds and cores": "engines_dir build_memory_bytes threads",
    "Where the server listens, and what it speaks": "host port grpc_port protocols",
    "Who may use it": "api_keys allow_anonymous allow_hosts allow_urls cors_origins",
    "Limits of a request": "deadline_ms max_body_bytes max_tensor_bytes max_json_bytes max_pixels max_side max_files",
    "Limits of all requests": "max_pending max_inflight_bytes max_inflight_pixels",
    "Limits of connections": "max_connections max_connections_per_peer max_head_bytes head_timeout_ms keep_alive_ms "
    "send_timeout_ms min_bytes_per_s",
    "Log": "log_level log_format access_log",
}

_HEAD = """# Configuration

A setting `NAME` is `make serve NAME=value`, `YOLOPARD_NAME=value` in the environment, and `--name value` of
`yolopard serve` and `yolopard build`. An option comes before the environment. An unknown name is refused.

This page is made by `make docs/configuration.md`."""


def page() -> str:
    """Markdown."""
    parts = [_HEAD]
    for title, names in GROUPS.items():
        rows = [f"| `{name.upper()}` | {_default(name)} | {FIELDS[name].description} |" for name in names.split()]
        parts.append("\n".join([f"## {title}\n", "| setting | default | |", "|---|---|---|", *rows]))
    renamed = [f"- `{name.upper()}`: {text}." for name, text in sorted(RENAMED.items())]
    parts.append("\n".join(["## Names that were\n", "They are refused with this text:\n", *renamed]))
    return "\n\n".join(parts) + "\n"


def _default(name: str) -> str:
    value = FIELDS[name].default
    text = "" if value is None else ",".join(value) if isinstance(value, tuple) else str(value)
    return text.lower() if isinstance(value, bool) else text.removeprefix(f"{ROOT}/")


if __name__ == "__main__":
    print(page(), end="")
