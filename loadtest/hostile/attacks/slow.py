"""Held connections: slow bodies, incomplete heads, no data, and other protocols."""

import asyncio

from loadtest.hostile.row import Target, row
from loadtest.hostile.wire import ask, connect, head, hold

KIND = "slow"
KEYED = {"keys": True}
LONG = "X-Deadline-Ms: 3600000"
FORM = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
BODIES = {  # routes that read a body
    "/v1/predict": "image/jpeg",
    "/predict": "multipart/form-data; boundary=b",
    "/v1/vision/detection": "multipart/form-data; boundary=b",
    "/v1/vision/custom/list": "application/x-www-form-urlencoded",
    "/infer/object_detection": "application/json",
    "/model/add": "application/json",
    "/simulated/1": "application/x-www-form-urlencoded",
    "/v2/models/simulated/infer": "application/octet-stream",
    "/v2/repository/models/simulated/load": "application/json",
    "/v2/repository/index": "application/json",
    "/nowhere": "application/json",
    "/healthz": "application/json",
}


def started(path: str, kind: str, *headers: str, length: str = "Content-Length: 10000000") -> bytes:
    return head(f"POST {path}", f"Content-Type: {kind}", length, *headers)


async def all_at_once(target: Target, count: int, first: bytes, drip: bytes = b"", every_s: float = 1.0) -> None:
    await asyncio.gather(*(hold(target, first, drip, every_s) for _ in range(count)))


@row("slow-bodies", KIND, "260 bodies of a byte a second, X-Deadline-Ms: 3600000, no key", **KEYED)
async def slow_bodies(target: Target) -> None:
    first = started("/v1/vision/detection", "multipart/form-data; boundary=b", LONG) + FORM
    await all_at_once(target, target.size(260, 40), first, b"x")


@row("slow-bodies-everywhere", KIND, "slow bodies on every route that reads one, 25 each, no key", **KEYED)
async def slow_bodies_everywhere(target: Target) -> None:
    await asyncio.gather(
        *(all_at_once(target, target.size(25, 3), started(path, kind, LONG), b"x") for path, kind in BODIES.items())
    )


@row("slow-bodies-open", KIND, "the same, to a server without keys, 10 each", statuses=r"200|4\d\d|503|closed|reset")
async def slow_bodies_open(target: Target) -> None:
    await asyncio.gather(
        *(all_at_once(target, target.size(10, 3), started(path, kind, LONG), b"x") for path, kind in BODIES.items())
    )


@row("slow-chunks", KIND, "260 chunked bodies, a chunk of a byte a second, no key", **KEYED)
async def slow_chunks(target: Target) -> None:
    first = started("/infer/object_detection", "application/json", LONG, length="Transfer-Encoding: chunked")
    await all_at_once(target, target.size(260, 40), first, b"1\r\n[\r\n")


@row("half-chunks", KIND, "200 chunked bodies that stop in a chunk's size, its data or the trailers, no key", **KEYED)
async def half_chunks(target: Target) -> None:
    first = started("/infer/object_detection", "application/json", length="Transfer-Encoding: chunked")
    halves = (b"10", b"10\r\n", b"10\r\nabc", b"1\r\n[", b"1\r\n[\r\n0\r\n", b"1\r\n[\r\n0\r\nX: y\r\n", b"10;x=", b"")
    await asyncio.gather(*(all_at_once(target, target.size(25, 4), first + half) for half in halves))


@row("stopped-bodies", KIND, "60 bodies of 20 MB on /model/add that stop after 19 MB, no key", **KEYED)
async def stopped_bodies(target: Target) -> None:
    sent = target.size(19 << 20, 1 << 20)
    first = started("/model/add", "application/json", length=f"Content-Length: {sent + 1000}") + b" " * sent
    await all_at_once(target, target.size(60, 20), first)


@row("stopped-bodies-images", KIND, "60 bodies of 20 MB on image routes that stop after 19 MB, no key", **KEYED)
async def stopped_bodies_images(target: Target) -> None:
    sent = target.size(19 << 20, 1 << 20)
    length = f"Content-Length: {sent + 1000}"
    calls = [
        (started("/v1/vision/detection", "multipart/form-data; boundary=b", length=length) + FORM).ljust(sent, b"x"),
        started("/infer/object_detection", "application/json", length=length) + b" " * sent,
        started("/simulated/1?api_key=x", "text/plain", length=length) + b" " * sent,
    ]
    await asyncio.gather(*(all_at_once(target, target.size(20, 5), call) for call in calls))


@row("expect-continue", KIND, "200 times `Expect: 100-continue`, and then nothing, no key", **KEYED)
async def expect_continue(target: Target) -> None:
    paths = ("/v1/predict", "/v1/vision/detection", "/infer/object_detection", "/model/add")
    await asyncio.gather(
        *(
            all_at_once(target, target.size(50, 8), started(path, "image/jpeg", LONG, "Expect: 100-continue"))
            for path in paths
        )
    )


