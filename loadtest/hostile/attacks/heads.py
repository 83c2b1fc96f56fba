"""Endless request heads and trailers."""

import asyncio
from collections.abc import Iterator

from loadtest.hostile.row import MB, Target, row
from loadtest.hostile.wire import ask, head, post

KIND = "heads"
HEADS = {"keys": True, "memory_mb": 100, "statuses": r"400|414|431|closed|reset"}
PIECE = 64 << 10


def endless(start: bytes, each: bytes, size: int) -> Iterator[bytes]:
    """Yield `start`, then pieces of repeated `each` up to `size` bytes."""
    yield start
    piece = each * max(PIECE // len(each), 1)
    for _ in range(size // len(piece)):
        yield piece


@row("long-header", KIND, "one header of 150 MB", **HEADS)
async def long_header(target: Target) -> None:
    size = target.size(150 * MB, 8 * MB)
    await ask(target, endless(b"GET / HTTP/1.1\r\nHost: a\r\nX-A: ", b"x", size))


@row("long-url", KIND, "a URL of 60 MB", **HEADS)
async def long_url(target: Target) -> None:
    await ask(target, endless(b"GET /", b"a", target.size(60 * MB, 8 * MB)))


@row(
    "long-heads-others",
    KIND,
    "60 MB of header lines, names, folded lines, queries, methods, versions, empty lines",
    **HEADS,
)
async def long_heads_others(target: Target) -> None:
    size, start = target.size(60 * MB, 4 * MB), b"GET / HTTP/1.1\r\nHost: a\r\n"
    forms = (
        (start, b"X: y\r\n"),
        (start, b"x"),
        (start + b"X: y\r\n", b" folded\r\n"),
        (start + b"Cookie: ", b"a=b; "),
        (b"GET /?", b"a=b&"),
        (b"G", b"G"),
        (b"GET / HTTP/1.1", b"1"),
        (b"", b"\r\n"),
        (b"GET ", b" "),
    )
    for first, each in forms:
        await ask(target, endless(first, each, size))
        await asyncio.sleep(0.1)


@row("heads-just-over", KIND, "heads of 33 KB to 100 KB: lines, names, URLs, in one piece and in many", **HEADS)
async def heads_just_over(target: Target) -> None:
    for size in (33_000, 66_000, 100_000):
        for whole in (
            head("GET /healthz", "X-A: " + "x" * size),
            head("GET /healthz", *["X: y"] * (size // 6)),
            head("GET /healthz", "x" * size + ": y"),
            head("GET /" + "a" * size),
            head("GET /healthz?" + "a" * size),
        ):
            await ask(target, whole)
            await ask(target, [whole[at : at + 1000] for at in range(0, len(whole), 1000)])


@row(
    "many-long-heads",
    KIND,
    "100 heads of 30 KB that do not end, in pieces",
    **HEADS | {"statuses": r"4\d\d|closed|503"},
)
async def many_long_heads(target: Target) -> None:
    from loadtest.hostile.attacks.slow import all_at_once  # noqa: PLC0415

    first = b"GET / HTTP/1.1\r\nHost: a\r\nX-A: " + b"x" * 30_000
    await all_at_once(target, target.size(100, 20), first)


@row("trailers", KIND, "50 MB of trailers after a chunked body", **HEADS | {"statuses": r"4\d\d|closed|reset"})
async def trailers(target: Target) -> None:
    size = target.size(50 * MB, 4 * MB)
    start = head("POST /infer/object_detection", "Transfer-Encoding: chunked") + b"1\r\n[\r\n0\r\n"
    for each in (b"X: y\r\n", b"x"):
        await ask(target, endless(start, each, size))


@row(
    "chunk-extensions",
    KIND,
    "50 MB of a chunk's extensions, and a million chunks of one byte",
    **HEADS | {"statuses": r"4\d\d|closed|reset"},
)
async def chunk_extensions(target: Target) -> None:
    size = target.size(50 * MB, 4 * MB)
    start = head("POST /infer/object_detection", "Content-Type: application/json", "Transfer-Encoding: chunked")
    for first, each in ((b"1", b";a=b"), (b"1;", b"x"), (b"", b"0"), (b"", b"1;a=b\r\n \r\n"), (b"", b"1\r\n \r\n")):
        await ask(target, endless(start + first, each, size))
        await asyncio.sleep(0.1)


@row(
    "one-byte-chunks",
    KIND,
    "a million chunks of one byte of JSON and of an image, to a server without keys",
    **HEADS | {"keys": False, "statuses": r"4\d\d|closed|reset"},
)
async def one_byte_chunks(target: Target) -> None:
    count = target.size(1_000_000, 100_000)
    for path in ("/infer/object_detection", "/v1/predict", "/v2/models/simulated/infer"):
        start = head(f"POST {path}", "Content-Type: application/json", "Transfer-Encoding: chunked")
        await ask(target, [start, *[b"1\r\n \r\n" * 1000] * (count // 1000), b"0\r\n\r\n"])


@row(
    "wrong-heads",
    KIND,
    "no Host, two Hosts, two lengths, length and chunks, bare LF, NUL",
    **HEADS | {"statuses": r"400|501|closed"},
)
async def wrong_heads(target: Target) -> None:
    for lines in (
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
    ):
        await ask(target, lines)
    await ask(target, post("/infer/object_detection", b"x").replace(b"Content-Length: 1", b"Content-Length: -1"))
