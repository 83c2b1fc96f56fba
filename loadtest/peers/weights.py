"""Loads Ultralytics for the peers, from a .pt file or its OpenVINO export, without network access.

    python loadtest/peers/weights.py my.pt     writes my_openvino_model/ beside it

By default Ultralytics gives torch one thread (OMP_NUM_THREADS=1), and OpenVINO computes an FP32 model in BF16 if the
CPU supports it.
"""

import os
import sys
from typing import Any

os.environ |= {"YOLO_AUTOINSTALL": "false", "YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false"}
sys.modules.setdefault("openvino_telemetry", None)

from ultralytics import YOLO, settings  # noqa: E402

settings.update({"sync": False})


def load() -> YOLO:
    """Load the model in the environment variable M: a .pt file or the folder of an OpenVINO model."""
    return YOLO(os.environ["M"], task="detect")


def boxes(model: YOLO, images: list[Any]) -> list[list[dict[str, Any]]]:
    """Return the boxes of each image with Ultralytics' default thresholds, which are also Yolopard's."""
    return [result.summary() for result in model(images, imgsz=640, verbose=False)]


if __name__ == "__main__":
    # FP32, 640. Dynamic, so that it also infers the smallest rectangle: 95 ms against 100 for the bus, 76 against 109
    # for an image of 480x640, each the mean of 5 on a noisy machine.
    YOLO(sys.argv[1], task="detect").export(format="openvino", imgsz=640, dynamic=True)
