"""JSON of a few megabytes that costs seconds and gigabytes if it is parsed before its size is checked."""

import asyncio
from collections.abc import Callable
from functools import partial

from loadtest.hostile.row import Target, row
from loadtest.hostile.wire import ask, post, rounds

KIND = "JSON"
CHEAP = {"keys": True, "memory_mb": 100, "answer_s": 0.5, "statuses": r"4\d\d|closed|503"}
OPEN = CHEAP | {"keys": False}  # KServe checks the key before the body, so these servers have none
INFER = "/v2/models/simulated/infer"
SECONDS = 4.0


def filled(target: Target, before: bytes, each: bytes, after: bytes) -> bytes:
    """Return 4 MB of `each`, separated by commas."""
    size = target.size(4 << 20, 1 << 20)
    return before + b",".join([each] * (size // (len(each) + 1))) + after


def deep(target: Target, before: bytes, opening: bytes, closing: bytes, after: bytes) -> bytes:
    times = target.size(4 << 20, 1 << 20) // (len(opening) + len(closing))
    return before + opening * times + closing * times + after


def long(target: Target, before: bytes, each: bytes, after: bytes) -> bytes:
    return before + each * (target.size(4 << 20, 1 << 20) // len(each)) + after


def keys(target: Target, before: bytes, after: bytes, name: str = "k{}") -> bytes:
    size = target.size(4 << 20, 1 << 20)
    return before + ",".join(f'"{name.format(i)}":1' for i in range(size // 12)).encode() + after


_IMAGE = b'{"type":"base64","value":"AAAA"}'
_START, _END = b'{"model_id":"x","image":', b"}"
ROBOFLOW: dict[str, Callable[[Target], bytes]] = {
    "lists": partial(filled, before=_START + b"[", each=b"[]", after=b"]" + _END),
    "lists of lists": partial(filled, before=_START + b"[", each=b"[[1],[2]]", after=b"]" + _END),
    "images": partial(filled, before=_START + b"[", each=_IMAGE, after=b"]" + _END),
    "empty objects": partial(filled, before=_START + b"[", each=b"{}", after=b"]" + _END),
    "nulls": partial(filled, before=_START + b"[", each=b"null", after=b"]" + _END),
    "deep lists": partial(deep, before=_START, opening=b"[", closing=b"]", after=_END),
    "deep objects": partial(deep, before=_START, opening=b'{"a":', closing=b"}", after=_END),
    "a deep key": partial(deep, before=b'{"x":', opening=b'{"a":[', closing=b"]}", after=_END),
    "a huge number": partial(long, before=_START, each=b"1", after=_END),
    "a huge fraction": partial(long, before=_START + b"0.", each=b"7", after=_END),
    "a huge model_id": partial(long, before=b'{"model_id":"', each=b"x", after=b'"}'),
    "a huge api_key": partial(long, before=b'{"model_id":"x","api_key":"', each="ü".encode(), after=b'"}'),
    "huge escapes": partial(long, before=b'{"model_id":"', each=b"\\u0041", after=b'"}'),
    "class_filter": partial(filled, before=b'{"model_id":"x","class_filter":[', each=b"1", after=b"]" + _END),
    "class names": partial(filled, before=b'{"model_id":"x","class_filter":[', each=b'"a"', after=b"]" + _END),
    "many keys": partial(keys, before=b"{", after=_END),
    "the same key": partial(keys, before=b"{", after=_END, name="model_id"),
    "spaces": partial(long, before=b'{"model_id":', each=b" ", after=b'"x"}'),
    "only ones": partial(filled, before=b"[", each=b"1", after=b"]"),
    "cut off": partial(filled, before=_START + b"[", each=b"1", after=b""),
}
_INPUT = b'{"name":"image","shape":[1],"datatype":"BYTES","data":'
KSERVE: dict[str, Callable[[Target], bytes]] = {
    "numbers": partial(filled, before=b'{"inputs":[', each=b"1", after=b"]}"),
    "objects": partial(filled, before=b'{"inputs":[', each=b"{}", after=b"]}"),
    "inputs": partial(filled, before=b'{"inputs":[', each=_INPUT + b'["a"]}', after=b"]}"),
    "a shape": partial(filled, before=b'{"inputs":[{"name":"a","datatype":"FP32","shape":[', each=b"1", after=b"]}]}"),
    "a shape of texts": partial(filled, before=b'{"inputs":[{"name":"a","shape":[', each=b'"1"', after=b"]}]}"),
    "data, nested": partial(filled, before=b'{"inputs":[' + _INPUT + b"[", each=b"[[[]]]", after=b"]}]}"),
    "data, deep": partial(deep, before=b'{"inputs":[' + _INPUT, opening=b"[", closing=b"]", after=b"}]}"),
    "outputs": partial(filled, before=b'{"inputs":[],"outputs":[', each=b'{"name":"a"}', after=b"]}"),
    "outputs of numbers": partial(filled, before=b'{"inputs":[],"outputs":[', each=b"1", after=b"]}"),
    "parameters": partial(keys, before=b'{"inputs":[],"parameters":{', after=b"}}"),
    "parameters of an input": partial(keys, before=b'{"inputs":[{"name":"a","parameters":{', after=b"}}]}"),
    "a huge id": partial(long, before=b'{"id":"', each=b"x", after=b'","inputs":[]}'),
    "deep objects": partial(deep, before=b'{"inputs":[],"x":', opening=b'{"a":', closing=b"}", after=b"}"),
}
REPOSITORY: dict[str, Callable[[Target], bytes]] = {
    "parameters": partial(keys, before=b'{"parameters":{', after=b"}}"),
    "numbers": partial(filled, before=b"[", each=b"1", after=b"]"),
    "lists": partial(filled, before=b'{"x":[', each=b"[]", after=b"]}"),
    "deep": partial(deep, before=b'{"x":', opening=b"[", closing=b"]", after=b"}"),
}


async def each_form(target: Target, path: str, forms: dict[str, Callable[[Target], bytes]]) -> None:
    """Send each body once, then three times concurrently."""
    bodies = [make(target) for make in forms.values()]
    await rounds(0, 0.1, *(partial(ask, target, post(path, body)) for body in bodies))
    if not target.quick:
        for body in bodies:
            await asyncio.gather(*(ask(target, post(path, body)) for _ in range(3)))


async def one_form(target: Target, path: str, body: bytes) -> None:
    """Send the body repeatedly for a while, then three times concurrently."""
    await rounds(target.size(4, 0), 0.1, partial(ask, target, post(path, body)))
    await asyncio.gather(*(ask(target, post(path, body)) for _ in range(3)))


@row("roboflow-ones", KIND, 'Roboflow: 4 MB of `"image":[1,1,...]` without a key', **CHEAP)
async def roboflow_ones(target: Target) -> None:
    await one_form(target, "/infer/object_detection", filled(target, _START + b"[", b"1", b"]" + _END))


@row("roboflow-json", KIND, f"Roboflow: {len(ROBOFLOW)} other forms of 4 MB of JSON without a key", **CHEAP)
async def roboflow_json(target: Target) -> None:
    await each_form(target, "/infer/object_detection", ROBOFLOW)


@row("model-add-json", KIND, "the same forms on /model/add", **CHEAP)
async def model_add_json(target: Target) -> None:
    await each_form(target, "/model/add", ROBOFLOW)


@row("kserve-ones", KIND, 'KServe: 4 MB of `"inputs":[1,1,...]`', **OPEN)
async def kserve_ones(target: Target) -> None:
    await one_form(target, INFER, KSERVE["numbers"](target))


@row("kserve-lists", KIND, "KServe: a million `[]` for inputs", **OPEN)
async def kserve_lists(target: Target) -> None:
    await one_form(target, INFER, filled(target, b'{"inputs":[', b"[]", b"]}"))


@row("kserve-json", KIND, f"KServe: {len(KSERVE)} other forms of 4 MB of JSON", **OPEN)
async def kserve_json(target: Target) -> None:
    await each_form(target, INFER, KSERVE)


@row("kserve-load-json", KIND, "KServe: 4 MB of JSON to load a model", **OPEN | {"statuses": r"200|4\d\d|501|503"})
async def kserve_load_json(target: Target) -> None:
    await each_form(target, "/v2/repository/models/simulated/load", REPOSITORY)
