"""What every gRPC call needs: its handler, its refusals, and an end when the server stops."""

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
}  # what else there is, the client can mend: INVALID_ARGUMENT


async def until(closing: asyncio.Event, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """A stream's requests: its client may keep it open without any, which must not keep the server."""
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
    """Requests reach `call` as bytes: what gRPC itself cannot read would be a defect of the server, by its status."""
    return kind(call, response_serializer=getattr(messages, f"{name}Response").SerializeToString)


def aborting(call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The call, whose YolopardErrors end it with their status."""

    async def answer(requests: AsyncIterator[bytes], context: Any) -> Any:
        try:
            return await call(requests, context)
        except YolopardError as error:
            status = refusal(error)
        return await context.abort(*status)

    return answer


def refusal(error: YolopardError) -> tuple[grpc.StatusCode, str]:
    """For `context.abort`, called when the error is gone: its traceback holds the message, and gRPC would keep it."""
    forget(error)
    return _STATUS.get(error.status, grpc.StatusCode.INVALID_ARGUMENT), str(error)
