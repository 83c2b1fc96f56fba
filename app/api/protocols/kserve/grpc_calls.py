"""Helpers for gRPC calls: handlers, statuses of errors, and the end of streams when the server stops."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as messages

from app.errors import YolopardError, forget

_STATUS = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}  # other errors are the client's: INVALID_ARGUMENT


async def until(closing: asyncio.Event, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Yield a stream's requests until it ends or `closing` is set: an idle stream must not keep the server running."""
    ended = asyncio.ensure_future(closing.wait())
    following = asyncio.ensure_future(anext(requests, None))
    try:
        while True:
            await asyncio.wait((following, ended), return_when=asyncio.FIRST_COMPLETED)
            if not following.done() or following.result() is None:
                return
            yield following.result()
            following = asyncio.ensure_future(anext(requests, None))
    finally:
        following.cancel()
        ended.cancel()


def handler(kind: Callable[..., grpc.RpcMethodHandler], name: str, call: Callable[..., Any]) -> grpc.RpcMethodHandler:
    """Return a handler that passes requests to `call` as bytes: gRPC would report unreadable ones as INTERNAL."""
    return kind(call, response_serializer=getattr(messages, f"{name}Response").SerializeToString)


def aborting(call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Wrap `call` so that a YolopardError ends it with the error's gRPC status."""

    async def answer(requests: AsyncIterator[bytes], context: Any) -> Any:
        try:
            return await call(requests, context)
        except YolopardError as error:
            status = refusal(error)
        return await context.abort(*status)

    return answer


def refusal(error: YolopardError) -> tuple[grpc.StatusCode, str]:
    """Return status and text for `context.abort`. Clears the traceback, which gRPC would keep with the message."""
    forget(error)
    return _STATUS.get(error.status, grpc.StatusCode.INVALID_ARGUMENT), str(error)
