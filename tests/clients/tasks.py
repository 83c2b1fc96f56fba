"""The other four tasks: compares Triton's clients with POST /v1/predict, and Ultralytics by URL with the weights file.

Each task has its own server, with gRPC on GRPC_PORTS[task]. All samples have one size, because Ultralytics sends them
by URL in one request (for classify, one request for each).
"""

import asyncio
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import requests
import scenes
import tritonclient.grpc
import tritonclient.http
import tritonclient.http.aio
from ultralytics import YOLO

from app.settings import DEMO
from clients import Check, model
from clients.kserve import GRPC_PORT, PX, TRITON, ULTRALYTICS, own_nms

GRPC, HTTP = tritonclient.grpc, tritonclient.http
TASKS = ("segment", "pose", "classify", "obb")
GRPC_PORTS = {task: GRPC_PORT + i for i, task in enumerate(TASKS, 1)}
SEED, SAMPLES, VALIDATION_IMAGES = 900_000, 6, 16
CONF = 0.1
SIDES = ("x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4")

Found = list[list[dict[str, Any]]]  # for each sample, like Ultralytics' Results.summary()


def weights(task: str) -> Path:
    return DEMO / f"yolov8-demo-{task}.pt"


def samples(task: str) -> list[np.ndarray]:
    """Return the samples, uint8 [H, W, 3], BGR as in Ultralytics."""
    if task == "classify":
        return [scenes.crop(SEED + i)[0][..., ::-1] for i in range(SAMPLES)]
    return [scenes.scene(SEED + i, 320, 240, task).image[..., ::-1] for i in range(SAMPLES)]


def files(task: str) -> list[bytes]:
    return [cv2.imencode(".png", image)[1].tobytes() for image in samples(task)]


