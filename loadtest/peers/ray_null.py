"""Ray Serve with its batching, no model."""

from typing import Any

import ray_serving
from common import answers, frame, workers
from ray import serve
from starlette.requests import Request


# Images a second, 2 cores, medians of 4 alternating turns: two replicas 108; one that decodes in a thread 97, two 99.
@serve.deployment(num_replicas=workers(2), **ray_serving.REPLICA)
class Null:
    def __init__(self) -> None:
        ray_serving.stay_on_loopback()

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.002)
    async def predict(self, images: list[bytes]) -> list[Any]:
        return answers([frame(image) for image in images])

    async def __call__(self, request: Request) -> Any:
        return await self.predict(await request.body())


if __name__ == "__main__":
    ray_serving.run(Null.bind())
