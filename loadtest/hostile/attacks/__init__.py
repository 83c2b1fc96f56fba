"""All attacks, by kind."""

from loadtest.hostile.attacks import (
    ends,
    engines,
    forms,
    grpc_calls,
    grpc_frames,
    heads,
    images,
    json_bodies,
    memory,
    slow,
    unread,
)

__all__ = [
    "ends",
    "engines",
    "forms",
    "grpc_calls",
    "grpc_frames",
    "heads",
    "images",
    "json_bodies",
    "memory",
    "slow",
    "unread",
]
