"""mosec with its batching, no model."""

import sys
from typing import Any

import orjson
from common import HOST, PORT, answers, frame, workers
from mosec import Server, Worker


class Null(Worker):
    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: list[bytes]) -> list[Any]:
        return answers([frame(image) for image in data])

    def serialize(self, data: Any) -> bytes:
        return orjson.dumps(data)


if __name__ == "__main__":
    sys.argv += ["--address", HOST, "--port", str(PORT), "--log-level", "warning"]
    server = Server()
    # Images a second, 2 cores, medians of 4 alternating turns: this 196 and 129. A stage of two workers that decode, as
    # mosec's examples have it, and one that infers 155 and 118 (the frames go from one to the other), of three 156.
    server.append_worker(Null, num=workers(2), max_batch_size=16, max_wait_time=2)
    server.run()
