"""Concurrent bodies and responses that are large when decompressed: the memory budget must hold."""

import asyncio
import base64
import gzip
import json
import zlib
from functools import cache, partial

from loadtest.hostile import pictures
from loadtest.hostile.attacks.images import image
from loadtest.hostile.attacks.json_bodies import INFER
from loadtest.hostile.row import MB, Target, row
from loadtest.hostile.wire import ask, post, rounds

KIND = "memory"
BUSY = {"statuses": r"200|4\d\d|503|504"}


@cache
def tensor(inflated: int, how: str) -> bytes:
    """Return a compressed KServe request with a tensor of zeros."""
    sides = [inflated // (3 * 640 * 640 * 4), 3, 640, 640]
    size = sides[0] * 3 * 640 * 640 * 4
    given = {"name": "images", "shape": sides, "datatype": "FP32", "parameters": {"binary_data_size": size}}
    start = json.dumps({"inputs": [given]}).encode()
    packed = {"gzip": lambda body: gzip.compress(body, 9), "deflate": lambda body: zlib.compress(body, 9)}
    return _with_header(start, packed[how](start + bytes(size)), how)


def _with_header(start: bytes, body: bytes, how: str) -> bytes:
    length, encoding = f"Inference-Header-Content-Length: {len(start)}", f"Content-Encoding: {how}"
    return post(INFER, body, "application/octet-stream", length, *([encoding] if how else []))


async def at_once(target: Target, request: bytes, count: int) -> None:
    await asyncio.gather(*(ask(target, request) for _ in range(count)))


@row("gzip-tensors", KIND, "48 gzip tensors of 86 KB that inflate to 88 MB each", **BUSY)
async def gzip_tensors(target: Target) -> None:
    request = tensor(target.size(88 * MB, 40 * MB), "gzip")
    await rounds(target.size(4, 0), 0.1, partial(at_once, target, request, target.size(48, 12)))


@row("deflate-tensors", KIND, "the same by deflate, and gzip of spaces and of JSON", **BUSY)
async def deflate_tensors(target: Target) -> None:
    many, size = target.size(48, 12), target.size(88 * MB, 40 * MB)
    await at_once(target, tensor(size, "deflate"), many)
    for body in (b" " * size, b'{"inputs":[' + b"[]," * (size // 3)):
        packed = gzip.compress(body, 9)
        await at_once(target, post(INFER, packed, "application/json", "Content-Encoding: gzip"), many // 4)
    twice = gzip.compress(gzip.compress(bytes(size), 9), 9)
    await at_once(target, post(INFER, twice, "application/json", "Content-Encoding: gzip"), many)


@row("raw-tensors", KIND, "24 tensors of 90 MB, not compressed", **BUSY)
async def raw_tensors(target: Target) -> None:
    size = target.size(90 * MB, 20 * MB)
    given = {"name": "images", "shape": [16, 3, 640, 640], "datatype": "FP32", "parameters": {"binary_data_size": size}}
    start = json.dumps({"inputs": [given]}).encode()
    await at_once(target, _with_header(start, start + bytes(size), ""), target.size(24, 6))


@row("large-bodies", KIND, "48 bodies of 19 MB at once, of each protocol", **BUSY)
async def large_bodies(target: Target) -> None:
    size, many = target.size(19 * MB, 4 * MB), target.size(48, 12)
    text = json.dumps({"model_id": "simulated", "image": {"type": "base64", "value": "A" * size}}).encode()
    for request in (
        image(bytes(size)),
        post("/infer/object_detection", text),
        post("/v1/vision/detection", b"image=" + b"A" * size, "application/x-www-form-urlencoded"),
        post("/predict", b"source=" + b"%41" * (size // 3), "application/x-www-form-urlencoded"),
        post("/simulated/1", b"A" * size, "application/x-www-form-urlencoded"),
    ):
        await at_once(target, request, many)


@row("base64-pictures", KIND, "24 images of one colour and 49 MP in base64, with drawings requested", **BUSY)
async def base64_pictures(target: Target) -> None:
    side = target.size(7000, 2000)
    value = base64.b64encode(pictures.flat("PNG", side, side)).decode()
    document = {"model_id": "simulated", "image": {"type": "base64", "value": value}, "visualize_predictions": True}
    await at_once(target, post("/infer/object_detection", json.dumps(document).encode()), target.size(24, 6))


@row("large-pictures", KIND, "24 images of 49 MP at once", **BUSY)
async def large_pictures(target: Target) -> None:
    side = target.size(7000, 2000)
    await rounds(
        target.size(4, 0), 0.1, partial(at_once, target, image(pictures.flat("JPEG", side, side)), target.size(24, 6))
    )


@row("drawings", KIND, "24 drawings of 20 MB at once, which the clients read", **BUSY)
async def drawings(target: Target) -> None:
    request = post(
        "/v1/predict?format=image", pictures.noise(target.size(2600, 800)), "image/jpeg", "Accept: image/png"
    )
    await at_once(target, request, target.size(24, 6))
