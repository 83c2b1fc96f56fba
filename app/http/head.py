"""What a request's head has to be before the application sees it."""

from collections.abc import Iterable, Sequence

from app.http.connections import Limits
from app.http.refusal import Refused

Header = tuple[bytes, bytes]


def check(headers: Sequence[Header], url: bytes, version: str, limits: Limits, *, measure: bool) -> None:
    """Raises Refused for a head that is too large, if it is to be measured, and for a Host that is missing, twice there
    or somebody else's.
    """
    if measure and len(url) + sum(len(name) + len(value) + 4 for name, value in headers) > limits.head_bytes:
        raise Refused(431, f"the request's head is larger than {limits.head_bytes} bytes")
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1 and (hosts or version == "1.1"):
        raise Refused(400, f"a request names its Host once; this one has {len(hosts)}")
    if limits.hosts is not None and hosts and _name(hosts[0]) not in limits.hosts:
        raise Refused(400, "this Host is none of the server's names: send its address, or name it in ALLOW_HOSTS")


def framing(headers: Iterable[Header]) -> bytes:
    """The lines that say how long a body is; empty where none follows."""
    return b"".join(
        b"%s: %s\r\n" % (name, value)
        for name, value in headers
        if name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0"))
    )


def _name(host: bytes) -> str:
    """A Host header without its port."""
    text = host.decode("latin-1").lower()
    return text[: text.rfind("]") + 1] if text.startswith("[") else text.partition(":")[0]
