"""Images by URL: from which hosts, at which addresses, and how much of them. The network is a server of the test's."""

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

ASKED = []  # path and headers of what reached the test's server


class Pictures(http.server.BaseHTTPRequestHandler):
    """/picture is one, /redirect leads there, /missing is not, /endless never ends."""

    def do_GET(self) -> None:
        ASKED.append((self.path, dict(self.headers)))
        status = {"/picture": 200, "/endless": 200, "/redirect": 302}.get(self.path, 404)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/picture")
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
def elsewhere() -> Iterator[str]:
    """Host and port of a server with pictures."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pictures)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"localhost:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def trusted(monkeypatch) -> None:
    """This machine, where the test's server is, counts as public."""
    monkeypatch.setattr(urls, "is_public", lambda _: True)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111"])
def test_public_addresses_may_be_asked(address):
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
def test_addresses_of_this_network_and_of_none_may_not(address):
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
async def test_only_the_hosts_that_are_named_are_asked(url, monkeypatch):
    monkeypatch.setattr(urls, "_get", None)  # it would fail
    with pytest.raises(UrlNotAllowed):
        await fetch(url, ("example.com",), 1000)


async def test_none_is_asked_where_none_is_named():
    with pytest.raises(UrlNotAllowed, match="ALLOW_URLS"):
        await fetch("http://example.com/a.jpg", (), 1000)


async def test_a_named_host_that_stands_for_this_machine_is_not_asked(elsewhere):
    ASKED.clear()
    with pytest.raises(UrlNotAllowed, match="localhost resolves to an address that is not public"):
        await fetch(f"http://{elsewhere}/picture", (elsewhere,), 10_000)
    assert ASKED == []


async def test_one_bad_address_among_those_of_a_name_is_enough(monkeypatch):
    async def resolved(*_, **__):
        return [(0, 0, 0, "", (address, 80)) for address in ("1.1.1.1", "10.0.0.1")]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolved, raising=False)
    with pytest.raises(UrlNotAllowed):
        await fetch("http://example.com/a.jpg", ("example.com",), 1000)


async def test_the_address_that_was_looked_at_is_the_one_that_is_asked(elsewhere, trusted, monkeypatch):
    loop, looked_up = asyncio.get_running_loop(), []

    async def resolved(host, port, **_):
        looked_up.append(host)
        return [(socket.AF_INET, 0, 0, "", ("127.0.0.1", port))]

    monkeypatch.setattr(loop, "getaddrinfo", resolved, raising=False)
    ASKED.clear()
    name = f"pictures.example:{elsewhere.partition(':')[2]}"
    assert await fetch(f"http://{name}/picture", (name,), 10_000) == jpeg()
    assert looked_up == ["pictures.example"]
    ((path, headers),) = ASKED
    assert (path, headers["Host"]) == ("/picture", name)
    assert not {"Authorization", "Cookie"} & headers.keys()


async def test_no_proxy_of_the_environment_is_used(elsewhere, trusted, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert await fetch(f"http://{elsewhere}/picture", (elsewhere,), 10_000) == jpeg()


@pytest.mark.parametrize(("path", "words"), [("/redirect", "answered 302"), ("/missing", "answered 404")])
async def test_what_is_not_there_or_elsewhere_is_told(elsewhere, trusted, path, words):
    ASKED.clear()
    with pytest.raises(UrlFailed, match=words):
        await fetch(f"http://{elsewhere}{path}", (elsewhere,), 10_000)
    assert [path for path, _ in ASKED] == [path]


async def test_no_more_is_read_than_an_image_may_have(elsewhere, trusted):
    with pytest.raises(BodyTooLarge):
        await fetch(f"http://{elsewhere}/endless", (elsewhere,), 10_000)


async def test_an_image_that_does_not_come_is_given_up(elsewhere, trusted, monkeypatch):
    monkeypatch.setattr(urls, "TIMEOUT_S", 0.05)
    with pytest.raises(UrlFailed, match="TimeoutError"):
        await fetch(f"http://{elsewhere}/endless", (elsewhere,), 10**12)


async def test_a_host_that_does_not_answer_is_told(trusted):
    with socket.create_server(("127.0.0.1", 0)) as free:
        host = f"localhost:{free.getsockname()[1]}"
    with pytest.raises(UrlFailed, match="no image from localhost: Connect"):
        await fetch(f"http://{host}/a.jpg", (host,), 1000)


def test_each_protocol_fetches_from_where_it_may(serve, elsewhere, trusted):
    live, url = serve(allow_urls=(elsewhere,)), f"http://{elsewhere}/picture"
    reported = {"model_id": "pets", "image": {"type": "url", "value": url}}
    for answer in (
        live.client.post("/predict", data={"source": url}),
        live.client.post("/v1/predict/pets", data={"url": url}),
        live.client.post("/infer/object_detection", json=reported),
        live.client.post("/pets/1", params={"image": url}),
    ):
        assert answer.status_code == 200, answer.text
        assert "dog" in answer.text
    missing = live.client.post("/predict", data={"source": f"http://{elsewhere}/missing"})
    assert (missing.status_code, missing.json()["code"]) == (422, "url_failed")
