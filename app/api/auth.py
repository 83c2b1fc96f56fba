"""API keys: without API_KEYS every request is allowed, otherwise only requests with one of them."""

import hmac
from collections.abc import Mapping, Sequence

from fastapi import Security
from fastapi.params import Depends
from fastapi.security import APIKeyHeader, HTTPBearer

from app.errors import Unauthorized

_SCHEMES = (HTTPBearer(auto_error=False), APIKeyHeader(name="X-API-Key", auto_error=False))


def described(keys: Sequence[str]) -> list[Depends]:
    """Return the security schemes that let users of /docs enter a key; empty without keys. `require_key` checks it."""
    return [Security(scheme) for scheme in _SCHEMES] if keys else []


def require_key(keys: Sequence[str], headers: Mapping[str, str], *others: str) -> None:
    """Raises Unauthorized if `has_key` returns False."""
    if not has_key(keys, headers, *others):
        text = "the API key is not valid" if any(_sent_keys(headers, others)) else "this server requires an API key"
        raise Unauthorized(f"{text}: send one of its API_KEYS as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'")


def has_key(keys: Sequence[str], headers: Mapping[str, str], *others: str) -> bool:
    """Return True if `keys` is empty or the request has one of them. Names in `headers` are lower case, `others` are
    keys from outside the headers (query, body).
    """
    sent = _sent_keys(headers, others)
    # Compares all of them, so that the time does not depend on which one matches.
    matches = [hmac.compare_digest(key.encode(), other.encode()) for key in keys for other in sent]
    return not keys or any(matches)


def _sent_keys(headers: Mapping[str, str], others: Sequence[str]) -> list[str]:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return [token.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", ""), *others]
