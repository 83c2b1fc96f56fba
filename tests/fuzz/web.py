"""Malformed requests to every protocol except KServe."""

import base64
import json
from urllib.parse import urlencode

import httpx
from hypothesis import strategies as st

from fuzz.parts import IMAGES, JSON, NAMES, WORDS, Draw, broken, damaged_images

PATHS = {  # path -> protocol
    "/v1/detect": "v1",
    "/v1/predict": "v1",
    "/predict": "platform",
    "/": "platform",
    "/api/models/{model}/predict": "platform",
    "/v1/predict/{model}": "platform",
    "/v1/vision/detection": "deepstack",
    "/v1/vision/custom/{model}": "deepstack",
    "/infer/object_detection": "roboflow",
    "/{model}/1": "roboflow",
}
QUERIES = [b"", b"conf=0", b"conf=0&masks=rle", b"conf=0&format=image"]  # every model finds objects with conf=0


@st.composite
def forms(draw: Draw) -> tuple[bytes, str]:
    """Draw a multipart body and its Content-Type."""
    parts = []
    for _ in range(draw(st.integers(0, 3))):
        name = draw(NAMES).replace('"', "%22").replace("\r", "").replace("\n", "")
        file = f'; filename="{draw(st.sampled_from(["a.jpg", "", "../a"]))}"' if draw(st.booleans()) else ""
        content = draw(damaged_images()) if file else draw(WORDS).encode("utf-8", "surrogatepass")
        parts.append(
            f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode("utf-8", "ignore") + content
        )
    body = b"\r\n".join([*parts, b"--b--\r\n"])
    kind = draw(
        st.sampled_from(
            ["multipart/form-data; boundary=b"] * 5
            + ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=c"]
        )
    )
    return draw(broken(body)), kind


@st.composite
def inferences(draw: Draw, model: str) -> bytes:
    """Draw the JSON of a Roboflow request."""
    image = {"type": "base64", "value": base64.b64encode(draw(damaged_images())).decode()}
    inference = {
        "model_id": model,
        "image": draw(st.sampled_from([image, [image], [image] * 2])),
        "confidence": 0.4,
    }
    return draw(
        broken(json.dumps(inference | draw(st.dictionaries(NAMES, JSON, max_size=3))).encode("utf-8", "surrogatepass"))
    )


@st.composite
def requests(draw: Draw, model: str) -> dict[str, httpx.Request]:
    """Draw one request for each path; only the paths differ."""
    method = draw(st.sampled_from(["POST"] * 12 + ["GET", "PUT", "DELETE", "OPTIONS"]))
    headers = draw(st.sampled_from([{}] * 7 + [{"X-Deadline-Ms": "0"}, {"X-Deadline-Ms": "x"}]))
    body_type = draw(st.sampled_from(["json", "form", "form", "image", "fields"]))
    if body_type == "json":
        body, kind = draw(inferences(model)), "application/json"
    elif body_type == "form":
        body, kind = draw(forms())
    elif body_type == "image":
        body, kind = (
            draw(st.sampled_from(IMAGES) | damaged_images()),
            draw(st.sampled_from(["image/jpeg", "application/octet-stream", "text/plain"])),
        )
    else:
        body, kind = draw(broken(draw(queries()))), "application/x-www-form-urlencoded"
    query = draw(st.sampled_from(QUERIES) | queries())
    return {
        path: httpx.Request(
            method,
            httpx.URL("http://server", path=path.format(model=model), query=query),
            headers=headers | {"Content-Type": kind},
            content=body,
        )
        for path in PATHS
    }


@st.composite
def queries(draw: Draw) -> bytes:
    fields = draw(st.dictionaries(NAMES, WORDS, max_size=3))
    clean = {each.encode("utf-8", "ignore"): value.encode("utf-8", "ignore") for each, value in fields.items()}
    return urlencode(clean).encode()
