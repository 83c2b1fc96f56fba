"""Coroutines at the same time: results in order, one failure for all, nothing kept of the others."""

import asyncio
import gc
import weakref

import pytest

from app.errors import BadParameter
from app.system.gather import together


def test_results_come_in_the_order_of_the_works():
    async def later(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    assert asyncio.run(together(map(later, (0.02, 0, 0.01)))) == [0.02, 0, 0.01]


@pytest.mark.parametrize(("what", "message"), [("file", "file 2 of 3: no"), ("", "no")])
def test_the_first_error_says_which_one_it_was_and_ends_the_others(what, message):
    ended = []

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def failing() -> None:
        await asyncio.sleep(0)
        raise BadParameter("no")

    async def ask() -> None:
        with pytest.raises(BadParameter, match=f"^{message}$"):
            await together([endless(), failing(), endless()], what)
        await asyncio.sleep(0)

    asyncio.run(ask())
    assert ended == [True, True]


def test_errors_that_are_nobody_s_leave_nothing_to_the_garbage_collector():
    class Body:
        pass

    bodies = [Body() for _ in range(2)]
    left = [weakref.ref(body) for body in bodies]

    async def failing(body: Body) -> None:
        done = asyncio.get_running_loop().create_future()  # a circle: it holds the error, whose frame holds it
        done.set_exception(BadParameter(f"no use for {body}"))
        await done

    async def ask() -> None:
        with pytest.raises(BadParameter):
            await together([failing(bodies.pop()), failing(bodies.pop())])

    gc.disable()
    try:
        asyncio.run(ask())
        assert sum(each() is not None for each in left) <= 1  # whoever asked has the other's error
    finally:
        gc.enable()
