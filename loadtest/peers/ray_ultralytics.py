"""Ray Serve with its batching, and Ultralytics."""

from typing import Any

import ray_serving
import weights
from common import decode, workers
from ray import serve
from starlette.requests import Request


# Images a second, 2 cores, medians of 3 alternating turns: two replicas of one torch thread 15.0, in batches of 4 14.2,
# image by image 12.2; one replica of two threads 10.0.
@serve.deployment(num_replicas=workers(2), **ray_serving.REPLICA)
class Detect:
    def __init__(self) -> None:
        ray_serving.stay_on_loopback()
        self.model = weights.load()

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.01)
    async def predict(self, images: list[bytes]) -> list[Any]:
        return weights.boxes(self.model, [decode(image) for image in images])

    async def __call__(self, request: Request) -> Any:
        return await self.predict(await request.body())


if __name__ == "__main__":
    ray_serving.run(Detect.bind())
