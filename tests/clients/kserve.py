"""Triton's clients, curl, and Ultralytics by URL; none sends a key. The server has gRPC on GRPC_PORT."""

import asyncio
import json
import re
import subprocess
import sys
import tempfile
import types
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import scenes
import tritonclient.grpc
import tritonclient.http
import tritonclient.http.aio
import yaml
from ultralytics import YOLO
from ultralytics.utils.nms import TorchNMS

from app.settings import DEMO_WEIGHTS
from clients import SAMPLE, Box, Check, model, native, same

GRPC_PORT = 18001
PX = 0.01  # maximum difference
VALIDATION_IMAGES = 16

HTTP, GRPC = tritonclient.http, tritonclient.grpc


def address(url: str, package: types.ModuleType) -> str:
    return f"127.0.0.1:{GRPC_PORT}" if package is GRPC else url.removeprefix("http://")


def image(package: types.ModuleType) -> list[Any]:
    tensor = package.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([SAMPLE.read_bytes()], np.object_))
    return [tensor]


def boxes(url: str, sides: np.ndarray, classes: np.ndarray) -> list[Box]:
    with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as response:
        names = json.load(response)["models"][0]["names"]
    return [(names[str(int(each))], box.tolist()) for each, box in zip(classes, sides, strict=True)]


def compared(url: str, response: Any) -> str:
    found = boxes(url, response.as_numpy("boxes")[0], response.as_numpy("classes")[0])
    return same(found, native(url), PX)


def metadata(package: types.ModuleType) -> Callable[[str], str]:
    def check(url: str) -> str:
        with package.InferenceServerClient(address(url, package)) as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.get_server_metadata()
            assert client.get_model_repository_index()
            for name in (model(url), f"{model(url)}_image"):
                assert client.is_model_ready(name)
                assert client.get_model_metadata(name)
                assert client.get_model_config(name)
                assert client.get_inference_statistics(name)
                client.load_model(name)
        return "both models are there and ready"

    return check


def infer(package: types.ModuleType, **options: Any) -> Callable[[str], str]:
    def check(url: str) -> str:
        with package.InferenceServerClient(address(url, package)) as client:
            return compared(url, client.infer(f"{model(url)}_image", image(package), **options))

    return check


def infer_async(url: str) -> str:
    async def call() -> Any:
        async with tritonclient.http.aio.InferenceServerClient(address(url, HTTP)) as client:
            return await client.infer(f"{model(url)}_image", image(HTTP))

    return compared(url, asyncio.run(call()))


def curl(url: str) -> str:
    sent = ["--data-binary", f"@{SAMPLE}", "--header", "Inference-Header-Content-Length: 0"]
    command = ["curl", "--silent", "--include", *sent, f"{url}/v2/models/{model(url)}_image/infer"]
    response = subprocess.run(command, check=True, capture_output=True, timeout=30).stdout
    headers, _, body = response.partition(b"\r\n\r\n")
    size = int(re.search(rb"inference-header-content-length: (\d+)", headers.lower())[1])
    outputs, at = {}, size
    for output in json.loads(body[:size])["outputs"]:
        dtype = {"FP32": np.float32, "INT32": np.int32}[output["datatype"]]
        values = np.frombuffer(body, dtype, int(np.prod(output["shape"])), at)
        outputs[output["name"]] = values.reshape(output["shape"])
        at += output["parameters"]["binary_data_size"]
    return same(boxes(url, outputs["boxes"][0], outputs["classes"][0]), native(url), PX)


def predict(package: types.ModuleType) -> Callable[[str], str]:
    scheme = "grpc" if package is GRPC else "http"

    def check(url: str) -> str:
        remote = YOLO(f"{scheme}://{address(url, package)}/{model(url)}", task="detect")
        (found,) = remote.predict(SAMPLE, verbose=False)
        return same(boxes(url, found.boxes.xyxy.numpy(), found.boxes.cls.numpy()), native(url), PX)

    return check


def validate(url: str) -> str:
    """Compare mAP50-95 by URL with that of the weights file, on the same images."""
    with tempfile.TemporaryDirectory() as folder:
        scenes.write_dataset(Path(folder), VALIDATION_IMAGES, seed=900_000, height=448)
        data = Path(folder, "data.yaml")
        local = YOLO(DEMO_WEIGHTS)
        data.write_text(yaml.safe_dump({"path": folder, "train": "images", "val": "images", "names": local.names}))
        options = {"data": data, "plots": False, "verbose": False, "project": folder}
        with own_nms():
            remote_map = YOLO(f"{url}/{model(url)}", task="detect").val(**options).box.map
            local_map = local.val(**options).box.map
    assert abs(remote_map - local_map) < 0.01, (remote_map, local_map)
    return f"mAP50-95 {remote_map:.4f} on {VALIDATION_IMAGES} images; the file itself {local_map:.4f}"


@contextmanager
def own_nms() -> Iterator[None]:
    """Replace torchvision by modules with Ultralytics' own NMS and without compiled code.

    torchvision's compiled code does not fit every torch.
    """
    folders = find_spec("torchvision").submodule_search_locations
    stand_in, datasets = types.ModuleType("torchvision"), types.ModuleType("torchvision.datasets")
    stand_in.__path__, datasets.__path__ = folders, [f"{folder}/datasets" for folder in folders]
    with mock.patch.dict(sys.modules, {"torchvision": stand_in, "torchvision.datasets": datasets}):
        stand_in.ops = types.SimpleNamespace(nms=TorchNMS.nms)
        stand_in.datasets = import_module("torchvision.datasets.folder")
        yield


TRITON, ULTRALYTICS = f"tritonclient {version('tritonclient')}", f"ultralytics {version('ultralytics')}"
_GZIP = {"request_compression_algorithm": "gzip", "response_compression_algorithm": "deflate"}
CHECKS: list[Check] = [
    ("Triton, HTTP", TRITON, "health, metadata, config, index, statistics, load", metadata(HTTP)),
    ("Triton, HTTP", TRITON, "infer of an image", infer(HTTP)),
    ("Triton, HTTP", TRITON, "infer, compressed both ways", infer(HTTP, **_GZIP)),
    ("Triton, HTTP, asyncio", TRITON, "infer of an image", infer_async),
    ("Triton, gRPC", TRITON, "health, metadata, config, index, statistics, load", metadata(GRPC)),
    ("Triton, gRPC", TRITON, "infer of an image", infer(GRPC)),
    ("curl", "", "an image to /v2/models/{model}_image/infer", curl),
    ("Ultralytics by URL", ULTRALYTICS, 'YOLO("http://...").predict', predict(HTTP)),
    ("Ultralytics by URL", ULTRALYTICS, 'YOLO("grpc://...").predict', predict(GRPC)),
    ("Ultralytics by URL", ULTRALYTICS, 'YOLO("http://...").val', validate),
]
