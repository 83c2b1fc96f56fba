"""Early refusals of large bodies, 100 for each client, by the servers of loadtest/hostile."""

from collections.abc import Callable
from functools import partial

from clients import Check
from loadtest.hostile import refusals
from loadtest.hostile.clients import clients


def read(client: refusals.Client, url: str) -> str:
    """Return the number of responses read. Raises AssertionError if any was not read.

    `url` is not used: the check starts its own servers, which require a key.
    """
    with refusals.servers() as urls:
        requests = refusals.hundred(*urls)
        lost = refusals.lost(requests, client(requests))
    assert not lost, lost
    return f"{len(requests)} of {len(requests)} answers read"


def _check(name: str, client: refusals.Client) -> Check:
    run: Callable[[str], str] = partial(read, client)
    return name, "", "401, 404, 405, 413, 422 and 503 before bodies of 1 to 20 MB", run


CHECKS: list[Check] = [_check(name, client) for name, client in clients().items()]
