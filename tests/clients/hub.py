"""Ultralytics Platform and HUB: the examples on their pages, with another address."""

from typing import Any

import requests

from clients import KEY, SAMPLE, Check, model, native, same

BEARER, X_API_KEY = {"Authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}


def _boxes(response: requests.Response) -> list[tuple[str, list[float]]]:
    response.raise_for_status()
    results = response.json()["images"][0]["results"]
    return [(each["name"], [each["box"][side] for side in ("x1", "y1", "x2", "y2")]) for each in results]


def _post(url: str, headers: dict[str, str], part: str = "file", **data: Any) -> requests.Response:
    with SAMPLE.open("rb") as file:
        return requests.post(url, headers=headers, data=data, files={part: file}, timeout=30)


def shared(url: str) -> str:
    data = {"conf": 0.25, "iou": 0.7, "imgsz": 640}
    return same(_boxes(_post(f"{url}/api/models/{model(url)}/predict", BEARER, **data)), native(url), 0.001)


def dedicated(url: str) -> str:
    return same(_boxes(_post(f"{url}/predict", BEARER, conf=0.5)), native(url, conf=0.5), 0.001)


def hub(url: str) -> str:
    data = {"model": f"https://hub.ultralytics.com/models/{model(url)}", "imgsz": 640, "conf": 0.25, "iou": 0.45}
    return same(_boxes(_post(url, X_API_KEY, **data)), native(url, iou=0.45), 0.001)


def old_hub(url: str) -> str:
    response = _post(f"{url}/v1/predict/{model(url)}", X_API_KEY, "image", size=640, confidence=0.25, iou=0.45).json()
    assert response["success"], response
    width, height = 640, 480
    found = [
        (
            each["name"],
            [
                (each["xcenter"] - each["width"] / 2) * width,
                (each["ycenter"] - each["height"] / 2) * height,
                (each["xcenter"] + each["width"] / 2) * width,
                (each["ycenter"] + each["height"] / 2) * height,
            ],
        )
        for each in response["data"]
    ]
    return same(found, native(url, iou=0.45), 0.001)


_VERSION = f"requests {requests.__version__}"
CHECKS: list[Check] = [
    ("Ultralytics Platform, shared", _VERSION, "POST /api/models/{model}/predict", shared),
    ("Ultralytics Platform, dedicated", _VERSION, "POST /predict", dedicated),
    ("Ultralytics HUB", _VERSION, "POST /", hub),
    ("Ultralytics HUB, until 2024", _VERSION, "POST /v1/predict/{model}", old_hub),
]
