"""Work after the engine: masks and drawings of as many boxes as a request may have. They build an engine first."""

import asyncio
from functools import partial

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
}


@row(
    "segment-all",
    KIND,
    "segment, conf=0, max_det=1024, DEADLINE_MS=5000, four at once: no answer after 5 s",
    **SEGMENT,
    answer_s=5.5,
)
async def segment_all(target: Target) -> None:
    requests = [
        post(f"/v1/predict?conf=0&max_det=1024{more}", SAMPLE, "image/jpeg")
        for more in ("", "&masks=rle", "&format=image")
    ]

    async def four(request: bytes) -> None:
        await asyncio.gather(*(ask(target, request) for _ in range(target.size(4, 1))))

    await rounds(0, 0.1, *(partial(four, request) for request in requests))
