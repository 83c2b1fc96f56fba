"""DeepStack and CodeProject.AI: the packages behind Home Assistant's integrations, and Frigate's detector."""

import io
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests
from codeprojectai.core import CodeProjectAIObject
from deepstack.core import DeepstackObject
from PIL import Image

from clients import KEY, SAMPLE, Check, model, native, same

PX = 0.5  # the protocol's boxes are whole pixels
THRESHOLDS = {"conf": 0.45, "iou": 0.45, "max_det": 20}  # both packages send 0.45


def _boxes(predictions: list[dict[str, Any]]) -> list[tuple[str, list[float]]]:
    return [(each["label"], [each[side] for side in ("x_min", "y_min", "x_max", "y_max")]) for each in predictions]


def _address(url: str) -> dict[str, Any]:
    return {"ip": urlsplit(url).hostname, "port": urlsplit(url).port}


def deepstack(url: str) -> str:
    found = DeepstackObject(**_address(url), api_key=KEY).detect(SAMPLE.read_bytes())
    return same(_boxes(found), native(url, **THRESHOLDS), PX)


def deepstack_custom(url: str) -> str:
    client = DeepstackObject(**_address(url), api_key=KEY, custom_model=model(url))
    return same(_boxes(client.detect(SAMPLE.read_bytes())), native(url, **THRESHOLDS), PX)


def codeproject(url: str) -> str:
    """Check codeproject-ai-api. It sends no key, so a server with API_KEYS refuses it."""
    found = CodeProjectAIObject(**_address(url)).detect(SAMPLE.read_bytes())
    return same(_boxes(found), native(url, **THRESHOLDS), PX)


def frigate(url: str) -> str:
    """Check a copy of the call in frigate/detectors/plugins/deepstack.py, commit e3fa70189, at its default size."""
    with Image.open(SAMPLE) as image:
        frame = image.resize((320, 320))
    with io.BytesIO() as output:
        frame.save(output, format="JPEG")
        image_bytes = output.getvalue()
    with requests.Session() as session:
        response = session.post(
            f"{url}/v1/vision/detection", data={"api_key": KEY}, files={"image": image_bytes}, timeout=10
        ).json()
    detections = np.zeros((20, 6), np.float32)
    if response.get("predictions") is None:
        raise RuntimeError(response)
    for i, detection in enumerate(response["predictions"]):
        if detection["confidence"] < 0.4:
            break
        sides = [detection[side] / 320 for side in ("y_min", "x_min", "y_max", "x_max")]
        detections[i] = [1, float(detection["confidence"]), *sides]
    scores = detections[:, 1]
    assert scores[0] > 0.5
    assert (np.diff(scores) <= 0).all()
    return f"{np.count_nonzero(scores)} of 20 rows, best first"


CHECKS: list[Check] = [
    ("deepstack-python", version("deepstack-python"), "DeepstackObject.detect", deepstack),
    ("deepstack-python", version("deepstack-python"), "DeepstackObject(custom_model=...).detect", deepstack_custom),
    ("codeproject-ai-api", version("codeproject-ai-api"), "CodeProjectAIObject.detect", codeproject),
    ("Frigate", "its call, of e3fa70189", "detect_raw", frigate),
]
