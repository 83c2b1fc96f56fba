"""Blocking work on threads, awaited in an event loop."""

import asyncio
import threading

import pytest

from app.threads import Threads


@pytest.fixture
async def make():
    made = []

    def start(*arguments) -> Threads:
        made.append(Threads(*arguments))
        return made[-1]

    yield start
    for threads in made:
        threads.close()


async def test_the_result_comes_from_a_thread_of_that_name(make):
    name = await make(1, "lane").run(lambda: threading.current_thread().name)
    assert name == "lane-0"


@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(3), KeyboardInterrupt()])
async def test_whatever_work_raises_reaches_who_waits_and_the_thread_goes_on(make, error):
    threads = make(1, "lane")

    def work() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        await threads.run(work)
    assert raised.value is error
    assert await threads.run(lambda: 2) == 2


async def test_as_many_work_at_a_time_as_there_are_threads(make):
    threads, together = make(3, "decode"), threading.Barrier(3)
    assert sorted(await asyncio.gather(*(threads.run(lambda: together.wait(10)) for _ in range(3)))) == [0, 1, 2]


async def test_work_that_is_given_up_before_it_begins_never_does(make):
    threads, go, done = make(1, "decode"), threading.Event(), []
    first = asyncio.create_task(threads.run(lambda: go.wait(10)))
    second = asyncio.create_task(threads.run(lambda: done.append("second")))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    go.set()
    await first
    await threads.run(lambda: done.append("third"))
    assert done == ["third"]


async def test_work_that_is_given_up_in_the_middle_harms_nobody(make):
    threads, begun, go = make(1, "decode"), threading.Event(), threading.Event()
    task = asyncio.create_task(threads.run(lambda: (begun.set(), go.wait(10))))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    go.set()
    assert await threads.run(lambda: 1) == 1
    assert task.cancelled()


async def test_closing_drops_what_waits_and_waits_for_what_runs():
    threads, begun, go, done = Threads(1, "decode"), threading.Event(), threading.Event(), []
    running = asyncio.create_task(threads.run(lambda: (begun.set(), go.wait(10), done.append("first"))))
    waiting = asyncio.create_task(threads.run(lambda: done.append("second")))
    await asyncio.to_thread(begun.wait, 10)
    threading.Timer(0.05, go.set).start()
    threads.close()
    await asyncio.gather(running, waiting, return_exceptions=True)
    assert done == ["first"]
    assert waiting.cancelled()


async def test_each_thread_begins_with_what_it_was_told_to(make):
    names = []
    threads = make(2, "lane", lambda: names.append(threading.current_thread().name))
    together = threading.Barrier(2)
    await asyncio.gather(*(threads.run(lambda: together.wait(10)) for _ in range(2)))
    assert sorted(names) == ["lane-0", "lane-1"]


def test_a_loop_that_has_ended_is_no_crash_of_the_thread(monkeypatch):
    go, crashes = threading.Event(), []
    monkeypatch.setattr(threading, "excepthook", crashes.append)

    async def leave() -> Threads:
        threads = Threads(1, "decode")
        task = asyncio.create_task(threads.run(lambda: go.wait(10)))
        await asyncio.sleep(0)
        task.cancel()
        return threads

    threads = asyncio.run(leave())
    go.set()
    threads.close()
    assert crashes == []
