"""Malformed requests to every protocol but KServe."""

import base64
import json
from urllib.parse import urlencode

import httpx
from hypothesis import strategies as st

from fuzz.parts import IMAGES, JSON, NAMES, WORDS, Draw, broken, pictures

PATHS = {
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
}  # and whose they are
QUERIES = [b"", b"conf=0", b"conf=0&masks=rle", b"conf=0&format=image"]  # which any model finds something with


@st.composite
def forms(draw: Draw) -> tuple[bytes, str]:
    """A multipart body and its Content-Type."""
    parts = []
    for _ in range(draw(st.integers(0, 3))):
        name = draw(NAMES).replace('"', "%22").replace("\r", "").replace("\n", "")
        file = f'; filename="{draw(st.sampled_from(["a.jpg", "", "../a"]))}"' if draw(st.booleans()) else ""
        content = draw(pictures()) if file else draw(WORDS).encode("utf-8", "surrogatepass")
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
    """Roboflow's JSON."""
    picture = {"type": "base64", "value": base64.b64encode(draw(pictures())).decode()}
    reported = {
        "model_id": model,
        "image": draw(st.sampled_from([picture, [picture], [picture] * 2])),
        "confidence": 0.4,
    }
    return draw(
        broken(json.dumps(reported | draw(st.dictionaries(NAMES, JSON, max_size=3))).encode("utf-8", "surrogatepass"))
    )


@st.composite
def requests(draw: Draw, model: str) -> dict[str, httpx.Request]:
    """One for every path, all the same but for that."""
    method = draw(st.sampled_from(["POST"] * 12 + ["GET", "PUT", "DELETE", "OPTIONS"]))
    headers = draw(st.sampled_from([{}] * 7 + [{"X-Deadline-Ms": "0"}, {"X-Deadline-Ms": "x"}]))
    how = draw(st.sampled_from(["json", "form", "form", "image", "fields"]))
    if how == "json":
        body, kind = draw(inferences(model)), "application/json"
    elif how == "form":
        body, kind = draw(forms())
    elif how == "image":
        body, kind = (
            draw(st.sampled_from(IMAGES) | pictures()),
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
