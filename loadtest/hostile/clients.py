"""The clients of `refusals`: Python's own and libraries, curl, the JDK's, and replays of the bytes of Go and the JDK.

A replay behaves like its client, Go's Transport or the JDK's HttpClient: it reads while it writes, and fails if writing
fails before a response has been read.
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


def body(refusal: Refusal) -> bytes | Iterator[bytes]:
    data = bytes(refusal.size)
    return (data[at : at + PIECE] for at in range(0, refusal.size, PIECE)) if refusal.chunked else data


def each(send: Callable[[Refusal], object]) -> Client:
    def run(refusals: Sequence[Refusal]) -> list[str]:
        found = []
        for refusal in refusals:
            try:
                found.append(str(send(refusal)))
            except (OSError, http.client.HTTPException, httpx.HTTPError) as error:
                found.append(re.sub(r"0x[0-9a-f]+|port=\d+|:\d{4,5}", "", repr(error))[:100])
        return found

    return run


def by_urllib(refusal: Refusal) -> int:
    try:
        with urllib.request.urlopen(
            urllib.request.Request(refusal.url, body(refusal), refusal.headers), timeout=PATIENCE_S
        ) as response:
            return response.status
    except urllib.error.HTTPError as error:
        error.read()
        return error.code


def by_requests(refusal: Refusal) -> int:
    return requests.post(refusal.url, body(refusal), headers=refusal.headers, timeout=PATIENCE_S).status_code


def by_session(refusals: Sequence[Refusal]) -> list[str]:
    with requests.Session() as session:

        def send(refusal: Refusal) -> int:
            return session.post(refusal.url, body(refusal), headers=refusal.headers, timeout=PATIENCE_S).status_code

        return each(send)(refusals)


def by_httpx(refusals: Sequence[Refusal]) -> list[str]:
    with httpx.Client(timeout=PATIENCE_S) as client:

        def send(refusal: Refusal) -> int:
            return client.post(refusal.url, content=body(refusal), headers=refusal.headers).status_code

        return each(send)(refusals)


def by_curl(*options: str) -> Callable[[Refusal], str]:
    def send(refusal: Refusal) -> str:
        headers = refusal.headers | ({"Transfer-Encoding": "chunked"} if refusal.chunked else {})
        options_of_headers = [word for name, value in headers.items() for word in ("--header", f"{name}: {value}")]
        with file_of(refusal.size) as path:
            command = ["curl", "--silent", "--show-error", "--output", "/dev/null", "--write-out", "%{http_code}"]
            command += [*options, *options_of_headers, "--data-binary", f"@{path}", refusal.url]
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        return done.stdout if done.returncode == 0 else f"{done.stdout} {done.stderr.strip()}"[:100]

    return send


def by_jdk(refusals: Sequence[Refusal]) -> list[str]:
    """Pass one line per request to the program; the JDK does not allow setting Connection."""
    words = ("chunked" if refusal.chunked else "length" for refusal in refusals)
    lines = [
        f"{refusal.url} {refusal.headers.get('X-API-Key', '-')} {refusal.size} {word}"
        for refusal, word in zip(refusals, words, strict=True)
    ]
    with tempfile.NamedTemporaryFile("w") as file:
        file.write("\n".join(lines))
        file.flush()
        done = subprocess.run(["java", JAVA, file.name], capture_output=True, text=True, timeout=200, check=False)
    return (done.stdout.splitlines() + [f"java: {done.stderr[:80]}"] * len(lines))[: len(lines)]


def go_head(refusal: Refusal) -> bytes:
    """Return the head as Go's net/http writes it: host, agent, framing, and the others sorted by name."""
    address = urlsplit(refusal.url)
    headers = {name.title(): value for name, value in refusal.headers.items()}
    headers.pop("Connection", None)
    framing = "Transfer-Encoding: chunked" if refusal.chunked else f"Content-Length: {refusal.size}"
    return _head(
        refusal,
        f"Host: {address.netloc}",
        "User-Agent: Go-http-client/1.1",
        *(["Connection: close"] if refusal.close else []),
        framing,
        *(f"{name}: {headers[name]}" for name in sorted(headers)),
        "Accept-Encoding: gzip",
    )


def jdk_head(refusal: Refusal) -> bytes:
    """Return the head as java.net.http of JDK 17 writes it, with an offer of HTTP/2."""
    framing = "Transfer-encoding: chunked" if refusal.chunked else None
    lines = [
        "Connection: Upgrade, HTTP2-Settings",
        *([] if refusal.chunked else [f"Content-Length: {refusal.size}"]),
        f"Host: {urlsplit(refusal.url).netloc}",
        "HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA",
        *([framing] if framing else []),
        "Upgrade: h2c",
        "User-Agent: Java-http-client/17.0.15",
        *(f"{name}: {value}" for name, value in refusal.headers.items() if name == "X-API-Key"),
    ]
    return _head(refusal, *lines)


def _head(refusal: Refusal, *lines: str) -> bytes:
    address = urlsplit(refusal.url)
    path = f"{address.path}?{address.query}" if address.query else address.path
    return "\r\n".join([f"POST {path} HTTP/1.1", *lines, "", ""]).encode()


def replay(head: Callable[[Refusal], bytes], piece: int) -> Callable[[Refusal], str]:
    """Return a client that writes `piece` bytes of the body at a time, or in a chunk."""

    def send(refusal: Refusal) -> str:
        address, failure = urlsplit(refusal.url), threading.Event()
        with socket.create_connection((address.hostname, address.port), PATIENCE_S) as connection:

            def write() -> None:
                try:
                    connection.sendall(head(refusal))
                    for part in _parts(refusal, piece):
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
                        with contextlib.suppress(OSError):  # the server has closed it already
                            connection.shutdown(socket.SHUT_RDWR)
        found = re.match(rb"HTTP/1\.1 (\d{3})", start)
        if failed:
            return "writing failed before the answer"
        return found[1].decode() if found else "no answer"

    return send


def _start(connection: socket.socket) -> bytes:
    """Return the start of the response, after a 100 that of the final response."""
    received = b""
    while b"\r\n\r\n" not in received or received.startswith(b"HTTP/1.1 100"):
        if received.startswith(b"HTTP/1.1 100") and b"\r\n\r\n" in received:
            received = received.partition(b"\r\n\r\n")[2]
        elif data := connection.recv(1 << 16):
            received += data
        else:
            break
    return received


def _parts(refusal: Refusal, piece: int) -> Iterator[bytes]:
    for at in range(0, refusal.size, piece):
        part = bytes(min(piece, refusal.size - at))
        yield b"%x\r\n%b\r\n" % (len(part), part) if refusal.chunked else part
    if refusal.chunked:
        yield b"0\r\n\r\n"


def clients() -> dict[str, Client]:
    """Return the clients by name; curl and the JDK only if installed."""
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
