"""Callers that share one call: what each is given, what a failure costs, and what has gone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from deeprec.errors import TrmError
from deeprec.recommender import batching
from deeprec.recommender.batching import Batcher, MicroBatcher, Overloaded
from deeprec.types import Query, RetrievedItem


class Gate:
    """A function of many that waits until it is let go, and remembers its batches."""

    def __init__(self, bad: Sequence[str] = ()) -> None:
        self.open, self.begun = threading.Event(), threading.Event()
        self.batches: list[list[str]] = []
        self.bad = set(bad)

    def __call__(self, asked: Sequence[str]) -> list[str]:
        self.batches.append(list(asked))
        self.begun.set()
        assert self.open.wait(30)
        if self.bad & set(asked):
            raise TrmError(f"bad: {', '.join(asked)}")
        return [one.upper() for one in asked]


async def while_one_runs(gate: Gate, gathering: MicroBatcher[str, str], *asked: str) -> list[str | BaseException]:
    """Ask for ``first``; once its batch runs, for the others; then let everything go."""
    first = asyncio.ensure_future(gathering.ask("first"))
    await asyncio.to_thread(gate.begun.wait, 30)
    others = [asyncio.ensure_future(gathering.ask(one)) for one in asked]
    await asyncio.sleep(0)
    gate.open.set()
    return await asyncio.gather(first, *others, return_exceptions=True)


def test_what_comes_while_a_batch_runs_is_the_next_batch() -> None:
    gate = Gate()
    gathering = MicroBatcher(gate, 2, "test")
    found = asyncio.run(while_one_runs(gate, gathering, "a", "b", "c"))
    assert found == ["FIRST", "A", "B", "C"]
    assert gate.batches == [["first"], ["a", "b"], ["c"]]
    assert asyncio.run(gathering.ask("again")) == "AGAIN", "from another event loop"
    gathering.close()


def test_one_that_fails_does_not_spoil_the_others_answers() -> None:
    gate = Gate(bad=["b"])
    gathering = MicroBatcher(gate, 8, "test")
    found = asyncio.run(while_one_runs(gate, gathering, "a", "b", "c"))
    assert found[:2] + found[3:] == ["FIRST", "A", "C"]
    assert str(found[2]) == "bad: b"
    assert gate.batches == [["first"], ["a", "b", "c"], ["a"], ["b"], ["c"]]
    gathering.close()


def test_a_batch_can_fail_as_a_whole() -> None:
    gate = Gate(bad=["b"])
    gathering = MicroBatcher(gate, 8, "test", alone=False)
    found = asyncio.run(while_one_runs(gate, gathering, "a", "b"))
    assert [str(one) for one in found] == ["FIRST", "bad: a, b", "bad: a, b"]
    assert gate.batches == [["first"], ["a", "b"]]
    gathering.close()


def test_a_caller_that_has_gone_is_left_out() -> None:
    gate = Gate()
    gathering = MicroBatcher(gate, 8, "test")

    async def leave() -> str:
        first = asyncio.ensure_future(gathering.ask("first"))
        await asyncio.to_thread(gate.begun.wait, 30)
        gone, stays = asyncio.ensure_future(gathering.ask("gone")), asyncio.ensure_future(gathering.ask("stays"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        gate.open.set()
        await first
        return await stays

    assert asyncio.run(leave()) == "STAYS"
    assert gate.batches == [["first"], ["stays"]]
    gathering.close()


def test_answers_that_are_too_few_are_an_error() -> None:
    gathering: MicroBatcher[str, str] = MicroBatcher(lambda asked: asked[1:], 8, "test")
    with pytest.raises(ValueError, match="shorter"):
        asyncio.run(gathering.ask("a"))
    gathering.close()


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "MOST_WAITING", 2)
    gate = Gate()
    gathering = MicroBatcher(gate, 8, "test")
    found = asyncio.run(while_one_runs(gate, gathering, "a", "b", "c"))
    assert found[:3] == ["FIRST", "A", "B"]
    assert isinstance(found[3], Overloaded)
    gathering.close()


def test_closing_answers_what_waits_and_takes_no_more() -> None:
    gate = Gate()
    gathering = MicroBatcher(gate, 8, "test")

    async def close() -> list[str]:
        first = asyncio.ensure_future(gathering.ask("first"))
        await asyncio.to_thread(gate.begun.wait, 30)
        waits = asyncio.ensure_future(gathering.ask("waits"))
        await asyncio.sleep(0)
        gathering.close()
        gathering.close()
        gate.open.set()
        return [await first, await waits]

    assert asyncio.run(close()) == ["FIRST", "WAITS"]
    with pytest.raises(Overloaded, match="shut down"):
        asyncio.run(gathering.ask("late"))


class Counting:
    """Items ``0, 1, …`` for everybody."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def retrieve(self, queries: Sequence[Query], k: int) -> list[tuple[RetrievedItem, ...]]:
        self.asked.append((len(queries), k))
        return [tuple(RetrievedItem(f"{query.history[0]}{rank}", 0.5) for rank in range(k)) for query in queries]


def test_each_gets_its_own_k() -> None:
    retriever = Counting()
    batcher = Batcher(retriever, 8)

    async def ask() -> list[tuple[RetrievedItem, ...]]:
        return await asyncio.gather(*(batcher.retrieve(Query((f"u{k}-",)), k) for k in (1, 3, 2)))

    found = asyncio.run(ask())
    assert [[item.item_id for item in items] for items in found] == [
        ["u1-0"],
        ["u3-0", "u3-1", "u3-2"],
        ["u2-0", "u2-1"],
    ]
    assert sum(count for count, _ in retriever.asked) == 3
    batcher.close()


def test_it_says_for_how_long_it_has_been_at_its_batch_and_what_waits() -> None:
    async def main() -> None:
        go = threading.Event()

        def work(asked: Sequence[int]) -> list[int]:
            go.wait(60)
            return list(asked)

        batcher = MicroBatcher(work, 1, "slow")
        assert (batcher.busy_seconds, batcher.waiting) == (0.0, 0)
        answers = [asyncio.ensure_future(batcher.ask(number)) for number in (1, 2, 3)]
        while batcher.busy_seconds < 0.05:
            await asyncio.sleep(0.01)
        assert batcher.waiting == 2
        go.set()
        assert await asyncio.gather(*answers) == [1, 2, 3]
        while batcher.busy_seconds:
            await asyncio.sleep(0.01)
        batcher.close()

    asyncio.run(asyncio.wait_for(main(), 60))
