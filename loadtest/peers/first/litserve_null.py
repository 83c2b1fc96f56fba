"""LitServe with its batching, no model."""

import os
import sys
from pathlib import Path
from typing import Any

import litserve

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import PORT, answers, frame


class Null(litserve.LitAPI):
    def setup(self, device: str) -> None:
        """There is no model."""

    def decode_request(self, request) -> Any:  # noqa: ANN001  # LitServe goes by it: none is a form
        return frame(request["file"].file.read())

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, x: list[Any]) -> list[Any]:
        return answers(x)

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: Any) -> Any:
        return output


if __name__ == "__main__":
    workers = int(os.environ.get("WORKERS", "1"))
    server = litserve.LitServer(
        Null(max_batch_size=16, batch_timeout=0.002), accelerator="cpu", workers_per_device=workers
    )
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="warning", num_api_servers=1)
