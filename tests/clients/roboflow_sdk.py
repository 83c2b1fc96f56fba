"""The calls of inference_sdk, run by roboflow.py in another virtual environment.

Arguments: URL KEY MODEL IMAGE. Prints JSON, {call: [[class, box] of each box] of each image, or the error}.
"""

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import supervision
from inference_sdk import InferenceConfiguration, InferenceHTTPClient


def boxes(response: dict[str, Any]) -> list[Any]:
    def box(x: float, y: float, width: float, height: float) -> list[float]:
        return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]

    sides = ("x", "y", "width", "height")
    return [(each["class"], box(*(each[side] for side in sides))) for each in response["predictions"]]


def calls(url: str, key: str, model: str, image: str) -> Iterator[tuple[str, Callable[[], list[Any]]]]:
    def client(transport: str = "legacy") -> InferenceHTTPClient:
        thresholds = {"confidence_threshold": 0.5, "iou_threshold": 0.5}
        settings = InferenceConfiguration(**thresholds, max_batch_size=2, api_key_transport=transport)
        return InferenceHTTPClient(api_url=url, api_key=key).configure(settings)

    def supervision_boxes() -> list[Any]:
        found = supervision.Detections.from_inference(client().infer(image, model_id=model))
        return [list(zip(found.data["class_name"].tolist(), found.xyxy.tolist(), strict=True))]

    yield "InferenceHTTPClient.infer", lambda: [boxes(client().infer(image, model_id=model))]
    yield "infer, the key in a header", lambda: [boxes(client("header").infer(image, model_id=model))]
    yield "infer of a list, two a request", lambda: list(map(boxes, client().infer([image] * 3, model_id=model)))
    yield "infer_async", lambda: [boxes(asyncio.run(client().infer_async(image, model_id=model)))]
    yield "infer, API v0", lambda: [boxes(client().select_api_v0().infer(image, model_id=f"{model}/1"))]
    yield "Detections.from_inference", supervision_boxes


def result_or_error(call: Callable[[], list[Any]]) -> Any:
    try:
        return call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    print(json.dumps({name: result_or_error(call) for name, call in calls(*sys.argv[1:])}))
