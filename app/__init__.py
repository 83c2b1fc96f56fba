"""Yolopard: YOLOv8 weights in, boxes over HTTP at the speed of the engine out."""

import os
import sys

__version__ = "0.1.0"

# Serving phones nobody. Left alone, importing openvino reports to Google Analytics and onnxruntime to Microsoft.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
