"""Blocking work on threads, awaited in an event loop."""

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from app.errors import WorkStuck
from app.system import threads as module
from app.system.threads import Abandoned, Threads, checkpoint


@pytest.fixture
async def make():
    made = []

    def start(*arguments) -> Threads:
        made.append(Threads(*arguments))
        return made[-1]

    yield start
    for threads in made:
        threads.close()


async def test_work_runs_on_a_thread_with_the_name_of_the_pool(make):
    name = await make(1, "instance").run(lambda: threading.current_thread().name)
    assert name == "instance-0"


@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(3), KeyboardInterrupt()])
async def test_any_exception_of_work_reaches_the_caller_and_the_thread_continues(make, error):
    threads = make(1, "instance")

    def work() -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        await threads.run(work)
    assert raised.value is error
    assert await threads.run(lambda: 2) == 2


async def test_every_thread_of_a_pool_works_at_the_same_time(make):
    threads, together = make(3, "decode"), threading.Barrier(3)
    assert sorted(await asyncio.gather(*(threads.run(lambda: together.wait(10)) for _ in range(3)))) == [0, 1, 2]


async def test_work_cancelled_before_its_start_never_runs(make):
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


async def test_work_cancelled_while_it_runs_does_not_affect_later_work(make):
    threads, begun, go = make(1, "decode"), threading.Event(), threading.Event()
    task = asyncio.create_task(threads.run(lambda: (begun.set(), go.wait(10))))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    go.set()
    assert await threads.run(lambda: 1) == 1
    assert task.cancelled()


async def test_close_cancels_queued_work_and_waits_for_running_work():
    threads, begun, go, done = Threads(1, "decode"), threading.Event(), threading.Event(), []
    running = asyncio.create_task(threads.run(lambda: (begun.set(), go.wait(10), done.append("first"))))
    waiting = asyncio.create_task(threads.run(lambda: done.append("second")))
    await asyncio.to_thread(begun.wait, 10)
    threading.Timer(0.05, go.set).start()
    threads.close()
    await asyncio.gather(running, waiting, return_exceptions=True)
    assert done == ["first"]
    assert waiting.cancelled()


async def test_each_thread_starts_with_the_initializer(make):
    names = []
    threads = make(2, "instance", lambda: names.append(threading.current_thread().name))
    together = threading.Barrier(2)
    await asyncio.gather(*(threads.run(lambda: together.wait(10)) for _ in range(2)))
    assert sorted(names) == ["instance-0", "instance-1"]


def test_a_closed_event_loop_does_not_crash_the_thread(monkeypatch):
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


# Stuck work


async def pool_with_stuck_thread(make, patience_s=0.05):
    """Return a pool whose only thread waits for an event, and that event."""
    threads, go = make(1, "decode", lambda: None, patience_s), threading.Event()
    with pytest.raises(WorkStuck, match=r"decode-0.*0\.05 s"):
        await threads.run(lambda: go.wait(10))
    return threads, go


async def test_stuck_work_fails_in_time_and_other_work_continues(make):
    threads, go = await pool_with_stuck_thread(make)
    assert threads.stuck == 1
    assert await threads.run(lambda: threading.current_thread().name) == "decode-1"
    go.set()


async def test_a_stuck_thread_that_returns_is_not_counted_any_more_and_ends(make):
    threads, go = await pool_with_stuck_thread(make)
    stuck = next(iter(threads._stuck)).thread
    go.set()
    await asyncio.to_thread(stuck.join, 10)
    await asyncio.sleep(0)
    assert threads.stuck == 0
    assert not stuck.is_alive()
    assert await threads.run(lambda: 2) == 2


async def test_work_queued_behind_a_stuck_thread_runs_on_a_new_thread(make):
    threads, go = make(1, "decode", lambda: None, 0.05), threading.Event()
    stuck = asyncio.create_task(threads.run(lambda: go.wait(10)))
    waiting = [asyncio.create_task(threads.run(lambda i=i: i)) for i in range(3)]
    assert await asyncio.gather(*waiting) == [0, 1, 2]
    assert isinstance((await asyncio.gather(stuck, return_exceptions=True))[0], WorkStuck)
    go.set()


async def test_several_stuck_threads_are_counted(make):
    threads, go = make(1, "decode", lambda: None, 0.05), threading.Event()
    stuck = [threads.run(lambda: go.wait(10)) for _ in range(3)]
    assert [type(error) for error in await asyncio.gather(*stuck, return_exceptions=True)] == [WorkStuck] * 3
    assert threads.stuck == 3
    go.set()


async def test_cancelled_work_is_still_counted_as_stuck(make):
    threads, go, begun = make(1, "decode", lambda: None, 0.05), threading.Event(), threading.Event()
    task = asyncio.create_task(threads.run(lambda: (begun.set(), go.wait(10))))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    assert await threads.run(lambda: 1) == 1
    assert threads.stuck == 1
    go.set()


async def test_close_does_not_wait_for_a_stuck_thread():
    threads, go = await pool_with_stuck_thread(Threads)
    started = time.monotonic()
    threads.close()
    assert time.monotonic() - started < 5
    go.set()


async def test_close_waits_for_running_work_at_most_close_s(monkeypatch):
    monkeypatch.setattr(module, "CLOSE_S", 0.3)
    threads, go, begun = Threads(1, "decode", lambda: None, 0.05), threading.Event(), threading.Event()
    task = asyncio.create_task(threads.run(lambda: (begun.set(), go.wait(10))))
    await asyncio.to_thread(begun.wait, 10)
    started = time.monotonic()
    threads.close()
    assert time.monotonic() - started < 5
    go.set()
    await task


async def test_work_that_ends_in_time_is_never_stuck(make):
    threads = make(2, "decode", lambda: None, 10)
    assert await asyncio.gather(*(threads.run(lambda i=i: i) for i in range(1000))) == list(range(1000))
    assert threads.stuck == 0


async def test_a_pool_without_patience_starts_no_timer(make):
    threads = make(1, "instance")
    await threads.run(lambda: 1)
    assert threads._timer is None


def test_a_stuck_thread_does_not_block_the_exit():
    code = (
        "import asyncio, threading\nfrom app.errors import WorkStuck\nfrom app.system.threads import Threads\n"
        "async def main():\n"
        "    threads = Threads(1, 'decode', lambda: None, 0.05)\n"
        "    try: await threads.run(threading.Event().wait)\n"
        "    except WorkStuck: print('stuck')\n"
        "    threads.close()\n"
        "asyncio.run(main())\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True, timeout=30
    )
    assert (done.stdout, done.stderr) == ("stuck\n", "")


async def test_cancelled_work_ends_at_its_next_checkpoint():
    pool, begun, go, ended = Threads(1, "test"), threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go.wait(10)
        try:
            checkpoint()
        except Abandoned:
            ended.set()
            raise

    task = asyncio.create_task(pool.run(work))
    await asyncio.to_thread(begun.wait, 10)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    go.set()
    assert await asyncio.to_thread(ended.wait, 10)
    assert await pool.run(lambda: checkpoint() or 7) == 7
    pool.close()


def test_a_checkpoint_outside_a_pool_does_nothing():
    checkpoint()
