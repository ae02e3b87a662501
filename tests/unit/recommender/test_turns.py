"""Turns of the event loop: few go on in each, all go on in the end, and timers are heard between."""

from __future__ import annotations

import asyncio

from deeprec.recommender.turns import Turns


def test_few_go_on_in_one_turn_and_all_in_the_end() -> None:
    async def main() -> list[int]:
        turns, turn, went = Turns(3), [0], []

        async def count() -> None:
            while True:
                turn[0] += 1
                await asyncio.sleep(0)

        async def one() -> None:
            await turns.wait()
            went.append(turn[0])

        counting = asyncio.create_task(count())
        await asyncio.gather(*(one() for _ in range(20)))
        counting.cancel()
        return went

    went = asyncio.run(asyncio.wait_for(main(), 60))
    assert len(went) == 20
    assert max(went.count(turn) for turn in went) == 3


def test_one_alone_waits_for_nothing() -> None:
    async def main() -> int:
        turns, others = Turns(1), 0
        for _ in range(5):
            task = asyncio.create_task(asyncio.sleep(0))
            await turns.wait()
            others += task.done()
            await task
            await asyncio.sleep(0)
        return others

    assert asyncio.run(main()) == 0


def test_who_is_cancelled_keeps_no_place() -> None:
    async def main() -> None:
        turns = Turns(1)
        waiting = [asyncio.create_task(turns.wait()) for _ in range(4)]
        waiting[2].cancel()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(one) for one in ended].count(asyncio.CancelledError) == 1
        await asyncio.sleep(0)
        assert await asyncio.wait_for(turns.wait(), 5) is None

    asyncio.run(main())
