"""Clients that do not read their responses."""

import asyncio

from loadtest.hostile import pictures
from loadtest.hostile.row import Target, row
from loadtest.hostile.wire import head, never_read, post

KIND = "unread"
IMAGE_REQUEST = ("/v1/predict?format=image", "image/jpeg", "Accept: image/png")


def image_request(target: Target) -> bytes:
    """Return a request whose response is a PNG of 20 MB."""
    path, kind, accept = IMAGE_REQUEST
    return post(path, pictures.noise(target.size(2600, 1000)), kind, accept)


@row("unread-pictures", KIND, "24 images of 20 MB that their clients do not read", statuses=r"closed")
async def unread_pictures(target: Target) -> None:
    await never_read(target, image_request(target), target.size(24, 6))


@row(
    "unread-pages",
    KIND,
    "/, /docs and /openapi.json, 200 times each on 60 connections, not read",
    statuses=r"closed",
    keys=True,
)
async def unread_pages(target: Target) -> None:
    each, times = target.size(20, 4), target.size(200, 100)
    await asyncio.gather(
        *(never_read(target, head(f"GET {path}") * times, each) for path in ("/", "/docs", "/openapi.json"))
    )


@row("unread-metrics", KIND, "/metrics and /v1/models, 500 times each on 40 connections, not read", statuses=r"closed")
async def unread_metrics(target: Target) -> None:
    each, times = target.size(20, 4), target.size(500, 200)
    await asyncio.gather(
        *(never_read(target, head(f"GET {path}") * times, each) for path in ("/metrics", "/v1/models"))
    )


@row(
    "unread-refusals",
    KIND,
    "5000 pipelined refused requests on each of 20 connections, not read",
    statuses=r"closed",
    keys=True,
)
async def unread_refusals(target: Target) -> None:
    requests = head("POST /v1/predict", "Content-Length: 0") * target.size(5000, 2000)
    await never_read(target, requests, target.size(20, 5))


@row(
    "unread-bodies",
    KIND,
    "40 early refusals of bodies of 20 MB whose responses are not read",
    statuses=r"closed",
    keys=True,
)
async def unread_bodies(target: Target) -> None:
    await never_read(
        target, post("/v1/predict", bytes(target.size(19 << 20, 2 << 20)), "image/jpeg"), target.size(40, 6)
    )
