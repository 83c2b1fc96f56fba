"""Who may ask: everybody, or who shows one of API_KEYS in the way of their protocol."""

import hmac
from collections.abc import Mapping, Sequence

from fastapi import Security
from fastapi.params import Depends
from fastapi.security import APIKeyHeader, HTTPBearer

from app.errors import Unauthorized

_SCHEMES = (HTTPBearer(auto_error=False), APIKeyHeader(name="X-API-Key", auto_error=False))


def described(keys: Sequence[str]) -> list[Depends]:
    """For /docs, which then lets its reader give a key; `require_key` asks for it."""
    return [Security(scheme) for scheme in _SCHEMES] if keys else []


def require_key(keys: Sequence[str], headers: Mapping[str, str], *others: str) -> None:
    """Raises Unauthorized where `has_key` is false."""
    if not has_key(keys, headers, *others):
        text = "the key is none of this server's" if any(_shown(headers, others)) else "this server wants a key"
        raise Unauthorized(f"{text}: send one of its API_KEYS as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'")


def has_key(keys: Sequence[str], headers: Mapping[str, str], *others: str) -> bool:
    """Whether one of `keys` was shown, or none is wanted. `headers` have names in lower case, `others` are keys that
    came elsewhere.
    """
    shown = _shown(headers, others)
    fits = [hmac.compare_digest(key.encode(), one.encode()) for key in keys for one in shown]  # all, for equal times
    return not keys or any(fits)


def _shown(headers: Mapping[str, str], others: Sequence[str]) -> list[str]:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return [token.strip() if scheme.lower() == "bearer" else "", headers.get("x-api-key", ""), *others]
