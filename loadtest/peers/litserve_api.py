"""How the LitServe peers take an image and start."""

from typing import Annotated

import litserve
from common import HOST, PORT
from fastapi import Body

Jpeg = Annotated[bytes, Body(media_type="image/jpeg")]  # the raw body, as all peers get it


def run(api: litserve.LitAPI, workers: int) -> None:
    """Until the process is ended. A second API server and fast_queue=True were no clear gain on two cores."""
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers)
    server.run(
        host=HOST,
        port=PORT,
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
