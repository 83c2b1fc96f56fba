"""The good client: sends a sample and a /healthz request every 0.1 s, each on its own connection."""

import http.client
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from loadtest.hostile.server import KEY, ROOT

SAMPLE = (ROOT / "models/demo/samples/scene-1.jpg").read_bytes()
EVERY_S = 0.1
PATIENCE_S = 20.0


@dataclass(frozen=True)
class Seen:
    at: float  # time.monotonic() at which it was due
    path: str
    status: str
    seconds: float  # since it was due, including the wait for a thread


class Good:
    """Sends requests until the end of `with`; `seen` has every response."""

    def __init__(self, port: int, *, keys: bool) -> None:
        self._port = port
        self._headers = {"X-API-Key": KEY} if keys else {}
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(64)
        self._thread = threading.Thread(target=self._run)
        self.seen: list[Seen] = []
        self.pause_s = 0.0  # the longest time that the client itself could not run

    def __enter__(self) -> "Good":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._pool.shutdown()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0, due - time.monotonic())):
            self.pause_s = max(self.pause_s, time.monotonic() - due)
            self._pool.submit(self._send, due, "/v1/predict")
            self._pool.submit(self._send, due, "/healthz")
            due += EVERY_S

    def _send(self, due: float, path: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)
        try:
            if path == "/healthz":
                connection.request("GET", path)
            else:
                connection.request("POST", path, SAMPLE, self._headers)
            response = connection.getresponse()
            response.read()
            status = str(response.status)
        except TimeoutError:
            status = "silent"
        except (OSError, http.client.HTTPException) as error:
            status = type(error).__name__
        finally:
            connection.close()
        self.seen.append(Seen(due, path, status, time.monotonic() - due))

    def between(self, path: str, start: float, end: float) -> list[Seen]:
        return [each for each in list(self.seen) if each.path == path and start <= each.at < end]
