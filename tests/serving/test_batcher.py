"""Contracts of the batcher. A test links the bug of another server that it guards against, if there is a link."""

import asyncio
import logging
import threading
import time

import fakes
import numpy as np
import pytest
from fakes import Device

from app.errors import DeadlineExceeded, InferenceFailed, Stopping
from app.serving.batcher import EMA_WEIGHT, MAX_FAILURES, Batcher
from app.serving.profile import HANDLING_S, EngineProfile
from app.system.metrics import Metrics

NEVER = float("inf")


def frame(mark: int, shape: tuple[int, int] = (2, 2)) -> np.ndarray:
    return np.full((*shape, 3), mark, np.uint8)


@pytest.fixture
def device():
    return Device()


@pytest.fixture
async def make(device):
    """Start batchers on the device. Each is closed at the end, so that a hanging batcher fails its test."""
    made = []

    def start(
        *,
        instances=1,
        max_batch=4,
        max_wait_s=0.0,
        metrics=None,
        one_device=False,
        device_s=0.04,
        lead_s=0.0,
        profile=None,
        on=device,
    ) -> Batcher:
        batcher = Batcher(
            on,
            instances=instances,
            profile=profile or fakes.profile(max_batch, device_s=device_s, lead_s=lead_s),
            one_device=one_device,
            max_wait_s=max_wait_s,
            metrics=metrics or Metrics(),
            model="m",
            name="fake",
        )
        batcher.start()
        made.append(batcher)
        return batcher

    yield start
    device.gate.set()
    for batcher in made:
        await asyncio.wait_for(batcher.close(), 10)


async def occupy(batcher: Batcher, device: Device) -> asyncio.Task:
    """Submit one frame marked 0 and keep its batch running. Every batch runs until `device.gate` is set."""
    device.gate.clear()
    task = asyncio.create_task(batcher.submit(frame(0), NEVER))
    await device.until_busy()
    return task


async def queue(batcher: Batcher, *marks: int, deadline: float = NEVER) -> list[asyncio.Task]:
    tasks = [asyncio.create_task(batcher.submit(frame(mark), deadline)) for mark in marks]
    await asyncio.sleep(0)  # one iteration of the event loop: every task has put its frame into the queue
    return tasks


async def marks_of(tasks: list[asyncio.Task]) -> list[int]:
    return [int(answer.outputs[0][0, 0]) for answer in await asyncio.wait_for(asyncio.gather(*tasks), 10)]


async def test_every_frame_gets_its_own_rows(make):
    tasks = await queue(make(max_batch=3), 1, 2, 3, 4, 5)
    assert await marks_of(tasks) == [1, 2, 3, 4, 5]


async def test_a_full_batch_starts_at_once(make, device):
    tasks = await queue(make(max_batch=3, max_wait_s=60), 1, 2, 3)
    assert await marks_of(tasks) == [1, 2, 3]
    assert device.batches == [[1, 2, 3]]


async def test_a_single_image_starts_after_max_wait(make):
    started = time.monotonic()
    await marks_of(await queue(make(max_wait_s=0.05), 1))
    assert time.monotonic() - started >= 0.04


async def test_a_single_image_starts_at_once_without_max_wait(make):
    answers = await asyncio.gather(*await queue(make(max_wait_s=0), 1))
    assert answers[0].batch_size == 1


async def test_images_that_arrive_while_the_device_is_busy_form_a_batch_without_max_wait(make, device):
    batcher = make(max_batch=8)
    first = await occupy(batcher, device)
    tasks = await queue(batcher, 1, 2, 3)
    device.gate.set()
    assert await marks_of([first, *tasks]) == [0, 1, 2, 3]
    assert device.batches == [[0], [1, 2, 3]]


async def test_images_are_processed_in_the_order_of_arrival(make, device):
    batcher = make(max_batch=2)
    first = await occupy(batcher, device)
    tasks = await queue(batcher, 1, 2, 3, 4)
    device.gate.set()
    await marks_of([first, *tasks])
    assert device.batches == [[0], [1, 2], [3, 4]]


async def test_a_batch_never_exceeds_max_batch(make, device):
    batcher = make(max_batch=4)
    first = await occupy(batcher, device)
    tasks = await queue(batcher, *range(1, 12))
    device.gate.set()
    await marks_of([first, *tasks])
    assert max(len(batch) for batch in device.batches) == 4


