"""Malformed HTTP, byte by byte: heads, lengths, chunks, pipelined requests, requests that end early."""

import re
import socket
from urllib.parse import urlsplit

from hypothesis import strategies as st

from fuzz.parts import IMAGES, Draw, broken, damaged_images

TIMEOUT_S = 0.1  # a server that sends nothing for this time is assumed to wait for more bytes
HEADS = [
    b"",
    b"Content-Length: 1\r\n",
    b"Content-Length: -1\r\n",
    b"Content-Length: x\r\n",
    b"Content-Length: " + b"9" * 40 + b"\r\n",
    b"Transfer-Encoding: gzip\r\n",
    b"Expect: 100-continue\r\n",
    b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
    b"Host: b\r\n",
    b"X: \xff\0\r\n",
    b" folded\r\n",
    b"no colon\r\n",
    b"X-Deadline-Ms: 20\r\n",
    b"X-Large: " + b"x" * 100_000 + b"\r\n",
    b"X: y\r\n" * 2000,
]
LINES = [
    b"POST /v1/detect",
    b"POST /v2/models/x/infer",
    b"POST /",
    b"GET /healthz",
    b"GET /" + b"a" * 70_000,
    b"\0 /",
    b"",
]
SIZES = [b"", b"-1", b"g", b"0x5", b"F" * 20, b"0", b"5;x=y"]  # sizes of a chunk


@st.composite
def bodies(draw: Draw) -> bytes:
    """Draw the last headers of a head and the body, with a Content-Length or in chunks. Either may be wrong."""
    content = draw(st.one_of(st.sampled_from(IMAGES), damaged_images()))
    if draw(st.booleans()):
        return b"Content-Length: %d\r\n\r\n%b" % (len(content) + draw(st.sampled_from([0, 0, -1, 9])), content)
    half = len(content) // 2
    size = draw(st.one_of(st.just(b"%x" % half), st.sampled_from(SIZES)))
    end = draw(st.sampled_from([b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b""]))
    rest = b"%x\r\n%b\r\n" % (len(content) - half, content[half:]) if content else b""
    return b"Transfer-Encoding: chunked\r\n\r\n" + size + b"\r\n" + content[:half] + b"\r\n" + rest + end


@st.composite
def requests(draw: Draw) -> tuple[list[bytes], bool]:
    """Draw up to three pipelined requests, cut into parts, and whether their client then disconnects."""
    sent = bytearray()
    for _ in range(draw(st.integers(1, 3))):
        head = draw(st.sampled_from(LINES)) + b" HTTP/" + draw(st.sampled_from([b"1.1"] * 6 + [b"1.0", b"2", b"9.9"]))
        sent += draw(broken(head + b"\r\nHost: localhost\r\n" + draw(st.sampled_from(HEADS)) + draw(bodies())))
    at = sorted(draw(st.lists(st.integers(0, len(sent)), max_size=3)))
    return [bytes(sent[a:b]) for a, b in zip([0, *at], [*at, len(sent)], strict=True)], draw(st.booleans())


def send(url: str, parts: list[bytes], gone: bool) -> list[str]:
    """Send the parts on one connection. Return the status of each response, or `none` if there was no response.

    If `gone`, the client disconnects without reading.
    """
    address = urlsplit(url)
    received = bytearray()
    with socket.create_connection((address.hostname, address.port), TIMEOUT_S) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            while not gone and (data := connection.recv(1 << 16)):
                received += data
        except OSError:  # timeout, or the server closed the connection before it read everything
            pass
    return [status.decode() for status in re.findall(rb"(?m)^HTTP/1\.1 (\d{3})", received)] or ["none"]
