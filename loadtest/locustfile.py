"""Load test with Locust: sends a folder of images, raw and as multipart.

    make peers        # installs Locust
    make serve
    .venv-peers/bin/locust --locustfile loadtest/locustfile.py --host http://127.0.0.1:8000

The web page is at http://127.0.0.1:8089 with --web-host 127.0.0.1; without a page: --headless --users 8 --run-time 30s.
"""

import random
from pathlib import Path

from locust import FastHttpUser, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment

SAMPLES = Path(__file__).resolve().parents[1] / "models/demo/samples"
PATH = "/v1/detect"


@events.init_command_line_parser.add_listener
def add_option(parser: LocustArgumentParser) -> None:
    parser.add_argument("--images", default=str(SAMPLES), env_var="IMAGES", help="the folder of images to send")


class Client(FastHttpUser):
    """Sends its next request as soon as it has a response."""

    images: list[tuple[str, bytes]]

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        folder = Path(environment.parsed_options.images)
        self.images = [(path.name, path.read_bytes()) for path in sorted(folder.iterdir()) if path.is_file()]

    @task(3)
    def raw(self) -> None:
        _, data = random.choice(self.images)
        self._post("raw", 1, data=data, headers={"Content-Type": "application/octet-stream"})

    @task
    def multipart(self) -> None:
        some = random.sample(self.images, min(2, len(self.images)))
        self._post("multipart of 2", len(some), files=[("file", image) for image in some])

    def _post(self, name: str, images: int, **body: object) -> None:
        with self.client.post(PATH, name=f"{PATH} {name}", catch_response=True, **body) as response:
            if response.status_code != 200:
                response.failure(f"{response.status_code}: {response.text}")
                return
            found = response.json()["images"]
            if len(found) != images:
                response.failure(f"{len(found)} answers for {images} images")
            elif not all(0 <= box["confidence"] <= 1 for image in found for box in image["results"]):
                response.failure("a confidence outside 0 to 1")