async def test_images_left_after_a_full_batch_start_without_a_new_arrival(make, device):
    """https://github.com/ray-project/ray/pull/42705"""
    tasks = await queue(make(max_batch=2, max_wait_s=0.02), 1, 2, 3)
    assert await marks_of(tasks) == [1, 2, 3]
    assert device.batches == [[1, 2], [3]]


async def test_a_batch_has_one_shape_and_no_shape_starves(make, device):
    batcher = make(max_batch=2)
    first = await occupy(batcher, device)
    wide = asyncio.create_task(batcher.submit(frame(9, (2, 4)), NEVER))
    tasks = await queue(batcher, 1, 2, 3, 4)
    device.gate.set()
    assert await marks_of([first, wide, *tasks]) == [0, 9, 1, 2, 3, 4]
    assert device.batches == [[0], [9], [1, 2], [3, 4]]


async def test_the_shape_of_the_oldest_job_goes_first_whatever_arrived_last(make, device):
    batcher = make(max_batch=8)
    first = await occupy(batcher, device)
    oldest = await queue(batcher, 1)
    wide = asyncio.create_task(batcher.submit(frame(9, (2, 4)), NEVER))
    await asyncio.sleep(0)
    tasks = [first, *oldest, wide, *await queue(batcher, 2)]
    device.gate.set()
    await marks_of(tasks)
    assert device.batches == [[0], [1, 2], [9]]


async def test_max_wait_counts_from_the_oldest_job(make):
    """If it counted from the newest, a steady stream of images would keep the first one waiting."""
    batcher = make(max_batch=1000, max_wait_s=0.05)
    tasks = await queue(batcher, 0)
    for _ in range(200):
        tasks += await queue(batcher, 1)
        await asyncio.sleep(0.01)
        if tasks[0].done():
            break
    assert tasks[0].done()
    await marks_of(tasks)


async def test_idle_is_true_only_without_waiting_and_running_jobs(make, device):
    batcher = make(max_batch=1)
    assert batcher.idle
    first = await occupy(batcher, device)
    assert not batcher.idle
    tasks = await queue(batcher, 1)
    assert not batcher.idle
    device.gate.set()
    await marks_of([first, *tasks])
    assert batcher.idle


async def test_each_instance_processes_its_own_batch(make, device):
    batcher = make(instances=2, max_batch=1)
    device.gate.clear()
    tasks = await queue(batcher, 1, 2)
    await device.until_busy()
    await device.until_busy()
    device.gate.set()
    assert await marks_of(tasks) == [1, 2]
    assert len(device.threads) == 2


async def test_a_job_cancelled_while_waiting_leaves_the_queue(make, device):
    batcher = make(max_batch=8)
    first = await occupy(batcher, device)
    tasks = await queue(batcher, 1, 2, 3)
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    assert batcher.depth() == 2
    device.gate.set()
    await marks_of([first, tasks[0], tasks[2]])
    assert device.batches == [[0], [1, 3]]


async def test_a_job_cancelled_in_flight_does_not_affect_the_others_of_its_batch(make, device):
    """MLServer's adaptive batcher leaves the neighbours of a cancelled request hanging."""
    batcher = make(max_batch=3, max_wait_s=60)
    device.gate.clear()
    tasks = await queue(batcher, 1, 2, 3)
    await device.until_busy()
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    device.gate.set()
    assert await marks_of([tasks[0], tasks[2]]) == [1, 3]
    assert await marks_of(await queue(batcher, 4, 5, 6)) == [4, 5, 6]


async def test_a_failed_batch_fails_only_its_own_jobs(make, device, caplog):
    """https://github.com/michaelfeil/infinity/issues/242"""
    batcher = make(max_batch=2)
    device.failure = RuntimeError("the device said no")
    errors = await asyncio.gather(*await queue(batcher, 1, 2), return_exceptions=True)
    assert [type(error) for error in errors] == [InferenceFailed, InferenceFailed]
    assert device.batches == [[1, 2]]
    assert caplog.messages == ["a batch of 2 failed on fake"]


async def test_the_next_batch_succeeds_after_a_failure(make, device, caplog):
    batcher = make(max_batch=2)
    device.failure = RuntimeError("the device said no")
    with caplog.at_level(logging.CRITICAL):
        await asyncio.gather(*await queue(batcher, 1, 2), return_exceptions=True)
    device.failure = None
    assert await marks_of(await queue(batcher, 3, 4)) == [3, 4]


