"""Turns of the event loop: little is done in each, all of it in the end."""

from __future__ import annotations

import asyncio
import time

from deeprec.recommender.turns import Turns


async def counted(turn: list[int]) -> None:
    while True:
        turn[0] += 1
        await asyncio.sleep(0)


def test_little_is_done_in_one_turn_and_all_in_the_end() -> None:
    async def main() -> list[int]:
        turns, turn, went = Turns(0.01), [0], []

        async def one() -> None:
            await turns.wait()
            went.append(turn[0])
            time.sleep(0.006)

        counting = asyncio.create_task(counted(turn))
        await asyncio.gather(*(one() for _ in range(20)))
        counting.cancel()
        return went

    went = asyncio.run(asyncio.wait_for(main(), 60))
    assert len(went) == 20
    assert max(went.count(turn) for turn in went) <= 2, "the third would begin after 12 of its 10 milliseconds"


def test_they_go_on_in_order_and_others_are_heard_between() -> None:
    async def main() -> tuple[list[int], int]:
        turns, turn, went = Turns(0.0), [0], []

        async def one(number: int) -> None:
            await turns.wait()
            went.append(number)

        counting = asyncio.create_task(counted(turn))
        tasks = [asyncio.create_task(one(number)) for number in range(500)]
        await asyncio.gather(*tasks)
        counting.cancel()
        return went, turn[0]

    went, turns = asyncio.run(asyncio.wait_for(main(), 60))
    assert went == list(range(500))
    assert turns >= 499, "one in each turn of the loop"


def test_what_takes_no_time_goes_on_at_once() -> None:
    async def main() -> set[int]:
        turns, turn, went = Turns(10.0), [0], set()

        async def one() -> None:
            await turns.wait()
            went.add(turn[0])

        counting = asyncio.create_task(counted(turn))
        await asyncio.gather(*(one() for _ in range(200)))
        counting.cancel()
        return went

    assert len(asyncio.run(main())) == 1


def test_who_is_cancelled_holds_up_nobody() -> None:
    async def main() -> list[object]:
        turns = Turns(0.0)
        waiting = [asyncio.create_task(turns.wait()) for _ in range(4)]
        waiting[2].cancel()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        return [*ended, await asyncio.wait_for(turns.wait(), 5)]

    ended = asyncio.run(main())
    assert [type(one) for one in ended].count(asyncio.CancelledError) == 1
    assert ended.count(None) == 4
