"""One engine for many callers: what shares a batch, what is shed, and what readiness means."""

from __future__ import annotations

import asyncio

import pytest

from deeprec.errors import PolicyError
from deeprec.recommender.batching import Overloaded
from deeprec.serving.completions.completer import Completer, Prompt
from tests.unit.serving.letters import EOS, LETTERS, LettersPolicy, eventually


@pytest.fixture
def policy():
    return LettersPolicy()


@pytest.fixture
def start(policy):
    """``start(**settings)``: a completer of the policy, which has written its first token."""
    made = []

    def start(**settings):
        made.append(Completer(policy, **{"batch": 8, "waiting": 20, "probe": 3600.0, **settings}))
        asyncio.run(made[-1].started())
        policy.reached.clear()
        del policy.widths[:]
        return made[-1]

    yield start
    policy.hold.set()
    for completer in made:
        completer.close()


def prompt(text, **settings):
    settings = {"limit": 3, "stop_ids": frozenset({EOS}), **settings}
    return Prompt(tuple(LETTERS.index(letter) for letter in text), **settings)


def spelled(written):
    return "".join(LETTERS[token] for token in written.token_ids)


async def behind_a_held_batch(completer, policy, *requests):
    """Results of requests that came, one after the other, while the engine was at the first of them."""
    policy.hold.clear()
    tasks = [asyncio.create_task(completer.complete([requests[0]]))]
    await asyncio.to_thread(policy.reached.wait, 20)
    for request in requests[1:]:
        tasks.append(asyncio.create_task(completer.complete([request])))
        await asyncio.sleep(0)
    policy.hold.set()
    return [spelled(one) for [one] in await asyncio.gather(*tasks)]


def test_what_comes_while_a_batch_runs_shares_the_next(start, policy):
    found = asyncio.run(behind_a_held_batch(start(), policy, *(prompt(letter) for letter in "abcd")))
    assert found == ["bcd", "cde", "def", "efg"]
    assert policy.calls == [["a"], ["b", "c", "d"]]


def test_a_batch_is_bounded_and_keeps_the_order(start, policy):
    found = asyncio.run(behind_a_held_batch(start(batch=2), policy, *(prompt(letter) for letter in "abcdef")))
    assert found == ["bcd", "cde", "def", "efg", "fgh", "ghi"]
    assert policy.calls == [["a"], ["b", "c"], ["d", "e"], ["f"]]


def test_only_prompts_that_are_alike_share_a_batch(start, policy):
    d = LETTERS.index("d")
    requests = [
        prompt("a"),
        prompt("b", limit=2),
        prompt("b", stop_ids=frozenset({EOS, d})),
        prompt("b", temperature=0.5),
        prompt("c", limit=2),
        prompt("c", temperature=0.5),
        prompt("c", temperature=0.5, seed=7),
        prompt("d", temperature=0.5, seed=7),
        prompt("e", limit=2, seed=9),
    ]
    found = asyncio.run(behind_a_held_batch(start(), policy, *requests))
    assert found == ["bcd", "cd", "cd", "cde", "de", "def", "def", "efg", "fg"]
    assert policy.calls == [["a"], ["b", "c", "e"], ["b"], ["b", "c"], ["c"], ["d"]]
    assert policy.seeds[-2:] == [7, 7]


def test_several_prompts_of_one_caller_and_where_each_stops(start, policy):
    completer = start()
    requests = [prompt("ax", limit=50), prompt("a", limit=50, stops=("mn", "l")), prompt("t", limit=50, stops=("x",))]
    first, second, third = asyncio.run(completer.complete(requests))
    assert (spelled(first), first.stop, first.logprobs) == ("yz_", EOS, (-0.5,) * 3)
    assert (spelled(second), second.stop) == ("bcdefghijkl", "l")
    assert (spelled(third), third.stop, len(third.logprobs)) == ("uvwx", "x", 4)
    [limited] = asyncio.run(completer.complete([prompt("a")]))
    assert (spelled(limited), limited.stop) == ("bcd", None)


def test_a_long_completion_is_written_in_parts(start, policy):
    completer = start()
    [written] = asyncio.run(completer.complete([prompt("a", limit=80, stop_ids=frozenset())]))
    assert len(written.token_ids) == 80
    assert policy.widths == [(1, 32), (1, 32), (1, 16)]


