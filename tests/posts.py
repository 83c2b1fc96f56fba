"""Requests of most API tests, and parts of the responses."""

import io
import threading
import time

from PIL import Image


def jpeg(width: int = 64, height: int = 64, **options) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(file, "JPEG", **options)
    return file.getvalue()


def post(live, data: bytes | None = None, path: str = "/v1/detect", **options):
    return live.client.post(path, content=jpeg() if data is None else data, **options)


def error(response) -> tuple[int, str]:
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"code", "message", "request_id"}
    assert body["error"]["message"]
    assert body["error"]["request_id"] == response.headers["x-request-id"]
    return response.status_code, body["error"]["code"]


def names(response) -> list[str]:
    assert response.status_code == 200, response.text
    return [found["name"] for image in response.json()["images"] for found in image["results"]]


def wait_for(condition) -> None:
    """Wait until the condition is true; the server has no event that a test could wait for."""
    tick = threading.Event()
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        tick.wait(0.002)
