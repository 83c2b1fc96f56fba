"""FastAPI on uvicorn, no model."""

from typing import Annotated

import orjson
import uvicorn
from common import HOST, PORT, answers, frame, workers
from fastapi import Body, FastAPI, Response

app = FastAPI()


@app.post("/predict")
def predict(image: Annotated[bytes, Body(media_type="image/jpeg")]) -> Response:
    """Not `async`, so FastAPI runs it in a thread and images are decoded in parallel."""
    return Response(orjson.dumps(answers([frame(image)])[0]), media_type="application/json")


if __name__ == "__main__":
    # Images a second, 2 cores, medians of 4 alternating turns: two workers 197 and 234, one 153 and 184.
    uvicorn.run("fastapi_null:app", host=HOST, port=PORT, workers=workers(2), access_log=False, log_level="warning")
