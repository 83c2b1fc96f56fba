"""FastAPI on uvicorn, with Ultralytics, which gives torch one thread."""

import os
import sys
import threading
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, UploadFile

sys.path.insert(0, str(Path(__file__).parents[1]))
import weights
from common import HOST, PORT, decode

app = FastAPI()
model = weights.load() if "M" in os.environ else None
one_at_a_time = threading.Lock()


@app.post("/predict")
def predict(file: UploadFile) -> list[dict[str, Any]]:
    pixels = decode(file.file.read())
    with one_at_a_time:
        return weights.boxes(model, [pixels])[0]


if __name__ == "__main__":
    uvicorn.run(app, host=HOST, port=PORT, access_log=False, log_level="warning")
