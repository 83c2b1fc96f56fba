"""The other four tasks: Triton's clients beside POST /v1/predict, and Ultralytics by URL beside the weights file.

A task has a server of its own, with its gRPC on GRPC_PORTS[task]. Pictures are of one size: by URL Ultralytics sends
them in one request, but for classify, of which it sends one at a time.
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
SEED, PICTURES, IMAGES = 900_000, 6, 16  # IMAGES are those of the validation
CONF = 0.1
SIDES = ("x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4")

Found = list[list[dict[str, Any]]]  # of each picture, as Ultralytics' Results.summary()


def weights(task: str) -> Path:
    return DEMO / f"yolov8-demo-{task}.pt"


def pictures(task: str) -> list[np.ndarray]:
    """BGR, as Ultralytics takes them."""
    if task == "classify":
        return [scenes.crop(SEED + i)[0][..., ::-1] for i in range(PICTURES)]
    return [scenes.scene(SEED + i, 320, 240, task).image[..., ::-1] for i in range(PICTURES)]


def files(task: str) -> list[bytes]:
    return [cv2.imencode(".png", image)[1].tobytes() for image in pictures(task)]


def apart(one: Any, other: Any) -> float:
    """The largest difference of any two numbers; raises where anything else differs."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other)
    if isinstance(one, dict):
        assert list(one) == list(other), (one, other)
        return max(map(apart, one.values(), other.values()))
    if isinstance(one, list):
        assert len(one) == len(other), (one, other)
        return max(map(apart, one, other), default=0.0)
    assert one == other, (one, other)
    return 0.0


def alike(found: Found, wanted: Found, where: str) -> str:
    assert sum(map(len, wanted)) >= PICTURES, wanted
    worst = apart(found, wanted)
    assert worst <= PX, worst
    return f"{sum(map(len, found))} results in {len(found)} images, within {worst:.4f} of {where}"


def native(url: str, task: str) -> tuple[Found, dict[str, str]]:
    """What POST /v1/predict finds, and the names of the classes."""
    parts = [("file", file) for file in files(task)]
    answer = requests.post(f"{url}/v1/predict", params={"conf": CONF, "masks": "rle"}, files=parts, timeout=60)
    names = requests.get(f"{url}/v1/models", timeout=30).json()["models"][0]["names"]
    return [image["results"] for image in answer.json()["images"]], names


def reported(answer: Any, names: dict[str, str]) -> Found:
    """The tensors of the model by images, as a summary."""
    counts, scores, classes = (answer.as_numpy(name) for name in ("num_detections", "scores", "classes"))
    every = []
    for i in range(len(scores)):
        rows = range(len(scores[i]) if counts is None else counts[i])
        every.append([
            {"name": names[str(classes[i, j])], "class": int(classes[i, j]), "confidence": float(scores[i, j])}
            | _more(answer, i, j)
            for j in rows
        ])  # fmt: skip
    return every


def _more(answer: Any, i: int, j: int) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    sides = answer.as_numpy("boxes" if answer.as_numpy("corners") is None else "corners")
    if sides is not None:
        parts["box"] = dict(zip(SIDES, sides[i, j].ravel().tolist(), strict=False))
    if (masks := answer.as_numpy("masks")) is not None:
        parts["mask"] = json.loads(masks[i, j])
    if (keypoints := answer.as_numpy("keypoints")) is not None:
        parts["keypoints"] = dict(zip(("x", "y", "visible"), keypoints[i, j].T.tolist(), strict=False))
    return parts


def images(package: Any, task: str) -> list[Any]:
    given = package.InferInput("image", [PICTURES], "BYTES")
    given.set_data_from_numpy(np.array(files(task), np.object_))
    return [given]


def address(url: str, scheme: str, task: str) -> str:
    return f"127.0.0.1:{GRPC_PORTS[task]}" if scheme == "grpc" else url.removeprefix("http://")


def infer(task: str, scheme: str) -> Callable[[str], str]:
    package = GRPC if scheme == "grpc" else HTTP

    def check(url: str) -> str:
        wanted, names = native(url, task)
        with package.InferenceServerClient(address(url, scheme, task)) as client:
            answer = client.infer(f"{model(url)}_image", images(package, task), parameters={"conf": CONF})
        return alike(reported(answer, names), wanted, "/v1/predict")

    return check


def infer_async(task: str) -> Callable[[str], str]:
    async def ask(url: str) -> Any:
        async with tritonclient.http.aio.InferenceServerClient(address(url, "http", task)) as client:
            return await client.infer(f"{model(url)}_image", images(HTTP, task), parameters={"conf": CONF})

    def check(url: str) -> str:
        wanted, names = native(url, task)
        return alike(reported(asyncio.run(ask(url)), names), wanted, "/v1/predict")

    return check


def predict(task: str, scheme: str) -> Callable[[str], str]:
    def check(url: str) -> str:
        remote, local = YOLO(f"{scheme}://{address(url, scheme, task)}/{model(url)}", task=task), YOLO(weights(task))
        options = {"conf": CONF, "imgsz": local.overrides["imgsz"], "verbose": False}
        with own_nms():
            found, wanted = (
                [results.summary() for results in each.predict(pictures(task), **options)] for each in (remote, local)
            )
        return alike(found, wanted, "the file")

    return check


def validate(task: str) -> Callable[[str], str]:
    """By URL and by file, on the same images."""

    def check(url: str) -> str:
        with tempfile.TemporaryDirectory() as name:
            folder, local = Path(name), YOLO(weights(task))
            side = local.overrides["imgsz"]
            for part in ("train", "val") if task == "classify" else ("",):
                scenes.write_dataset(folder / part, IMAGES, SEED, side, side, task)
            data = folder if task == "classify" else folder / "data.yaml"
            options = {"data": data, "imgsz": side, "plots": False, "verbose": False, "project": name, "workers": 0}
            with own_nms():
                found, wanted = (
                    each.val(**options).results_dict for each in (YOLO(f"{url}/{model(url)}", task=task), local)
                )
        figure = "metrics/accuracy_top1" if task == "classify" else [name for name in wanted if "mAP50-95" in name][-1]
        assert abs(found[figure] - wanted[figure]) < 0.01, (found, wanted)
        return f"{figure.removeprefix('metrics/')} {found[figure]:.4f}; the file itself {wanted[figure]:.4f}"

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