def difference(one: Any, other: Any) -> float:
    """Return the largest difference of two numbers. Raises AssertionError if anything else differs."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other)
    if isinstance(one, dict):
        assert list(one) == list(other), (one, other)
        return max(map(difference, one.values(), other.values()))
    if isinstance(one, list):
        assert len(one) == len(other), (one, other)
        return max(map(difference, one, other), default=0.0)
    assert one == other, (one, other)
    return 0.0


def compare(found: Found, expected: Found, where: str) -> str:
    assert sum(map(len, expected)) >= SAMPLES, expected
    worst = difference(found, expected)
    assert worst <= PX, worst
    return f"{sum(map(len, found))} results in {len(found)} images, within {worst:.4f} of {where}"


def native(url: str, task: str) -> tuple[Found, dict[str, str]]:
    """Return the results of POST /v1/predict and the names of the classes."""
    parts = [("file", file) for file in files(task)]
    response = requests.post(f"{url}/v1/predict", params={"conf": CONF, "masks": "rle"}, files=parts, timeout=60)
    names = requests.get(f"{url}/v1/models", timeout=30).json()["models"][0]["names"]
    return [image["results"] for image in response.json()["images"]], names


def results_of(response: Any, names: dict[str, str]) -> Found:
    """Return the tensors of a response in the form of Found."""
    counts, scores, classes = (response.as_numpy(name) for name in ("num_detections", "scores", "classes"))
    found = []
    for i in range(len(scores)):
        rows = range(len(scores[i]) if counts is None else counts[i])
        found.append([
            {"name": names[str(classes[i, j])], "class": int(classes[i, j]), "confidence": float(scores[i, j])}
            | _geometry(response, i, j)
            for j in rows
        ])  # fmt: skip
    return found


def _geometry(response: Any, i: int, j: int) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    sides = response.as_numpy("boxes" if response.as_numpy("corners") is None else "corners")
    if sides is not None:
        parts["box"] = dict(zip(SIDES, sides[i, j].ravel().tolist(), strict=False))
    if (masks := response.as_numpy("masks")) is not None:
        parts["mask"] = json.loads(masks[i, j])
    if (keypoints := response.as_numpy("keypoints")) is not None:
        parts["keypoints"] = dict(zip(("x", "y", "visible"), keypoints[i, j].T.tolist(), strict=False))
    return parts


def images(package: Any, task: str) -> list[Any]:
    tensor = package.InferInput("image", [SAMPLES], "BYTES")
    tensor.set_data_from_numpy(np.array(files(task), np.object_))
    return [tensor]


def address(url: str, scheme: str, task: str) -> str:
    return f"127.0.0.1:{GRPC_PORTS[task]}" if scheme == "grpc" else url.removeprefix("http://")


def infer(task: str, scheme: str) -> Callable[[str], str]:
    package = GRPC if scheme == "grpc" else HTTP

    def check(url: str) -> str:
        expected, names = native(url, task)
        with package.InferenceServerClient(address(url, scheme, task)) as client:
            response = client.infer(f"{model(url)}_image", images(package, task), parameters={"conf": CONF})
        return compare(results_of(response, names), expected, "/v1/predict")

    return check


def infer_async(task: str) -> Callable[[str], str]:
    async def call(url: str) -> Any:
        async with tritonclient.http.aio.InferenceServerClient(address(url, "http", task)) as client:
            return await client.infer(f"{model(url)}_image", images(HTTP, task), parameters={"conf": CONF})

    def check(url: str) -> str:
        expected, names = native(url, task)
        return compare(results_of(asyncio.run(call(url)), names), expected, "/v1/predict")

    return check


def predict(task: str, scheme: str) -> Callable[[str], str]:
    def check(url: str) -> str:
        remote, local = YOLO(f"{scheme}://{address(url, scheme, task)}/{model(url)}", task=task), YOLO(weights(task))
        options = {"conf": CONF, "imgsz": local.overrides["imgsz"], "verbose": False}
        with own_nms():
            found, expected = (
                [results.summary() for results in each.predict(samples(task), **options)] for each in (remote, local)
            )
        return compare(found, expected, "the file")

    return check


def validate(task: str) -> Callable[[str], str]:
    """Return a check that compares the accuracy by URL with that of the weights file, on the same images."""

    def check(url: str) -> str:
        with tempfile.TemporaryDirectory() as name:
            folder, local = Path(name), YOLO(weights(task))
            side = local.overrides["imgsz"]
            for part in ("train", "val") if task == "classify" else ("",):
                scenes.write_dataset(folder / part, VALIDATION_IMAGES, SEED, side, side, task)
            data = folder if task == "classify" else folder / "data.yaml"
            options = {"data": data, "imgsz": side, "plots": False, "verbose": False, "project": name, "workers": 0}
            with own_nms():
                found, expected = (
                    each.val(**options).results_dict for each in (YOLO(f"{url}/{model(url)}", task=task), local)
                )
        metric = "metrics/accuracy_top1" if task == "classify" else [key for key in expected if "mAP50-95" in key][-1]
        assert abs(found[metric] - expected[metric]) < 0.01, (found, expected)
        return f"{metric.removeprefix('metrics/')} {found[metric]:.4f}; the file itself {expected[metric]:.4f}"

    return check


def checks(task: str) -> list[Check]:
    return [
        ("Triton, HTTP", TRITON, f"infer of images, {task}", infer(task, "http")),
        ("Triton, HTTP, asyncio", TRITON, f"infer of images, {task}", infer_async(task)),
        ("Triton, gRPC", TRITON, f"infer of images, {task}", infer(task, "grpc")),
        ("Ultralytics by URL", ULTRALYTICS, f'YOLO("http://...", task="{task}").predict', predict(task, "http")),
        ("Ultralytics by URL", ULTRALYTICS, f'YOLO("grpc://...", task="{task}").predict', predict(task, "grpc")),
        ("Ultralytics by URL", ULTRALYTICS, f'YOLO("http://...", task="{task}").val', validate(task)),
    ]


CHECKS = {task: checks(task) for task in TASKS}
