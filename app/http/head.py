"""Checks of a request's head before the application sees it."""

from collections.abc import Iterable, Sequence

from app.http.connections import Limits
from app.http.refusal import Refused

Header = tuple[bytes, bytes]


def check(headers: Sequence[Header], url: bytes, version: str, limits: Limits, *, measure: bool) -> None:
    """Raise Refused if Host is missing (HTTP/1.1), repeated or not in `limits.hosts`; with `measure` also if the head
    is too large.
    """
    if measure and len(url) + sum(len(name) + len(value) + 4 for name, value in headers) > limits.head_bytes:
        raise Refused(431, f"the request's head is larger than {limits.head_bytes} bytes")
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1 and (hosts or version == "1.1"):
        raise Refused(400, f"a request must have one Host header; this one has {len(hosts)}")
    if limits.hosts is not None and hosts and _name(hosts[0]) not in limits.hosts:
        raise Refused(400, "the Host header is no name of this server: use its address, or add the name to ALLOW_HOSTS")


def framing(headers: Iterable[Header]) -> bytes:
    """Return the header lines that give the body's length; empty if there is no body."""
    return b"".join(
        b"%s: %s\r\n" % (name, value)
        for name, value in headers
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0"))
    )


def _name(host: bytes) -> str:
    """Return a Host header in lower case, without its port."""
    text = host.decode("latin-1").lower()
    return text[: text.rfind("]") + 1] if text.startswith("[") else text.partition(":")[0]
