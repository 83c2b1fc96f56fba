"""FastAPI on uvicorn, with Ultralytics."""

import contextlib
import threading
from collections.abc import AsyncIterator
from typing import Annotated, Any

import uvicorn
import weights
from common import HOST, PORT, decode, workers
from fastapi import Body, FastAPI, Request


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.model, app.state.one_at_a_time = weights.load(), threading.Lock()  # threads may not share a model
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
def predict(request: Request, image: Annotated[bytes, Body(media_type="image/jpeg")]) -> list[dict[str, Any]]:
    """Not `async`, so FastAPI runs it in a thread and images are decoded in parallel."""
    pixels = decode(image)
    with request.app.state.one_at_a_time:
        return weights.boxes(request.app.state.model, [pixels])[0]


if __name__ == "__main__":
    # Images a second, 2 cores, medians of 3 alternating turns. The .pt: two workers of one torch thread 13.5, one of
    # two threads 10.7. OpenVINO: two workers 20.2, one 19.2.
    uvicorn.run("fastapi_ultralytics:app", host=HOST, port=PORT, workers=workers(2), access_log=False)
