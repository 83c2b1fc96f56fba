"""Work after inference: masks and drawings for the maximum number of boxes. The server builds an engine first."""

import asyncio
import io
from functools import partial

from PIL import Image

from loadtest.hostile import pictures
from loadtest.hostile.good import SAMPLE
from loadtest.hostile.row import Target, row
from loadtest.hostile.server import ROOT
from loadtest.hostile.wire import ask, post, rounds

KIND = "engine"
SEGMENT = {
    "settings": {
        "backend": "openvino",
        "weights": ROOT / "models/demo/yolov8-demo-segment.pt",
        "deadline_ms": 5000,
    },
    "statuses": r"200|4\d\d|503|504",
    "shares_engine": True,
}


@row(
    "segment-all",
    KIND,
    "segment, 31 MP, conf=0, max_det=1024, DEADLINE_MS=5000, four at once: every response within 5 s",
    **SEGMENT,
    answer_s=5.5,
)
async def segment_all(target: Target) -> None:
    with Image.open(io.BytesIO(SAMPLE)) as sample:
        large = pictures.encoded(sample.resize((target.size(6400, 1600), target.size(4800, 1200))), "JPEG")
    requests = [
        post(f"/v1/predict?conf=0&max_det=1024{more}", large, "image/jpeg")
        for more in ("", "&masks=rle", "&format=image")
    ]

    async def four(request: bytes) -> None:
        await asyncio.gather(*(ask(target, request) for _ in range(target.size(4, 1))))

    await rounds(0, 0.1, *(partial(four, request) for request in requests))
