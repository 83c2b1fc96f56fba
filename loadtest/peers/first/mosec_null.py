"""mosec with its batching, no model: a stage of two workers that decode, and one that infers."""

import sys
from pathlib import Path
from typing import Any

import orjson
from mosec import Server, Worker

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import HOST, PORT, answers, frame


class Decode(Worker):
    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> Any:
        return frame(data)


class Infer(Worker):
    def forward(self, data: list[Any]) -> list[Any]:
        return answers(data)

    def serialize(self, data: Any) -> bytes:
        return orjson.dumps(data)


if __name__ == "__main__":
    sys.argv += ["--address", HOST, "--port", str(PORT), "--log-level", "warning"]
    server = Server()
    server.append_worker(Decode, num=2)
    server.append_worker(Infer, num=1, max_batch_size=16, max_wait_time=2)
    server.run()
