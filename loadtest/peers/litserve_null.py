"""LitServe with its batching, no model."""

from typing import Any

import litserve
import litserve_api
from common import answers, frame, workers


class Null(litserve.LitAPI):
    def setup(self, device: str) -> None:
        """There is no model."""

    def decode_request(self, request: litserve_api.Jpeg) -> Any:
        return frame(request)

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs  # the default would copy the frames into one array

    def predict(self, x: list[Any]) -> list[Any]:
        return answers(x)

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> Any:
        return output


if __name__ == "__main__":
    # Images a second, 2 cores, medians of 4 alternating turns: one worker 201, with fast_queue 177, and two without
    # batching 183. Another run: one worker 130, with fast_queue 143, with two API servers 122; two workers
    # 128, 114, 128.
    litserve_api.run(Null(max_batch_size=16, batch_timeout=0.002), workers(1))
