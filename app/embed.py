"""Yolopard inside a Python program: the same engine, gate, batcher and predictor, without HTTP.

Example::

    from app import Yolopard

    with Yolopard.load("yolov8n.pt") as model:
        for result in model.predict(["a.jpg", "b.jpg"], conf=0.4):
            print(result.boxes, result.names)
"""

import asyncio
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import uvloop
from numpy.typing import NDArray

from app.api.protocols.predict import class_ids
from app.api.response import ResponseFormat, results_json
from app.errors import Stopping
from app.model import ModelInfo
from app.providers import engine_provider
from app.serving.prediction import Prediction
from app.serving.service import Service
from app.settings import DEMO_WEIGHTS, Settings
from app.vision.postprocess import Thresholds
from app.vision.preprocess import Pixels

Image = bytes | str | Path | Pixels


@dataclass(frozen=True, slots=True)
class Result:
    """The detections on one image, best first."""

    prediction: Prediction
    model: ModelInfo

    @property
    def boxes(self) -> NDArray[np.float32]:
        """[N, 4] x1 y1 x2 y2 in px of the upright image; for obb [N, 5] cx cy w h angle; for classify [N, 0]."""
        return self.prediction.detections.boxes

    @property
    def scores(self) -> NDArray[np.float32]:
        """[N] scores from 0 to 1."""
        return self.prediction.detections.scores

    @property
    def classes(self) -> NDArray[np.int64]:
        """[N] class ids."""
        return self.prediction.detections.classes

    @property
    def names(self) -> list[str]:
        """N class names."""
        return [self.model.names[int(i)] for i in self.classes]

    def summary(self) -> list[dict[str, Any]]:
        """Return the `results` of POST /v1/predict, with masks and keypoints, as Ultralytics' `Results.summary()`."""
        results: list[dict[str, Any]] = results_json(self.prediction, self.model, ResponseFormat())["results"]
        return results


class Yolopard:
    """A loaded engine. `predict` may be called from any thread; images of all threads share batches."""

    def __init__(self, service: Service, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
        """Use `Yolopard.load`."""
        self._service, self._loop, self._thread = service, loop, thread

    @classmethod
    def load(cls, weights: str | Path = DEMO_WEIGHTS, **settings: Any) -> Self:
        """Find the engine of these weights, or build it and compare it with PyTorch FP32, and load it. Blocks.

        `settings` are those of docs/configuration.md in lower case, such as `imgsz`, `backend` and `gate_dir`.
        Raises a SetupError (SettingsError, WeightsError, GateFailed, ...) whose message says what to do.
        """
        ready = threading.Event()
        given = Settings.of(weights=str(weights), **settings)
        loop = uvloop.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, name="yolopard", daemon=True)
        thread.start()

        async def start() -> Service:
            service = Service(
                given,
                lambda backend: engine_provider(given, backend),
                on_ready=lambda _: ready.set(),
                on_failure=ready.set,
            )
            service.start()
            return service

        model = cls(asyncio.run_coroutine_threadsafe(start(), loop).result(), loop, thread)
        try:
            ready.wait()
        except BaseException:  # Ctrl-C ends the build too
            model.close()
            raise
        if failure := model._service.failure:
            model.close()
            raise failure
        return model

    @property
    def model(self) -> ModelInfo:
        """Facts about the model: name, task, class names, stride and size."""
        return self._service.predictor.model

    @property
    def gate(self) -> dict[str, Any]:
        """The gate result of the engine, as in /v1/models."""
        return self._service.loaded[0].stored.manifest.gate.to_json()

    def predict(
        self,
        images: Image | Iterable[Image],
        *,
        conf: float = 0.25,
        iou: float = 0.7,
        max_det: int = 300,
        classes: Sequence[str | int] = (),
        agnostic: bool = False,
    ) -> list[Result]:
        """Return a result per image, in the same order. Blocks. Takes paths, encoded bytes, or uint8 [H, W, 3] RGB.

        Raises a RequestError if an image or a class is invalid, a ServiceError if the engine fails, OSError if a file
        cannot be read, TypeError if an array has another shape or type.
        """
        if not self._thread.is_alive():
            raise Stopping("the model is closed")
        given = [images] if isinstance(images, (bytes, str, Path, np.ndarray)) else list(images)
        ids = class_ids(list(map(str, classes)), self.model)
        work = self._predict([_read(image) for image in given], Thresholds(conf, iou, max_det, ids, agnostic))
        predictions = asyncio.run_coroutine_threadsafe(work, self._loop).result()
        return [Result(prediction, self.model) for prediction in predictions]

    async def _predict(self, images: list[bytes | Pixels], thresholds: Thresholds) -> list[Prediction]:
        predictor = self._service.predictor
        deadline = self._loop.time() + self._service.settings.deadline_ms / 1000 * max(1, len(images))
        turns = predictor.turns(len(images))
        works = (predictor.predict(each, thresholds, deadline, predictor.engines[:1], turns=turns) for each in images)
        return [predictions[0] for predictions in await asyncio.gather(*works)]

    def close(self) -> None:
        """Finish the running predictions, and free the engine's memory. A second call does nothing."""
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._service.stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read(image: Image) -> bytes | Pixels:
    if isinstance(image, (str, Path)):
        return Path(image).read_bytes()
    if isinstance(image, np.ndarray) and (image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3):
        raise TypeError(f"an array must be uint8 [height, width, 3] in RGB, not {image.dtype} {list(image.shape)}")
    return image
