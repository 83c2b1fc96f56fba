"""Describes the circumstances of a measurement (time, machine, versions, commit), and writes Markdown tables."""

import subprocess
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app import __version__
from app.system import gpu, host

_PACKAGES = (
    "openvino",
    "onnxruntime",
    "tensorrt_cu13",
    "torch",
    "opencv-python-headless",
    "uvicorn",
    "fastapi",
    "numpy",
)


def circumstances() -> dict[str, Any]:
    """Return time, machine and versions, which belong to every result."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "yolopard": __version__,
        "commit": _commit(),
        "machine": host.facts(),
        "gpu": gpu.facts(),
        "versions": host.versions(*_PACKAGES),
    }


def machine_line(about: dict[str, Any]) -> str:
    """Return the description of the machine in one line."""
    machine, card = about["machine"], about["gpu"]
    where = f"{machine['cpus']} cores of {machine['cpu']}" + (f", {card['name']}" if card else ", no GPU")
    software = f"{machine['system']}, Python {machine['python']}"
    return f"{where}; {software}; commit {about['commit'] or 'unknown'}, {about['at']}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _commit() -> str:
    """Return the git commit of the source folder; empty if it is no git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
