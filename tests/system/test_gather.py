"""Concurrent coroutines: results in order, the first failure cancels the others, and no references remain."""

import asyncio
import gc
import weakref

import pytest

from app.errors import BadParameter
from app.system.gather import together


def test_results_are_in_the_order_of_the_coroutines():
    async def later(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    assert asyncio.run(together(map(later, (0.02, 0, 0.01)))) == [0.02, 0, 0.01]


@pytest.mark.parametrize(("what", "message"), [("file", "file 2 of 3: no"), ("", "no")])
def test_the_first_error_names_its_coroutine_and_cancels_the_others(what, message):
    ended = []

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    async def failing() -> None:
        await asyncio.sleep(0)
        raise BadParameter("no")

    async def run() -> None:
        with pytest.raises(BadParameter, match=f"^{message}$"):
            await together([endless(), failing(), endless()], what)
        await asyncio.sleep(0)

    asyncio.run(run())
    assert ended == [True, True]


def test_errors_that_are_not_raised_leave_nothing_to_the_garbage_collector():
    class Body:
        pass

    bodies = [Body() for _ in range(2)]
    left = [weakref.ref(body) for body in bodies]

    async def failing(body: Body) -> None:
        done = asyncio.get_running_loop().create_future()  # a reference cycle: it holds the error, whose frame holds it
        done.set_exception(BadParameter(f"no use for {body}"))
        await done

    async def run() -> None:
        with pytest.raises(BadParameter):
            await together([failing(bodies.pop()), failing(bodies.pop())])

    gc.disable()
    try:
        asyncio.run(run())
        assert sum(each() is not None for each in left) <= 1  # the error that was raised keeps its own body
    finally:
        gc.enable()