@row("half-heads", KIND, "300 half heads, with `ulimit -n 256`", files=256, log=r"(?i)open files|connections", **KEYED)
async def half_heads(target: Target) -> None:
    await all_at_once(target, 300, b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nX-")


@row("half-heads-many", KIND, "1000 half heads from one client address", **KEYED)
async def half_heads_many(target: Target) -> None:
    await all_at_once(target, target.size(1000, 100), b"GET / HTTP/1.1\r\n")


@row("slow-heads", KIND, "300 heads of a byte a second (slowloris)", **KEYED)
async def slow_heads(target: Target) -> None:
    await all_at_once(target, target.size(300, 50), b"GET / HTTP/1.1\r\nX-A: ", b"b", 1.0 if not target.quick else 0.2)


@row("slow-header-lines", KIND, "300 heads of a header line a second", **KEYED)
async def slow_header_lines(target: Target) -> None:
    first = b"GET / HTTP/1.1\r\nHost: a\r\n"
    await all_at_once(target, target.size(300, 50), first, b"X: y\r\n", 1.0 if not target.quick else 0.2)


@row("nothing", KIND, "300 connections that send nothing, with `ulimit -n 256`", files=256, **KEYED)
async def nothing(target: Target) -> None:
    await all_at_once(target, 300, b"")


@row("newlines", KIND, "300 connections that send an empty line a second", **KEYED)
async def newlines(target: Target) -> None:
    await all_at_once(target, target.size(300, 50), b"\r\n", b"\r\n", 1.0 if not target.quick else 0.2)


@row("keep-alive", KIND, "300 connections that send one request and stay open", statuses=r"200|closed|503", **KEYED)
async def keep_alive(target: Target) -> None:
    await all_at_once(target, target.size(300, 50), head("GET /healthz"))


@row(
    "second-half-head",
    KIND,
    "300 connections that send one request and then half a head",
    statuses=r"200|closed|503",
    **KEYED,
)
async def second_half_head(target: Target) -> None:
    await all_at_once(target, target.size(300, 50), head("GET /healthz") + b"GET /heal", b"x")


@row("other-protocols", KIND, "TLS, HTTP/2, SSH, SMTP, RTSP, a PROXY line and zeros at the HTTP port", **KEYED)
async def other_protocols(target: Target) -> None:
    hello = b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03" + bytes(range(32)) + b"\x20" + bytes(200)
    lines = (
        hello,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"EHLO a\r\n",
        b"OPTIONS rtsp://a RTSP/1.0\r\nCSeq: 1\r\n\r\n",
        b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n",
        bytes(1000),
        b"GET /\r\n",
        b"\xff" * 100,
    )
    await asyncio.gather(*(all_at_once(target, target.size(20, 3), line) for line in lines))


@row(
    "upgrades",
    KIND,
    "200 requests to upgrade to WebSocket or HTTP/2, and then nothing",
    statuses=r"200|4\d\d|closed|503",
    **KEYED,
)
async def upgrades(target: Target) -> None:
    socket = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA")
    h2c = ("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAAP__")
    for_each = target.size(50, 5)
    await asyncio.gather(
        *(
            all_at_once(target, for_each, head(f"GET {path}", *headers) + rest)
            for path in ("/healthz", "/v1/predict")
            for headers in (socket, h2c)
            for rest in (b"", b"\x81\x05hello")
        )
    )


@row(
    "hang-ups",
    KIND,
    "hang-ups at every phase, 50 each: after a connect, half a head, a head, half a body, a body",
    **KEYED,
    statuses=".*",
)
async def hang_ups(target: Target) -> None:
    whole = started("/infer/object_detection", "application/json", length="Content-Length: 200000") + b" " * 200_000
    healthz = head("GET /healthz")
    phases = (b"", whole[:20], whole[:200], whole[:100_000], whole, healthz, healthz * 50)
    for _ in range(target.size(10, 2)):
        await asyncio.gather(
            *(_hang_up(target, phase, how) for phase in phases for how in ("close", "reset") for _ in range(5))
        )
        await asyncio.sleep(0.1)


async def _hang_up(target: Target, sent: bytes, how: str) -> None:
    try:
        _, writer = await connect(target)
        writer.write(sent)
        await asyncio.sleep(0.01)
    except (OSError, TimeoutError):
        target.outcome.statuses["unreachable"] += 1
        return
    if how == "reset":
        writer.transport.abort()
    else:
        writer.close()
    target.outcome.statuses["left"] += 1


@row(
    "pipelines",
    KIND,
    "8 connections with 5000 pipelined requests each, whose responses are read",
    statuses=r"200|4\d\d|503|closed|reset",
    **KEYED,
)
async def pipelines(target: Target) -> None:
    line = head("GET /healthz") * target.size(5000, 500)
    await asyncio.gather(*(ask(target, line) for _ in range(4)))
    posts = started("/v1/predict", "image/jpeg", length="Content-Length: 1") + b"x"
    await asyncio.gather(*(hold(target, posts * target.size(5000, 500)) for _ in range(4)))