async def test_each_failed_job_gets_its_own_exception_with_the_cause(make, device, caplog):
    batcher = make(max_batch=2)
    device.failure = RuntimeError("the device said no")
    with caplog.at_level(logging.CRITICAL):
        first, second = await asyncio.gather(*await queue(batcher, 1, 2), return_exceptions=True)
    assert first is not second
    assert first.__cause__ is second.__cause__ is device.failure


async def test_a_wrong_output_count_is_an_error(make, device, caplog):
    device.extra_rows = 1
    with caplog.at_level(logging.CRITICAL), pytest.raises(InferenceFailed):
        await asyncio.gather(*await queue(make(), 1, 2))


async def test_alive_is_false_after_max_failures_until_a_batch_succeeds(make, device, caplog):
    batcher = make(max_batch=1)
    device.failure = RuntimeError("sticky")
    with caplog.at_level(logging.CRITICAL):
        for mark in range(MAX_FAILURES):
            assert batcher.alive
            await asyncio.gather(*await queue(batcher, mark), return_exceptions=True)
    assert not batcher.alive
    device.failure = None
    await marks_of(await queue(batcher, 9))
    assert batcher.alive
    device.failure = RuntimeError("sticky")
    with caplog.at_level(logging.CRITICAL):
        for mark in range(MAX_FAILURES):  # counted from zero again
            assert batcher.alive
            await asyncio.gather(*await queue(batcher, mark), return_exceptions=True)
    assert not batcher.alive


async def test_an_expired_job_never_reaches_the_device(make, device):
    batcher = make(max_batch=8)
    first = await occupy(batcher, device)
    late = await queue(batcher, 1, deadline=asyncio.get_running_loop().time())
    kept = await queue(batcher, 2)
    device.gate.set()
    assert await marks_of([first, *kept]) == [0, 2]
    with pytest.raises(DeadlineExceeded):
        await late[0]
    assert device.batches == [[0], [2]]


async def test_a_queue_of_only_expired_jobs_is_answered(make, device):
    batcher = make(max_batch=8)
    first = await occupy(batcher, device)
    late = await queue(batcher, 1, 2, deadline=asyncio.get_running_loop().time())
    device.gate.set()
    await first
    errors = await asyncio.wait_for(asyncio.gather(*late, return_exceptions=True), 10)
    assert [type(error) for error in errors] == [DeadlineExceeded] * 2
    assert batcher.depth() == 0


async def test_a_full_batch_does_not_wait_behind_expired_jobs_of_another_shape(make, device):
    batcher = make(max_batch=2, max_wait_s=60)
    device.gate.clear()
    held = await queue(batcher, 1, 2)
    await device.until_busy()
    now = asyncio.get_running_loop().time()
    late = [asyncio.create_task(batcher.submit(frame(9, (2, 4)), now)) for _ in range(2)]
    tasks = await queue(batcher, 3, 4)
    device.gate.set()
    errors = await asyncio.wait_for(asyncio.gather(*late, return_exceptions=True), 10)
    assert [type(error) for error in errors] == [DeadlineExceeded] * 2
    assert await marks_of([*held, *tasks]) == [1, 2, 3, 4]


async def test_an_idle_batcher_does_not_spin(make):
    """LitServe's queue loop uses 98 % of a core with a timeout of zero."""
    batcher = make(max_wait_s=0)
    iterations = 0
    take = batcher._take

    def counted():
        nonlocal iterations
        iterations += 1
        return take()

    batcher._take = counted
    await marks_of(await queue(batcher, 1))
    before = iterations
    for _ in range(1000):
        await asyncio.sleep(0)
    assert iterations - before <= 1


async def test_close_finishes_queued_jobs_without_max_wait(make, device):
    batcher = make(max_batch=8, max_wait_s=60)
    tasks = await queue(batcher, 1, 2, 3)
    await asyncio.wait_for(batcher.close(), 5)
    assert await marks_of(tasks) == [1, 2, 3]


async def test_close_logs_nothing(make, caplog):
    batcher = make()
    await marks_of(await queue(batcher, 1))
    await asyncio.wait_for(batcher.close(), 5)
    await asyncio.sleep(0)  # the callbacks of the ended tasks
    assert caplog.messages == []


