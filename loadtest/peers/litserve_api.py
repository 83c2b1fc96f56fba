"""The request type and the start of the LitServe peers."""

from typing import Annotated

import litserve
from common import HOST, PORT
from fastapi import Body

Jpeg = Annotated[bytes, Body(media_type="image/jpeg")]  # the raw body, as for all peers


def run(api: litserve.LitAPI, workers: int) -> None:
    """Serve until the process ends. A second API server or fast_queue=True was not clearly faster on two cores."""
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers)
    server.run(
        host=HOST,
        port=PORT,
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
