"""Images of kilobytes that cost seconds or gigabytes to decode."""

import asyncio
import base64
import json
from functools import partial

from loadtest.hostile import pictures
from loadtest.hostile.attacks.forms import MULTIPART
from loadtest.hostile.attacks.json_bodies import INFER
from loadtest.hostile.row import Target, row
from loadtest.hostile.wire import ask, post, rounds

KIND = "images"
SMALL = {"memory_mb": 100, "answer_s": 0.5, "statuses": r"4\d\d|503|504|closed"}
HEAVY = {"statuses": r"200|4\d\d|503|504|closed"}  # some are within the limits and inferred
SOME_S = "X-Deadline-Ms: 1000"


def image(data: bytes, *headers: str) -> bytes:
    return post("/v1/predict", data, "image/jpeg", *headers)


def multipart(files: list[bytes]) -> bytes:
    start = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    return b"".join(start + file + b"\r\n" for file in files) + b"--b--\r\n"


async def at_once(target: Target, request: bytes, count: int) -> None:
    await asyncio.gather(*(ask(target, request) for _ in range(count)))


@row("many-scans-60", KIND, "a JPEG of 49 MP and 100 KB with 60 scans, three at once, deadline 1 s", **SMALL)
async def many_scans_60(target: Target) -> None:
    call = partial(at_once, target, image(pictures.many_scans(7000, 60), SOME_S), 3)
    await rounds(target.size(4, 0), 0.1, call)


@row("many-scans-400", KIND, "the same with 400 scans", **SMALL)
async def many_scans_400(target: Target) -> None:
    call = partial(at_once, target, image(pictures.many_scans(7000, 400), SOME_S), 3)
    await rounds(target.size(4, 0), 0.1, call)


@row("many-scans-small", KIND, "JPEGs of 1 MP and 4000 scans, eight at once, deadline 1 s", **SMALL)
async def many_scans_small(target: Target) -> None:
    call = partial(at_once, target, image(pictures.many_scans(1000, target.size(4000, 1000)), SOME_S), 8)
    await rounds(target.size(4, 0), 0.1, call)


@row("two-sizes", KIND, "a TIFF of 6 KB with 100 px in its header that decodes to 324 MP", **SMALL)
async def two_sizes(target: Target) -> None:
    await rounds(target.size(4, 0), 0.1, partial(ask, target, image(pictures.two_sizes(18_000, 100))))


@row("two-sizes-others", KIND, "TIFFs of two sizes: other order, other types, KServe and Roboflow", **SMALL)
async def two_sizes_others(target: Target) -> None:
    files = [pictures.two_sizes(18_000, 100, big_first=first, kind=kind) for first in (True, False) for kind in (9, 16)]
    files.append(pictures.two_sizes(18_000, 100, big_first=False))
    first = pictures.two_sizes(18_000, 100)
    document = {"model_id": "simulated", "image": {"type": "base64", "value": base64.b64encode(first).decode()}}
    calls = [
        *(image(file) for file in files),
        post("/infer/object_detection", json.dumps(document).encode()),
        post("/simulated/1", base64.b64encode(first), "application/x-www-form-urlencoded"),
        post(
            "/v2/models/simulated_image/infer", first, "application/octet-stream", "Inference-Header-Content-Length: 0"
        ),
        post("/v1/vision/detection", multipart([first]).replace(b'"file"', b'"image"'), MULTIPART),
    ]
    await rounds(0, 0.1, *(partial(ask, target, call) for call in calls))


@row("padded-head", KIND, "19 MB of 0xff before a JPEG's head, and of empty comments", **SMALL | {"memory_mb": 250})
async def padded_head(target: Target) -> None:
    made = pictures.padded(target.size(19 << 20, 2 << 20))
    calls = [partial(ask, target, image(made[name])) for name in ("JPEG, 0xff", "JPEG, empty comments")]
    await rounds(target.size(4, 0), 0.1, *calls)


@row("padded-others", KIND, "19 MB of padding of other kinds: PNG, WebP, GIF, TIFF", **HEAVY | {"answer_s": 0.5})
async def padded_others(target: Target) -> None:
    for name, data in pictures.padded(target.size(19 << 20, 1 << 20)).items():
        if name not in ("JPEG, 0xff", "JPEG, empty comments"):
            await ask(target, image(data))
            await asyncio.sleep(0.1)


@row("one-px-wide", KIND, "64 PNGs of 1 x 50,000,000 px in one request of 12 MB", **SMALL)
async def one_px_wide(target: Target) -> None:
    file = pictures.flat("PNG", 1, target.size(50_000_000, 5_000_000))
    await rounds(target.size(4, 0), 0.1, partial(ask, target, post("/v1/predict", multipart([file] * 64), MULTIPART)))


@row("one-px-others", KIND, "64 PNGs one px high or wide, to every protocol", **SMALL)
async def one_px_others(target: Target) -> None:
    pixels = target.size(40_000_000, 4_000_000)
    wide, high = pictures.flat("PNG", pixels, 1), pictures.flat("PNG", 1, pixels)
    texts = [{"type": "base64", "value": base64.b64encode(wide).decode()}] * 16
    kserve = {"inputs": [{"name": "image", "shape": [16], "datatype": "BYTES", "parameters": {"binary_data_size": 0}}]}
    raw = b"".join(len(high).to_bytes(4, "little") + high for _ in range(16))
    kserve["inputs"][0]["parameters"] = {"binary_data_size": len(raw)}
    start = json.dumps(kserve).encode()
    calls = [
        post("/v1/predict", multipart([wide] * 64), MULTIPART),
        post("/infer/object_detection", json.dumps({"model_id": "simulated", "image": texts}).encode()),
        post(
            INFER.replace("simulated", "simulated_image"),
            start + raw,
            "application/octet-stream",
            f"Inference-Header-Content-Length: {len(start)}",
        ),
    ]
    await rounds(0, 0.1, *(partial(ask, target, call) for call in calls))


@row("flat-bombs", KIND, "flat PNG, GIF, WebP, TIFF and progressive JPEG of 49 MP, eight at once", **HEAVY)
async def flat_bombs(target: Target) -> None:
    side = target.size(7000, 2000)
    for kind in ("PNG", "GIF", "TIFF", "JPEG"):
        await at_once(target, image(pictures.flat(kind, side, side), SOME_S), target.size(8, 3))
    webp = pictures.flat("WEBP", side, side)
    await at_once(target, image(webp, SOME_S), target.size(8, 3))


@row("flat-files", KIND, "64 flat PNGs of 25 MP in one request, three at once", **HEAVY)
async def flat_files(target: Target) -> None:
    side = target.size(5000, 1500)
    request = post("/v1/predict", multipart([pictures.flat("PNG", side, side)] * 64), MULTIPART, SOME_S)
    await at_once(target, request, 3)