def test_a_stop_text_may_lie_across_parts(start):
    text = "".join(LETTERS[1 + place % 26] if place % 27 != 26 else "_" for place in range(80))[1:]
    assert text.startswith("bc")
    [written] = asyncio.run(start().complete([prompt("a", limit=70, stop_ids=frozenset(), stops=("____",))]))
    assert spelled(written) == "bcdefghijklmnopqrstuvwxyz____"
    [across] = asyncio.run(start().complete([prompt("a", limit=70, stop_ids=frozenset(), stops=("_" * 8,))]))
    assert (len(across.token_ids), across.stop) == (33, "_" * 8)


def test_a_full_queue_sheds_at_once_and_takes_again(start, policy):
    completer = start(waiting=2)

    async def run():
        policy.hold.clear()
        first = asyncio.create_task(completer.complete([prompt("a")]))
        await asyncio.to_thread(policy.reached.wait, 20)
        waiting = asyncio.create_task(completer.complete([prompt("b"), prompt("c")]))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="2 prompts wait for the policy, which takes 2"):
            await completer.complete([prompt("d")])
        policy.hold.set()
        await asyncio.gather(first, waiting)
        return await completer.complete([prompt("d"), prompt("e")])

    assert [spelled(one) for one in asyncio.run(run())] == ["efg", "fgh"]


def test_prompts_that_nobody_waits_for_are_dropped(start, policy):
    completer = start()

    async def run():
        policy.hold.clear()
        first = asyncio.create_task(completer.complete([prompt("a", limit=100, stop_ids=frozenset())]))
        await asyncio.to_thread(policy.reached.wait, 20)
        left = asyncio.create_task(completer.complete([prompt("b"), prompt("c")]))
        await asyncio.sleep(0)
        for task in (first, left):
            task.cancel()
        await asyncio.gather(first, left, return_exceptions=True)
        policy.hold.set()
        return await completer.complete([prompt("d")])

    assert spelled(asyncio.run(run())[0]) == "efg"
    assert policy.calls == [["a"], ["d"]]
    assert policy.widths[0] == (1, 32)
    assert policy.widths[1:] == [(1, 3)], "the rest of a completion is not written either"


def test_one_that_fails_does_not_spoil_the_others_of_its_batch(start, policy):
    completer = start()
    policy.broken = "x"

    async def run():
        requests = [completer.complete([prompt(text)]) for text in ("a", "xb", "c")]
        return await asyncio.gather(*requests, return_exceptions=True)

    first, failed, last = asyncio.run(run())
    assert (spelled(first[0]), spelled(last[0])) == ("bcd", "def")
    assert isinstance(failed, RuntimeError)
    assert completer.ready


def test_ready_means_that_a_token_was_written(policy):
    policy.hold.clear()
    completer = Completer(policy, batch=2, waiting=2)
    assert not completer.ready
    policy.hold.set()
    asyncio.run(completer.started())
    assert completer.ready
    completer.close()
    assert policy.closed
    assert not completer.ready
    with pytest.raises(Overloaded):
        asyncio.run(completer.complete([prompt("a")]))


def test_an_engine_that_never_writes_is_not_ready(policy):
    policy.broken = "_"
    completer = Completer(policy, batch=2, waiting=2)
    with pytest.raises(PolicyError, match="does not write"):
        asyncio.run(completer.started())
    assert not completer.ready
    completer.close()


def test_an_idle_engine_is_asked_again_and_again(start, policy):
    completer = start(probe=0.01)
    for broken in ("_", "", "_", ""):
        policy.broken = broken
        eventually(lambda broken=broken: completer.ready is not bool(broken))
        assert completer.ready is not bool(broken)


def test_a_stuck_engine_is_not_ready_until_it_goes_on(start, policy):
    completer = start(stuck=0.05)

    async def run():
        policy.hold.clear()
        task = asyncio.create_task(completer.complete([prompt("a")]))
        await asyncio.to_thread(policy.reached.wait, 20)
        await asyncio.to_thread(eventually, lambda: not completer.ready)
        policy.hold.set()
        await task

    asyncio.run(run())
    assert completer.ready


def test_closing_completes_what_waits(start, policy):
    completer = start()

    async def run():
        policy.hold.clear()
        tasks = [asyncio.create_task(completer.complete([prompt(letter)])) for letter in "ab"]
        await asyncio.to_thread(policy.reached.wait, 20)
        closing = asyncio.create_task(asyncio.to_thread(completer.close))
        await asyncio.sleep(0.05)
        policy.hold.set()
        await closing
        return await asyncio.gather(*tasks)

    assert [spelled(one) for [one] in asyncio.run(run())] == ["bcd", "cde"]
