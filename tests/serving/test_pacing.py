"""Large bodies take turns: so many pieces in one turn of the event loop, first come first served."""

import asyncio

from app.serving.pacing import PIECES, Pacing


def test_a_body_that_is_alone_never_waits_twice_in_a_turn():
    async def ask() -> int:
        pacing, turns = Pacing(), 0
        for _ in range(10):
            await pacing.piece()
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(ask()) == 10


def test_pieces_of_one_turn_are_few_and_come_in_the_order_they_were_asked_for():
    came: list[tuple[int, int]] = []

    async def body(pacing: Pacing, number: int, turn: list[int]) -> None:
        await pacing.piece()
        came.append((turn[0], number))

    async def ask() -> None:
        pacing, turn = Pacing(), [0]
        tasks = [asyncio.create_task(body(pacing, number, turn)) for number in range(3 * PIECES)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            turn[0] += 1

    asyncio.run(ask())
    assert [number for _, number in came] == list(range(3 * PIECES))
    turns = [turn for turn, _ in came]
    assert max(turns.count(turn) for turn in turns) == PIECES


def test_who_gave_up_waiting_takes_no_piece():
    async def ask() -> bool:
        pacing = Pacing()
        waiting = [asyncio.create_task(pacing.piece()) for _ in range(PIECES + 2)]
        await asyncio.sleep(0)
        waiting[PIECES].cancel()
        await asyncio.wait_for(waiting[-1], 5)
        return waiting[PIECES].cancelled()

    assert asyncio.run(ask())
