"""Images by URL: allowed hosts, allowed addresses, and the size limit. The network is a local HTTP server."""

import asyncio
import http.server
import socket
import threading
from collections.abc import Iterator

import pytest
from posts import jpeg

from app.api.request import urls
from app.api.request.urls import fetch, is_public
from app.errors import BodyTooLarge, UrlFailed, UrlNotAllowed

RECEIVED = []  # path and headers of each request to the local server


class ImageHandler(http.server.BaseHTTPRequestHandler):
    """Serves an image at /image, a redirect to it at /redirect, and an endless body at /endless; else 404."""

    def do_GET(self) -> None:
        RECEIVED.append((self.path, dict(self.headers)))
        status = {"/image": 200, "/endless": 200, "/redirect": 302}.get(self.path, 404)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/image")
        self.end_headers()
        try:
            while self.path == "/endless":
                self.wfile.write(bytes(1000))
        except OSError:
            return
        self.wfile.write(jpeg())

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def image_host() -> Iterator[str]:
    """Run the local image server and return its host and port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), ImageHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"localhost:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def trusted(monkeypatch) -> None:
    """Every address counts as public, also that of the local server."""
    monkeypatch.setattr(urls, "is_public", lambda _: True)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111"])
def test_public_addresses_are_allowed(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.0.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1"),
        *("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:1.1.1.1", "64:ff9b::7f00:1", "2002:7f00:1::1"),
    ],
)
def test_private_and_reserved_addresses_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://other.example/a.jpg",
        "http://example.com:81/a.jpg",
        "http://example.com.evil.example/a.jpg",
        "http://example.com@evil.example/a.jpg",
        "http://user:word@example.com/a.jpg",
        "http://[::1]/a.jpg",
        "http:///a.jpg",
        "http://exa mple.com/",
        "ftp://example.com/a.jpg",
        "file:///etc/passwd",
    ],
)
async def test_a_url_of_a_host_that_is_not_allowed_is_refused(url, monkeypatch):
    monkeypatch.setattr(urls, "_get", None)  # a call would fail
    with pytest.raises(UrlNotAllowed):
        await fetch(url, ("example.com",), 1000)


async def test_every_url_is_refused_if_no_host_is_allowed():
    with pytest.raises(UrlNotAllowed, match="ALLOW_URLS"):
        await fetch("http://example.com/a.jpg", (), 1000)


async def test_an_allowed_host_that_resolves_to_loopback_is_refused(image_host):
    RECEIVED.clear()
    with pytest.raises(UrlNotAllowed, match="localhost resolves to an address that is not public"):
        await fetch(f"http://{image_host}/image", (image_host,), 10_000)
    assert RECEIVED == []


async def test_a_host_with_one_private_address_is_refused(monkeypatch):
    async def resolved(*_, **__):
        return [(0, 0, 0, "", (address, 80)) for address in ("1.1.1.1", "10.0.0.1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolved, raising=False)
    with pytest.raises(UrlNotAllowed):
        await fetch("http://example.com/a.jpg", ("example.com",), 1000)


async def test_the_image_is_fetched_from_the_checked_address(image_host, trusted, monkeypatch):
    loop, looked_up = asyncio.get_running_loop(), []

    async def resolved(host, port, **_):
        looked_up.append(host)
        return [(socket.AF_INET, 0, 0, "", ("127.0.0.1", port))]

    monkeypatch.setattr(loop, "getaddrinfo", resolved, raising=False)
    RECEIVED.clear()
    name = f"images.example:{image_host.partition(':')[2]}"
    assert await fetch(f"http://{name}/image", (name,), 10_000) == jpeg()
    assert looked_up == ["images.example"]
    ((path, headers),) = RECEIVED
    assert (path, headers["Host"]) == ("/image", name)
    assert not {"Authorization", "Cookie"} & headers.keys()


async def test_proxies_of_the_environment_are_not_used(image_host, trusted, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert await fetch(f"http://{image_host}/image", (image_host,), 10_000) == jpeg()


@pytest.mark.parametrize(("path", "words"), [("/redirect", "answered 302"), ("/missing", "answered 404")])
async def test_a_redirect_or_a_missing_image_is_an_error_with_its_status(image_host, trusted, path, words):
    RECEIVED.clear()
    with pytest.raises(UrlFailed, match=words):
        await fetch(f"http://{image_host}{path}", (image_host,), 10_000)
    assert [path for path, _ in RECEIVED] == [path]


async def test_a_download_over_the_size_limit_is_refused(image_host, trusted):
    with pytest.raises(BodyTooLarge):
        await fetch(f"http://{image_host}/endless", (image_host,), 10_000)


async def test_a_download_that_takes_too_long_times_out(image_host, trusted, monkeypatch):
    monkeypatch.setattr(urls, "TIMEOUT_S", 0.05)
    with pytest.raises(UrlFailed, match="TimeoutError"):
        await fetch(f"http://{image_host}/endless", (image_host,), 10**12)


async def test_a_host_that_does_not_answer_is_named_in_the_error(trusted):
    with socket.create_server(("127.0.0.1", 0)) as free:
        host = f"localhost:{free.getsockname()[1]}"
    with pytest.raises(UrlFailed, match="no image from localhost: Connect"):
        await fetch(f"http://{host}/a.jpg", (host,), 1000)


def test_each_protocol_fetches_images_from_an_allowed_host(serve, image_host, trusted):
    live, url = serve(allow_urls=(image_host,)), f"http://{image_host}/image"
    request = {"model_id": "pets", "image": {"type": "url", "value": url}}
    for answer in (
        live.client.post("/predict", data={"source": url}),
        live.client.post("/v1/predict/pets", data={"url": url}),
        live.client.post("/infer/object_detection", json=request),
        live.client.post("/pets/1", params={"image": url}),
    ):
        assert answer.status_code == 200, answer.text
        assert "dog" in answer.text
    missing = live.client.post("/predict", data={"source": f"http://{image_host}/missing"})
    assert (missing.status_code, missing.json()["code"]) == (422, "url_failed")
