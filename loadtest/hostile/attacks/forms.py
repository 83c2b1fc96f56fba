"""Forms of megabytes: many fields, many parts, long part headers."""

from functools import partial

from loadtest.hostile.attacks.json_bodies import CHEAP, KIND, each_form, filled, long
from loadtest.hostile.row import Target, row
from loadtest.hostile.wire import ask, head, post, rounds

MULTIPART = "multipart/form-data; boundary=b"
PART = b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\nx\r\n'
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\nx\r\n'
ROUTES = ("/v1/vision/detection", "/v1/vision/custom/simulated", "/v1/vision/custom/list")


def repeated(target: Target, each: bytes, size: int = 4 << 20) -> bytes:
    return each * (target.size(size, size // 4) // len(each))


def multiparts(target: Target) -> list[bytes]:
    """Return multipart bodies with the boundary `b`."""
    start, end = b'--b\r\nContent-Disposition: form-data; name="image"', b"\r\n\r\nx\r\n--b--\r\n"
    return [
        repeated(target, PART % b"a") + b"--b--\r\n",
        repeated(target, FILE) + b"--b--\r\n",
        start + repeated(target, b"\r\nX: y") + end,
        start + b"\r\n" + repeated(target, b"x") + b": y" + end,
        start + b"\r\nX: " + repeated(target, b"y") + end,
        start + repeated(target, b"; a=b") + end,
        start + b'; filename="' + repeated(target, b"\\") + b'"' + end,
        repeated(target, b"\r\n") + FILE + b"--b--\r\n",
        repeated(target, b"--b") + b"\r\n\r\n",
        FILE[:-3] + repeated(target, b"\r\n--") + b"\r\n--b--\r\n",
        PART % repeated(target, b"n") + b"--b--\r\n",
        b"--b\r\n\r\n" + repeated(target, b"x"),
    ]


@row("deepstack-forms", KIND, "DeepStack: forms of 4 MB, of many fields, parts and headers, without a key", **CHEAP)
async def deepstack_forms(target: Target) -> None:
    urlencoded = "application/x-www-form-urlencoded"
    texts = [
        repeated(target, b"a=&"),
        repeated(target, b"&"),
        repeated(target, b"a&"),
        b"image=" + repeated(target, b"%41"),
        b"min_confidence=" + repeated(target, b"1"),
        b"api_key=" + repeated(target, b"%C3%BC"),
        b"image=" + repeated(target, b"%0a"),
    ]
    calls = [post(ROUTES[0], body, MULTIPART) for body in multiparts(target)]
    calls += [post(ROUTES[i % 3], body, urlencoded) for i, body in enumerate(texts)]
    await rounds(0, 0.1, *(partial(ask, target, call) for call in calls))


@row("platform-forms", KIND, "Platform and HUB: the same forms to a server without keys", **CHEAP | {"keys": False})
async def platform_forms(target: Target) -> None:
    calls = [post(path, body, MULTIPART) for path in ("/predict", "/v1/predict") for body in multiparts(target)]
    await rounds(0, 0.1, *(partial(ask, target, call) for call in calls))


@row("boundaries", KIND, "Content-Types of 20 KB: boundaries, parameters, quotes", **CHEAP | {"keys": False})
async def boundaries(target: Target) -> None:
    kinds = [
        "multipart/form-data; boundary=" + "b" * 20_000,
        "multipart/form-data; " + "a=b; " * 4000 + "boundary=b",
        'multipart/form-data; boundary="' + "\\" * 20_000,
        "multipart/form-data" + ";" * 20_000,
    ]
    calls = [post("/v1/predict", repeated(target, FILE, 1 << 20), kind) for kind in kinds]
    await rounds(target.size(3, 0), 0.1, *(partial(ask, target, call) for call in calls))


@row("queries", KIND, "queries of 30 KB: classes, fields, escapes", **CHEAP | {"keys": False})
async def queries(target: Target) -> None:
    words = (
        "classes=" + "a," * 15_000,
        "classes=a&" * 3000,
        "a=&" * 10_000,
        "%41" * 10_000,
        "classes=" + "0," * 15_000,
    )
    paths = ("/v1/predict", "/predict", "/simulated/1")
    calls = [head(f"POST {path}?{query}", "Content-Length: 1") + b"x" for path in paths for query in words]
    await rounds(target.size(3, 0), 0.05, *(partial(ask, target, call) for call in calls))


@row("platform-json", KIND, "JSON of 4 MB on routes for forms and images", **CHEAP | {"keys": False})
async def platform_json(target: Target) -> None:
    made = {
        "list": partial(filled, before=b"[", each=b"1", after=b"]"),
        "text": partial(long, before=b'"', each=b"x", after=b'"'),
    }
    for path in ("/predict", "/v1/predict", "/", "/simulated/1"):
        await each_form(target, path, made)
