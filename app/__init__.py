"""Yolopard: serves YOLOv8 over HTTP at the speed of the engine."""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.embed import Yolopard

__all__ = ["Yolopard", "__version__"]
__version__ = "0.1.0"

# No telemetry. By default, importing openvino reports to Google Analytics, and onnxruntime to Microsoft.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    """Import app.embed only on `from app import Yolopard`."""
    if name == "Yolopard":
        return importlib.import_module("app.embed").Yolopard
    raise AttributeError(f"module 'app' has no attribute {name!r}")
