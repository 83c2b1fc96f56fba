"""Malformed requests to every protocol: strategies that make them, and the run that counts what comes back.

Half right is what finds defects: a request is a right one of its protocol in which one thing or more is broken.
"""

import base64
import io
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

import httpx
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from app.images import KINDS

Draw = Callable[[st.SearchStrategy[Any]], Any]


def image(kind: str) -> bytes:
    """A small one."""
    file = io.BytesIO()
    Image.effect_noise((24, 16), 80).convert("RGB").save(file, kind)
    return file.getvalue()


IMAGES = [image(kind) for kind in KINDS]
HEADS = [
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"BM",
    b"GIF89a",
    b"II*\x00",
    b"%PDF",
    b"{",
    b"<svg",
    b"RIFF\0\0\0\0WEBP",
]
WORDS = st.one_of(
    st.sampled_from(["", "0", "0.5", "1", "-1", "1e400", "nan", "inf", "0,5", "true", "\0", "ü", "9" * 400]),
    st.text(max_size=20),
)
NAMES = st.one_of(
    st.sampled_from(
        ["conf", "iou", "max_det", "classes", "format", "engine", "compare", "file", "image", "source", "url"]
    ),
    st.sampled_from(["min_confidence", "api_key", "model", "decimals", "normalize", "confidence", "overlap", "size"]),
    st.text(max_size=10),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=8,
)
PATHS = [
    "/v1/detect",
    "/predict",
    "/",
    "/api/models/{model}/predict",
    "/v1/predict/{model}",
    "/v1/vision/detection",
    "/v1/vision/custom/{model}",
    "/infer/object_detection",
    "/{model}/1",
]


@st.composite
def broken(draw: Draw, whole: bytes) -> bytes:
    """Cut, with other bytes in it, doubled, or as it was."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        how = draw(st.sampled_from(["cut", "other", "more", "twice"]))
        if how == "cut":
            del data[at:]
        elif how == "other":
            data[at : at + 4] = draw(st.binary(max_size=8))
        elif how == "more":
            data += draw(st.binary(max_size=16))
        else:
            data += data[:at]
    return bytes(data)


@st.composite
def pictures(draw: Draw) -> bytes:
    if draw(st.booleans()):
        return draw(broken(draw(st.sampled_from(IMAGES))))
    return draw(st.sampled_from([b"", *HEADS])) + draw(st.binary(max_size=64))


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
    told = {"model_id": model, "image": draw(st.sampled_from([picture, [picture], [picture] * 2])), "confidence": 0.4}
    return draw(
        broken(json.dumps(told | draw(st.dictionaries(NAMES, JSON, max_size=3))).encode("utf-8", "surrogatepass"))
    )


@st.composite
def requests(draw: Draw, model: str) -> list[httpx.Request]:
    """One for every path, all the same but for that."""
    method = draw(st.sampled_from(["POST"] * 12 + ["GET", "PUT", "DELETE", "OPTIONS"]))
    headers = draw(st.sampled_from([{}] * 7 + [{"X-Deadline-Ms": "0"}, {"X-Deadline-Ms": "x"}]))
    how = draw(st.sampled_from(["json", "form", "form", "image", "fields"]))
    if how == "json":
        body, kind = draw(inferences(model)), "application/json"
    elif how == "form":
        body, kind = draw(forms())
    elif how == "image":
        body, kind = draw(pictures()), draw(st.sampled_from(["image/jpeg", "application/octet-stream", "text/plain"]))
    else:
        body, kind = draw(broken(draw(queries()))), "application/x-www-form-urlencoded"
    query = draw(queries()) if draw(st.booleans()) else b""
    return [
        httpx.Request(
            method,
            httpx.URL("http://server", path=path.format(model=model), query=query),
            headers=headers | {"Content-Type": kind},
            content=body,
        )
        for path in PATHS
    ]


@st.composite
def queries(draw: Draw) -> bytes:
    fields = draw(st.dictionaries(NAMES, WORDS, max_size=3))
    clean = {each.encode("utf-8", "ignore"): value.encode("utf-8", "ignore") for each, value in fields.items()}
    return urlencode(clean).encode()


@dataclass
class Outcome:
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)  # by path
    failures: list[str] = field(default_factory=list)
    grown_bytes: int = 0  # from a tenth of the run to its end

    def add(self, request: httpx.Request, answer: httpx.Response | Exception) -> None:
        if isinstance(answer, Exception):
            self.failures.append(f"{request.method} {request.url}: {answer!r}: {request.content!r}")
            return
        self.statuses[request.url.path, answer.status_code] += 1
        if answer.status_code >= 500 or not _is_readable(answer):
            self.failures.append(f"{request.method} {request.url}: {answer.status_code}: {request.content!r}")


def resident(client: httpx.Client) -> int:
    """Of the server."""
    (line,) = [
        line for line in client.get("/metrics").text.splitlines() if line.startswith("process_resident_memory_bytes ")
    ]
    return int(float(line.split()[1]))


def run(url: str, count: int, number: int = 0) -> Outcome:
    """`count` requests made from the seed `number`. A failure is a 5xx, an answer that is no JSON, or none."""
    outcome = Outcome()
    with httpx.Client(base_url=url, timeout=30) as client:
        model = client.get("/v1/models").json()["models"][0]["name"]
        _send(client, model, outcome, count // 10, number)
        before = resident(client)
        _send(client, model, outcome, count - count // 10, number + 1)
        outcome.grown_bytes = resident(client) - before
    return outcome


def _send(client: httpx.Client, model: str, outcome: Outcome, count: int, number: int) -> None:
    @seed(number)
    @settings(
        max_examples=max(count // len(PATHS), 1),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(requests(model))
    def send(alike: list[httpx.Request]) -> None:
        for request in alike:
            outcome.add(request, _answer(client, request))

    send()


def _answer(client: httpx.Client, request: httpx.Request) -> httpx.Response | Exception:
    target = client.base_url.copy_with(raw_path=request.url.raw_path)
    try:
        return client.request(request.method, target, headers=request.headers, content=request.content)
    except httpx.HTTPError as error:
        return error


def _is_readable(answer: httpx.Response) -> bool:
    """A picture, JSON, or the page at the root."""
    if answer.headers["content-type"].startswith(("image/", "text/html")):
        return answer.status_code == 200
    return bool(json.loads(answer.content))
