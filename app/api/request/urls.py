"""Fetches images by URL, only from the hosts in ALLOW_URLS and only at public addresses.

A server that fetches URLs for its clients could give them access to its own network or the cloud's metadata. So the
name is resolved once and the request goes to that address, redirects are not followed, no proxy or credential is used.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Sequence
from functools import cache

import httpx

from app.errors import BodyTooLarge, UrlFailed, UrlNotAllowed

TIMEOUT_S = 10
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # contains IPv4, and is global for Python
_6TO4 = ipaddress.ip_network("2002::/16")


async def fetch(url: str, hosts: Sequence[str], max_bytes: int) -> bytes:
    """Return the body of a GET. Raises UrlNotAllowed, BodyTooLarge, or UrlFailed on an error or a status except 200."""
    target = _allowed(url, hosts)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await _get(target, await _resolve(target), max_bytes)
    except (httpx.HTTPError, OSError) as error:  # a TimeoutError too
        raise UrlFailed(f"no image from {target.host}: {type(error).__name__}") from error


def _allowed(url: str, hosts: Sequence[str]) -> httpx.URL:
    if not hosts:
        raise UrlNotAllowed("images by URL are not enabled (ALLOW_URLS): send the image itself")
    try:
        target = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UrlNotAllowed(f"not a valid URL: {error}") from error
    if target.userinfo or target.scheme not in ("http", "https"):
        raise UrlNotAllowed("the URL must be http or https, without credentials")
    if target.netloc.decode() not in hosts:
        raise UrlNotAllowed(f"{target.netloc.decode()} is not in ALLOW_URLS")
    return target


async def _resolve(target: httpx.URL) -> str:
    """Return the first address of the host. Raises UrlNotAllowed if any of its addresses is not public."""
    port = target.port or {"http": 80, "https": 443}[target.scheme]
    found = await asyncio.get_running_loop().getaddrinfo(target.host, port, type=socket.SOCK_STREAM)
    addresses = [str(address[0]) for *_, address in found]
    if not all(map(is_public, addresses)):
        raise UrlNotAllowed(f"{target.host} resolves to an address that is not public")
    return addresses[0]


def is_public(address: str) -> bool:
    """Return False for a loopback, private, link-local, shared, multicast or reserved address, and IPv4 inside IPv6."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and (ip.ipv4_mapped or ip in _NAT64 or ip in _6TO4):
        return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


async def _get(target: httpx.URL, address: str, max_bytes: int) -> bytes:
    headers = {"Host": target.netloc.decode(), "Accept-Encoding": "identity"}
    async with (
        httpx.AsyncClient(verify=_tls(), trust_env=False, timeout=TIMEOUT_S) as client,
        client.stream(
            "GET",
            target.copy_with(host=address),
            headers=headers,
            follow_redirects=False,
            extensions={"sni_hostname": target.host},  # also the name in the certificate check
        ) as response,
    ):
        if response.status_code != httpx.codes.OK:
            raise UrlFailed(f"{target.host} answered {response.status_code}; redirects are not followed")
        data = bytearray()
        async for chunk in response.aiter_raw():
            data += chunk
            if len(data) > max_bytes:
                raise BodyTooLarge(f"the image at {target.host} is larger than {max_bytes} bytes")
        return bytes(data)


@cache
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)