async def test_close_finishes_jobs_in_flight_and_queued_jobs(make, device):
    batcher = make(max_batch=2)
    first = await occupy(batcher, device)
    tasks = await queue(batcher, 1, 2, 3)
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0)
    device.gate.set()
    assert await marks_of([first, *tasks]) == [0, 1, 2, 3]
    await asyncio.wait_for(closing, 5)


async def test_submit_after_close_is_refused(make):
    batcher = make()
    await batcher.close()
    with pytest.raises(Stopping):
        await batcher.submit(frame(1), NEVER)


async def test_a_dead_instance_fails_every_job_in_flight_and_queued(make, device, caplog):
    batcher = make(max_batch=1)
    first = await occupy(batcher, device)
    tasks = await queue(batcher, 1, 2)
    device.failure = SystemExit()
    with caplog.at_level(logging.CRITICAL):
        device.gate.set()
        errors = await asyncio.wait_for(asyncio.gather(first, *tasks, return_exceptions=True), 10)
    assert [type(error) for error in errors] == [InferenceFailed] * 3
    assert len({id(error) for error in errors}) == 3
    assert not batcher.alive


async def test_a_dead_instance_refuses_new_jobs_at_once(make, device, caplog):
    batcher = make(max_batch=1)
    device.failure = SystemExit()
    with caplog.at_level(logging.CRITICAL), pytest.raises(InferenceFailed):
        await batcher.submit(frame(1), NEVER)
    with pytest.raises(InferenceFailed):
        await batcher.submit(frame(2), NEVER)


async def test_a_dead_loop_answers_every_job(make, device, caplog):
    batcher = make(max_batch=1)
    first = await occupy(batcher, device)
    tasks = await queue(batcher, 1)
    batcher._take = None
    with caplog.at_level(logging.CRITICAL):
        device.gate.set()
        assert (await asyncio.wait_for(first, 10)).batch_size == 1
        with pytest.raises(InferenceFailed):
            await asyncio.wait_for(tasks[0], 10)
    assert not batcher.alive


@pytest.mark.parametrize(("wait_s", "count", "reason"), [(0, 1, "idle"), (0.01, 1, "timeout"), (60, 4, "full")])
async def test_batches_are_counted_by_the_reason_of_their_start(make, wait_s, count, reason):
    metrics = Metrics()
    await marks_of(await queue(make(max_wait_s=wait_s, metrics=metrics), *range(count)))
    assert value(metrics, "batches_total", model="m", engine="fake", reason=reason) == 1


async def test_images_batches_and_device_time_are_counted(make, device):
    metrics = Metrics()
    await marks_of(await queue(make(max_batch=2, metrics=metrics), 1, 2, 3, 4))
    assert value(metrics, "images_total", model="m", engine="fake") == 4
    assert value(metrics, "batch_size_sum", model="m", engine="fake") == 4
    assert value(metrics, "device_seconds_total", model="m", engine="fake") > 0
    assert value(metrics, "queue_depth", model="m", engine="fake") == 0


async def test_device_time_is_the_time_that_the_device_reports(make, device):
    metrics, device.seconds = Metrics(), 7.0
    await marks_of(await queue(make(metrics=metrics), 1, 2))
    assert value(metrics, "device_seconds_total", model="m", engine="fake") == 7


async def test_an_answer_holds_its_queue_and_inference_times(make, device):
    batcher = make()
    first = await occupy(batcher, device)
    (second,) = await queue(batcher, 1)
    device.gate.set()
    early, late = await asyncio.gather(first, second)
    assert 60 > late.queue_s > early.queue_s >= 0
    assert early.infer_s > 0


# Instances that share a device: a partial batch starts shortly before the device is free, not earlier.

HOUR = 3600.0
SOON = 0.05


