"""The clients of `refusals`: Python's own and its libraries, curl, the JDK's, and the very bytes of Go's and the JDK's.

A replay does what its client does: it reads while it still writes, and counts as failed where writing fails before an
answer has been read, as Go's Transport and the JDK's HttpClient do.
"""

import contextlib
import http.client
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import requests

from loadtest.hostile.refusals import Client, Refusal, file_of

PATIENCE_S = 20
PIECE = 64 << 10
JAVA = Path(__file__).with_name("Early.java")


def body(requested: Refusal) -> bytes | Iterator[bytes]:
    whole = bytes(requested.size)
    return (whole[at : at + PIECE] for at in range(0, requested.size, PIECE)) if requested.chunked else whole


def each(send: Callable[[Refusal], object]) -> Client:
    def run(refusals: Sequence[Refusal]) -> list[str]:
        found = []
        for requested in refusals:
            try:
                found.append(str(send(requested)))
            except (OSError, http.client.HTTPException, httpx.HTTPError) as error:
                found.append(re.sub(r"0x[0-9a-f]+|port=\d+|:\d{4,5}", "", repr(error))[:100])
        return found

    return run


def by_urllib(requested: Refusal) -> int:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(requested.url, body(requested), requested.headers), timeout=PATIENCE_S
        ) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        error.read()
        return error.code


def by_requests(requested: Refusal) -> int:
    return requests.post(requested.url, body(requested), headers=requested.headers, timeout=PATIENCE_S).status_code


def by_session(refusals: Sequence[Refusal]) -> list[str]:
    with requests.Session() as session:

        def send(requested: Refusal) -> int:
            return session.post(
                requested.url, body(requested), headers=requested.headers, timeout=PATIENCE_S
            ).status_code

        return each(send)(refusals)


def by_httpx(refusals: Sequence[Refusal]) -> list[str]:
    with httpx.Client(timeout=PATIENCE_S) as client:

        def send(requested: Refusal) -> int:
            return client.post(requested.url, content=body(requested), headers=requested.headers).status_code

        return each(send)(refusals)


def by_curl(*options: str) -> Callable[[Refusal], str]:
    def send(requested: Refusal) -> str:
        headers = requested.headers | ({"Transfer-Encoding": "chunked"} if requested.chunked else {})
        reported = [word for name, value in headers.items() for word in ("--header", f"{name}: {value}")]
        with file_of(requested.size) as path:
            command = ["curl", "--silent", "--show-error", "--output", "/dev/null", "--write-out", "%{http_code}"]
            command += [*options, *reported, "--data-binary", f"@{path}", requested.url]
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        return done.stdout if done.returncode == 0 else f"{done.stdout} {done.stderr.strip()}"[:100]

    return send


def by_jdk(refusals: Sequence[Refusal]) -> list[str]:
    """A line each for the program; the JDK lets nobody set Connection."""
    words = ("chunked" if requested.chunked else "length" for requested in refusals)
    lines = [
        f"{requested.url} {requested.headers.get('X-API-Key', '-')} {requested.size} {word}"
        for requested, word in zip(refusals, words, strict=True)
    ]
    with tempfile.NamedTemporaryFile("w") as file:
        file.write("\n".join(lines))
        file.flush()
        done = subprocess.run(["java", JAVA, file.name], capture_output=True, text=True, timeout=200, check=False)
    return (done.stdout.splitlines() + [f"java: {done.stderr[:80]}"] * len(lines))[: len(lines)]


def go_head(requested: Refusal) -> bytes:
    """As net/http of Go writes it: host, agent, framing, and the rest by name."""
    address = urlsplit(requested.url)
    headers = {name.title(): value for name, value in requested.headers.items()}
    headers.pop("Connection", None)
    framing = "Transfer-Encoding: chunked" if requested.chunked else f"Content-Length: {requested.size}"
    return _head(
        requested,
        f"Host: {address.netloc}",
        "User-Agent: Go-http-client/1.1",
        *(["Connection: close"] if requested.close else []),
        framing,
        *(f"{name}: {headers[name]}" for name in sorted(headers)),
        "Accept-Encoding: gzip",
    )


def jdk_head(requested: Refusal) -> bytes:
    """As java.net.http of JDK 17 writes it, HTTP/2 offered."""
    framing = "Transfer-encoding: chunked" if requested.chunked else None
    lines = [
        "Connection: Upgrade, HTTP2-Settings",
        *([] if requested.chunked else [f"Content-Length: {requested.size}"]),
        f"Host: {urlsplit(requested.url).netloc}",
        "HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA",
        *([framing] if framing else []),
        "Upgrade: h2c",
        "User-Agent: Java-http-client/17.0.15",
        *(f"{name}: {value}" for name, value in requested.headers.items() if name == "X-API-Key"),
    ]
    return _head(requested, *lines)


def _head(requested: Refusal, *lines: str) -> bytes:
    address = urlsplit(requested.url)
    path = f"{address.path}?{address.query}" if address.query else address.path
    return "\r\n".join([f"POST {path} HTTP/1.1", *lines, "", ""]).encode()


def replay(head: Callable[[Refusal], bytes], piece: int) -> Callable[[Refusal], str]:
    """`piece` is how many bytes of the body the client writes at a time, or has in a chunk."""

    def send(requested: Refusal) -> str:
        address, failure = urlsplit(requested.url), threading.Event()
        with socket.create_connection((address.hostname, address.port), PATIENCE_S) as connection:

            def write() -> None:
                try:
                    connection.sendall(head(requested))
                    for part in _parts(requested, piece):
                        connection.sendall(part)
                except OSError:
                    failure.set()

            with ThreadPoolExecutor(1) as pool:
                writing = pool.submit(write)
                try:
                    start = _start(connection)
                finally:
                    failed = failure.is_set()
                    if not writing.done():
                        with contextlib.suppress(OSError):  # which the server has closed already
                            connection.shutdown(socket.SHUT_RDWR)
        found = re.match(rb"HTTP/1\.1 (\d{3})", start)
        if failed:
            return "writing failed before the answer"
        return found[1].decode() if found else "no answer"

    return send


def _start(connection: socket.socket) -> bytes:
    """Of the answer; of a 100 that of what follows."""
    received = b""
    while b"\r\n\r\n" not in received or received.startswith(b"HTTP/1.1 100"):
        if received.startswith(b"HTTP/1.1 100") and b"\r\n\r\n" in received:
            received = received.partition(b"\r\n\r\n")[2]
        elif data := connection.recv(1 << 16):
            received += data
        else:
            break
    return received


def _parts(requested: Refusal, piece: int) -> Iterator[bytes]:
    for at in range(0, requested.size, piece):
        part = bytes(min(piece, requested.size - at))
        yield b"%x\r\n%b\r\n" % (len(part), part) if requested.chunked else part
    if requested.chunked:
        yield b"0\r\n\r\n"


def clients() -> dict[str, Client]:
    """By name; curl and the JDK's own where they are installed."""
    found = {
        "urllib": each(by_urllib),
        "requests": each(by_requests),
        "requests, a session": by_session,
        "httpx": by_httpx,
        "Go net/http, its bytes": each(replay(go_head, 32 << 10)),
        "JDK HttpClient, its bytes": each(replay(jdk_head, 16 << 10)),
    }
    if shutil.which("curl"):
        found["curl"] = each(by_curl())
        found["curl --http2"] = each(by_curl("--http2"))
        found["curl, no Expect"] = each(by_curl("--header", "Expect:"))
    if shutil.which("java"):
        found["JDK HttpClient"] = by_jdk
    return found
