"""Large bodies take turns: at most MAX_PIECES in one iteration of the event loop, first come first served."""

import asyncio

from app.serving.pacing import MAX_PIECES, Pacing


def test_a_single_body_gets_a_piece_in_every_iteration_of_the_event_loop():
    async def run() -> int:
        pacing, turns = Pacing(), 0
        for _ in range(10):
            await pacing.piece()
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(run()) == 10


def test_an_iteration_grants_at_most_max_pieces_in_the_order_of_requests():
    came: list[tuple[int, int]] = []

    async def body(pacing: Pacing, number: int, turn: list[int]) -> None:
        await pacing.piece()
        came.append((turn[0], number))

    async def run() -> None:
        pacing, turn = Pacing(), [0]
        tasks = [asyncio.create_task(body(pacing, number, turn)) for number in range(3 * MAX_PIECES)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            turn[0] += 1

    asyncio.run(run())
    assert [number for _, number in came] == list(range(3 * MAX_PIECES))
    turns = [turn for turn, _ in came]
    assert max(turns.count(turn) for turn in turns) == MAX_PIECES


def test_a_cancelled_waiter_takes_no_piece():
    async def run() -> bool:
        pacing = Pacing()
        waiting = [asyncio.create_task(pacing.piece()) for _ in range(MAX_PIECES + 2)]
        await asyncio.sleep(0)
        waiting[MAX_PIECES].cancel()
        await asyncio.wait_for(waiting[-1], 5)
        return waiting[MAX_PIECES].cancelled()

    assert asyncio.run(run())
