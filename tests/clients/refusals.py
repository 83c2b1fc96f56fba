"""Early refusals of bodies of megabytes, 100 of each client, from servers of their own (loadtest/hostile)."""

from collections.abc import Callable
from functools import partial

from clients import Check
from loadtest.hostile import refusals
from loadtest.hostile.clients import clients


def read(client: refusals.Client, url: str) -> str:
    """Raises unless every answer was read; `url` is not asked, since these servers want a key."""
    with refusals.servers() as urls:
        requested = refusals.hundred(*urls)
        wrong = refusals.lost(requested, client(requested))
    assert not wrong, wrong
    return f"{len(requested)} of {len(requested)} answers read"


def _check(name: str, client: refusals.Client) -> Check:
    run: Callable[[str], str] = partial(read, client)
    return name, "", "401, 404, 405, 413, 422 and 503 before bodies of 1 to 20 MB", run


CHECKS: list[Check] = [_check(name, client) for name, client in clients().items()]