class GatedInstances(Device):
    """Has one gate for each instance. The gates start closed."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = [threading.Event(), threading.Event()]

    def infer(self, instance, frames, *, low_latency=False):
        rows = super().infer(instance, frames, low_latency=low_latency)
        assert self.gates[instance].wait(10)
        return rows


async def settled() -> None:
    """Let the event loop run until everything that needs neither the device nor the clock is done."""
    for _ in range(100):
        await asyncio.sleep(0)


async def test_on_one_device_a_partial_batch_waits_for_the_running_batch(make, device):
    batcher = make(instances=2, one_device=True, device_s=HOUR)
    first = await occupy(batcher, device)
    tasks = await queue(batcher, 1, 2)
    await settled()
    assert (batcher.depth(), device.batches) == (2, [[0]])
    device.gate.set()  # far earlier than expected: no batch waits for the hour to pass
    assert await marks_of([first, *tasks]) == [0, 1, 2]
    assert device.batches == [[0], [1, 2]]


async def test_on_one_device_a_batch_starts_its_lead_time_before_the_device_is_free(make, device):
    batcher = make(instances=2, one_device=True, device_s=HOUR, lead_s=HOUR - SOON)
    started = time.monotonic()
    first = await occupy(batcher, device)
    tasks = await queue(batcher, 1)
    await device.until_busy()  # while the first batch is still running
    assert time.monotonic() - started >= 0.9 * SOON
    device.gate.set()
    assert await marks_of([first, *tasks]) == [0, 1]


async def test_on_one_device_the_lead_time_depends_on_the_batch_size(make, device):
    batcher = make(instances=2, one_device=True, profile=EngineProfile([1, 2, 4], [HOUR] * 3, [0, HOUR, HOUR]))
    first = await occupy(batcher, device)
    tasks = await queue(batcher, 1)
    await settled()
    assert device.batches == [[0]]
    tasks += await queue(batcher, 2)
    await device.until_busy()
    device.gate.set()
    assert await marks_of([first, *tasks]) == [0, 1, 2]
    assert device.batches == [[0], [1, 2]]


async def test_on_one_device_a_full_batch_starts_at_once(make, device):
    batcher = make(instances=2, max_batch=2, one_device=True, device_s=HOUR)
    first = await occupy(batcher, device)
    tasks = await queue(batcher, 1, 2)
    await device.until_busy()
    device.gate.set()
    assert await marks_of([first, *tasks]) == [0, 1, 2]


async def test_on_one_device_a_full_batch_does_not_wait_behind_a_partial_batch_of_another_shape(make, device):
    batcher = make(instances=2, max_batch=2, one_device=True, device_s=HOUR)
    first = await occupy(batcher, device)
    wide = asyncio.create_task(batcher.submit(frame(9, (2, 4)), NEVER))
    tasks = await queue(batcher, 1, 2)
    await device.until_busy()
    assert (batcher.depth(), device.batches) == (1, [[0], [1, 2]])
    device.gate.set()
    assert await marks_of([first, wide, *tasks]) == [0, 9, 1, 2]


async def test_on_one_device_the_shape_with_the_earliest_start_time_starts_first(make, device):
    batcher = make(instances=2, one_device=True, profile=EngineProfile([1, 2, 4], [HOUR] * 3, [0, HOUR - SOON, 0]))
    first = await occupy(batcher, device)
    wide = asyncio.create_task(batcher.submit(frame(9, (2, 4)), NEVER))  # starts in an hour
    tasks = await queue(batcher, 1, 2)  # starts after SOON
    await device.until_busy()
    assert device.batches == [[0], [1, 2]]
    device.gate.set()
    assert await marks_of([first, wide, *tasks]) == [0, 9, 1, 2]


async def test_on_one_device_a_full_batch_behind_expired_jobs_of_another_shape_starts_at_once(make):
    device = GatedInstances()
    batcher = make(instances=2, max_batch=2, one_device=True, device_s=HOUR, on=device)
    held = await queue(batcher, 1, 2)
    await device.until_busy()
    held += await queue(batcher, 3, 4)
    await device.until_busy()
    now = asyncio.get_running_loop().time()
    late = [asyncio.create_task(batcher.submit(frame(9, (2, 4)), now)) for _ in range(2)]
    tasks = await queue(batcher, 5, 6, 7)
    device.gates[0].set()  # the other instance is still busy
    errors = await asyncio.wait_for(asyncio.gather(*late, return_exceptions=True), 10)
    assert [type(error) for error in errors] == [DeadlineExceeded] * 2
    assert await marks_of([*held[:2], *tasks[:2]]) == [1, 2, 5, 6]
    device.gates[1].set()
    assert await marks_of([*held[2:], *tasks[2:]]) == [3, 4, 7]
    assert batcher.alive


async def test_on_one_device_a_batch_waits_for_the_sum_of_the_batches_ahead(make, device):
    batcher = make(instances=3, max_batch=2, one_device=True, device_s=HOUR, lead_s=2 * HOUR - SOON)
    device.gate.clear()
    started = time.monotonic()
    tasks = []
    for marks in ([1, 2], [3, 4]):  # in sequence: each instance is a thread, and either could be first
        tasks += await queue(batcher, *marks)
        await device.until_busy()
    tasks += await queue(batcher, 5)
    await device.until_busy()
    assert time.monotonic() - started >= 0.9 * SOON
    device.gate.set()
    assert await marks_of(tasks) == [1, 2, 3, 4, 5]
    assert device.batches == [[1, 2], [3, 4], [5]]


async def test_on_one_device_a_batch_that_ended_early_delays_no_later_batch(make, device):
    batcher = make(instances=2, one_device=True, device_s=HOUR, lead_s=HOUR - SOON)
    await marks_of(await queue(batcher, 7))
    await device.until_busy()
    second = await occupy(batcher, device)
    tasks = await queue(batcher, 1)
    await device.until_busy()
    device.gate.set()
    assert await marks_of([second, *tasks]) == [0, 1]


async def test_on_one_device_a_batch_waits_longer_after_the_device_slowed_down(make, device):
    lead_s = HOUR * (1 + EMA_WEIGHT) - SOON
    batcher = make(instances=2, one_device=True, device_s=HOUR, lead_s=lead_s)
    device.seconds = 2 * HOUR  # the next batch is expected to take EMA_WEIGHT of the difference more
    await marks_of(await queue(batcher, 7))
    await device.until_busy()
    started = time.monotonic()
    first = await occupy(batcher, device)
    tasks = await queue(batcher, 1)
    await device.until_busy()
    assert time.monotonic() - started >= 0.9 * SOON
    device.gate.set()
    assert await marks_of([first, *tasks]) == [0, 1]


async def test_on_one_device_max_wait_limits_the_wait_too(make, device):
    batcher = make(instances=2, one_device=True, device_s=HOUR, lead_s=HOUR, max_wait_s=SOON)
    first = await occupy(batcher, device)
    started = time.monotonic()
    (second,) = await queue(batcher, 1)
    await device.until_busy()
    assert time.monotonic() - started >= 0.9 * SOON
    device.gate.set()
    assert await marks_of([first, second]) == [0, 1]


async def test_on_one_device_close_starts_a_partial_batch_at_once(make, device):
    metrics = Metrics()
    batcher = make(instances=2, one_device=True, device_s=HOUR, metrics=metrics)
    first = await occupy(batcher, device)
    tasks = await queue(batcher, 1)
    closing = asyncio.create_task(batcher.close())
    await device.until_busy()  # with the first batch still on the device
    device.gate.set()
    assert await marks_of([first, *tasks]) == [0, 1]
    await asyncio.wait_for(closing, 5)
    assert value(metrics, "batches_total", model="m", engine="fake", reason="drain") == 1


async def test_on_one_device_a_failed_batch_does_not_delay_the_next_batch(make, device, caplog):
    batcher = make(instances=2, one_device=True, device_s=HOUR)
    first = await occupy(batcher, device)
    tasks = await queue(batcher, 1)
    device.failure = RuntimeError("the device said no")
    with caplog.at_level(logging.CRITICAL):
        device.gate.set()
        errors = await asyncio.wait_for(asyncio.gather(first, *tasks, return_exceptions=True), 10)
    assert [type(error) for error in errors] == [InferenceFailed] * 2


async def test_on_one_device_expired_jobs_do_not_delay_the_next_job(make, device):
    batcher = make(instances=2, one_device=True, device_s=HOUR)
    first = await occupy(batcher, device)
    late = await queue(batcher, 1, deadline=asyncio.get_running_loop().time())
    device.gate.set()
    await first
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(late[0], 10)
    assert await marks_of(await queue(batcher, 2)) == [2]


async def test_instances_with_their_own_cores_do_not_wait_for_each_other(make, device):
    batcher = make(instances=2, one_device=False, device_s=HOUR)
    first = await occupy(batcher, device)
    tasks = await queue(batcher, 1)
    await device.until_busy()
    device.gate.set()
    assert await marks_of([first, *tasks]) == [0, 1]


# Low latency: no other batch runs, and no job waits.


@pytest.mark.parametrize("one_device", [False, True])
async def test_a_batch_that_runs_alone_has_low_latency(make, device, one_device):
    batcher = make(instances=2, one_device=one_device)
    await marks_of(await queue(batcher, 1, 2, 3))
    await marks_of(await queue(batcher, 4))
    assert (device.batches, device.low_latency) == ([[1, 2, 3], [4]], [True, True])


async def test_a_batch_beside_another_has_no_low_latency(make, device):
    batcher = make(instances=2)
    first = await occupy(batcher, device)
    tasks = await queue(batcher, 1)
    await device.until_busy()
    device.gate.set()
    await marks_of([first, *tasks])
    assert device.low_latency == [True, False]


async def test_only_the_last_batch_of_a_queue_has_low_latency(make, device):
    tasks = await queue(make(max_batch=2), 1, 2, 3)
    await marks_of(tasks)
    assert (device.batches, device.low_latency) == ([[1, 2], [3]], [False, True])


async def test_a_batch_has_no_low_latency_while_another_shape_waits(make, device):
    batcher = make()
    wide = asyncio.create_task(batcher.submit(frame(9, (2, 4)), NEVER))
    await marks_of([wide, *await queue(batcher, 1)])
    assert (device.batches, device.low_latency) == ([[9], [1]], [False, True])


async def test_the_batch_after_a_failed_one_has_low_latency_again(make, device, caplog):
    batcher = make(instances=2)
    device.failure = RuntimeError("the device said no")
    with caplog.at_level(logging.CRITICAL):
        await asyncio.gather(*await queue(batcher, 1), return_exceptions=True)
    device.failure = None
    await marks_of(await queue(batcher, 2))
    assert device.low_latency == [True, True]


# pace_s: the device seconds of one image, from the warm-up and from recent batches.


async def test_pace_s_starts_at_the_warm_up_measurement(make):
    assert make(max_batch=4, device_s=0.04).pace_s == pytest.approx(0.01)


@pytest.mark.parametrize("one_device", [False, True])
async def test_pace_s_follows_the_recent_batch_times(make, device, one_device):
    """With its own cores, an instance takes as long for a batch as all instances together for as many images each."""
    instances, device_s = 2, 0.04
    batcher = make(instances=instances, max_batch=2, one_device=one_device, device_s=device_s)
    device.seconds = 3 * device_s * (1 if one_device else instances)
    tasks = await queue(batcher, *range(6))  # none of the three has low latency, except the last one on one device
    await marks_of(tasks)
    counted_batches = 3 if one_device or device.low_latency == [False] * 3 else device.low_latency.count(False)
    slowdown = 3 - 2 * (1 - EMA_WEIGHT) ** counted_batches
    assert counted_batches >= 2
    assert batcher.pace_s == pytest.approx(slowdown * device_s / 2)


async def test_pace_s_recovers_after_a_slow_period(make, device):
    batcher = make(max_batch=1, one_device=True, device_s=0.04)
    for device.seconds, count in ((0.4, 20), (0.04, 200)):
        before = batcher.pace_s
        await marks_of(await queue(batcher, *range(count)))
        assert (batcher.pace_s > before) == (device.seconds > 0.04)
    assert batcher.pace_s == pytest.approx(0.04, rel=0.01)


async def test_a_low_latency_batch_on_all_cores_does_not_change_pace_s(make, device):
    batcher = make(instances=2, device_s=0.04)
    device.seconds = 0.01  # faster than an instance's share of the cores
    await marks_of(await queue(batcher, 1))
    assert (device.low_latency, batcher.pace_s) == ([True], pytest.approx(0.01))


async def test_a_low_latency_batch_on_one_device_changes_pace_s(make, device):
    batcher = make(instances=2, one_device=True, device_s=0.04)
    device.seconds = 0.08
    await marks_of(await queue(batcher, 1))
    assert (device.low_latency, batcher.pace_s) == ([True], pytest.approx(0.01 * (1 + EMA_WEIGHT)))


async def test_a_failed_batch_does_not_change_pace_s(make, device, caplog):
    batcher = make(one_device=True, device_s=0.04)
    device.failure, device.seconds = RuntimeError("the device said no"), 8.0
    with caplog.at_level(logging.CRITICAL):
        await asyncio.gather(*await queue(batcher, 1), return_exceptions=True)
    assert batcher.pace_s == pytest.approx(0.01)


async def test_batches_shorter_than_the_handling_time_do_not_count_as_slow(make, device):
    batcher = make(max_batch=1, one_device=True, device_s=1e-9)
    device.seconds = HANDLING_S
    await marks_of(await queue(batcher, 1))
    assert batcher.pace_s == pytest.approx(1e-9)


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics._registry.get_sample_value(f"yolopard_{name}", labels)
