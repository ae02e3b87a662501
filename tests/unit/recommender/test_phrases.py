"""Encoding free text: in time or left out, the client that took the least first, and nothing that nobody waits for."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import pytest

from deeprec.recommender import phrases as room
from deeprec.recommender.phrases import PhraseEncoder
from deeprec.recommender.worker.encoder import Away

SOON = 30.0
Result = TypeVar("Result")


class FakeEncoder:
    """Encodes when it is told to, and knows what it has encoded; a text takes ``seconds`` of a clock of its own."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.asked: deque[tuple[str, Future[float]]] = deque()
        self.available, self.closed, self.restarts = True, False, 0
        self.now, self.seconds = 1000.0, 0.1

    def knows(self, text: str) -> bool:
        return text == "known" or text in self.made

    def encode(self, text: str) -> Future[float]:
        assert not self.asked, "one at a time"
        future: Future[float] = Future()
        self.asked.append((text, future))
        return future

    async def loaded(self, timeout: float) -> None:
        pass

    def close(self) -> None:
        self.closed = True

    def finish(self, count: int = 1) -> None:
        """Encode what is asked, and what is asked after that, so many times at most."""
        while self.asked and count > 0:
            text, future = self.asked.popleft()
            count, self.now = count - 1, self.now + self.seconds
            if text == "broken":
                future.set_exception(Away("no vector"))
            else:
                self.made.append(text)
                future.set_result(self.seconds)


@pytest.fixture
def fake() -> FakeEncoder:
    return FakeEncoder()


@pytest.fixture
def encoder(fake: FakeEncoder) -> PhraseEncoder:
    return PhraseEncoder(fake, fake, share=0.2, clock=lambda: fake.now)


async def begun(work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
    """The work, once it waits."""
    task = asyncio.create_task(work)
    for _ in range(3):
        await asyncio.sleep(0)
    return task


def test_what_is_known_waits_for_nothing(encoder: PhraseEncoder, fake: FakeEncoder) -> None:
    assert asyncio.run(encoder.encode(("known",), "ann", 0.0)) == ("known",)
    assert asyncio.run(encoder.encode((), "ann", 0.0)) == ()
    fake.available = False
    assert asyncio.run(encoder.encode(("known",), "ann", 0.0)) == ("known",)
    assert (encoder.knows(["known"]), encoder.knows(["known", "new"])) == (True, False)


def test_what_is_not_encoded_in_time_is_left_out(encoder: PhraseEncoder, fake: FakeEncoder) -> None:
    async def run() -> None:
        began = time.monotonic()
        assert await encoder.encode(("known", "slow", "slower"), "ann", 0.1) == ("known",)
        assert time.monotonic() - began < 5
        fake.finish(9)
        new = await begun(encoder.encode(("new", "known"), "ann", SOON))
        fake.finish(9)
        assert await new == ("new", "known")

    asyncio.run(run())
    assert fake.made == ["slow", "new"], "nobody waited for the slower one any more"


def test_the_client_that_took_the_least_comes_first(encoder: PhraseEncoder, fake: FakeEncoder) -> None:
    async def run() -> None:
        asked = [await begun(encoder.encode(("first", "a1", "a2", "a3"), "ann", SOON))]
        asked.append(await begun(encoder.encode(("b1", "b2"), "bob", SOON)))
        asked.append(await begun(encoder.encode(("c1",), "cid", SOON)))
        fake.finish(9)
        await asyncio.gather(*asked)

    asyncio.run(run())
    assert fake.made[0] == "first"
    assert set(fake.made[1:3]) == {"b1", "c1"}, "before anything else of who has had a phrase encoded"
    assert fake.made[-1] == "a3"


def test_a_phrase_counts_when_it_begins(encoder: PhraseEncoder, fake: FakeEncoder) -> None:
    async def run() -> None:
        asked = [await begun(encoder.encode(("a long phrase " * 9, "a2"), "ann", SOON))]
        asked.append(await begun(encoder.encode(("b1", "b2", "b3"), "bob", SOON)))
        fake.finish(9)
        await asyncio.gather(*asked)

    fake.seconds = 0.0
    asyncio.run(run())
    fake.made.clear()
    fake.seconds = 0.01
    asyncio.run(run())
    assert fake.made.index("b1") < fake.made.index("a2")


def test_what_a_request_will_not_get_in_its_time_is_left_out_at_once(encoder: PhraseEncoder, fake: FakeEncoder) -> None:
    def texts(name: str) -> tuple[str, ...]:
        return tuple(f"{name}{number} " + "x" * 97 for number in range(9))

    async def run() -> None:
        first = await begun(encoder.encode(texts("a"), "ann", 0.2))
        began = time.monotonic()
        assert await encoder.encode(texts("b"), "ann", 0.2) == (), "those before take its time"
        assert time.monotonic() - began < 0.15
        other = await begun(encoder.encode(texts("c"), "bob", SOON))
        fake.finish(99)
        assert 3 <= len(await first) <= 5, "0.05 s each"
        assert len(await other) == 9

    fake.seconds = 100 * room._FIRST_GUESS
    asyncio.run(run())


def test_beside_others_a_client_has_its_share_and_alone_all(encoder: PhraseEncoder, fake: FakeEncoder) -> None:
    async def encode(client: str, *phrases: str) -> tuple[str, ...]:
        asked = await begun(encoder.encode(phrases, client, SOON))
        fake.finish(9)
        return await asked

    async def run() -> None:
        fake.seconds = 0.6
        assert await encode("ann", "a1") == ("a1",)
        assert await encode("ann", "a2") == ("a2",)
        assert await encode("ann", "a3") == ("a3",), "more than the share, but there is nobody else"
        assert await encode("bob", "b1") == ("b1",)
        assert await encode("ann", "a4", "a1") == ("a1",), "what is known is not refused"
        assert await encode("bob", "b2") == ("b2",)
        fake.now += 2 * room.MEMORY_SECONDS
        assert await encode("ann", "a5") == ("a5",), "it fades"

    asyncio.run(run())


def test_who_has_gone_is_not_encoded_for_and_takes_no_place(encoder: PhraseEncoder, fake: FakeEncoder) -> None:
    async def run() -> tuple[str, ...]:
        first = await begun(encoder.encode(("first",), "ann", SOON))
        kept = await begun(encoder.encode(("kept",), "ann", SOON))
        gone = await begun(encoder.encode(("gone", "too"), "ann", SOON))
        gone.cancel()
        await asyncio.sleep(0)
        after = await begun(encoder.encode(("after",), "ann", SOON))
        fake.finish(9)
        await asyncio.gather(first, kept)
        return await after

    assert asyncio.run(run()) == ("after",)
    assert fake.made == ["first", "kept", "after"]


def test_one_that_fails_is_left_out_and_the_next_is_not(encoder: PhraseEncoder, fake: FakeEncoder) -> None:
    async def run() -> tuple[str, ...]:
        asked = await begun(encoder.encode(("broken", "fine"), "ann", SOON))
        fake.finish(9)
        return await asked

    assert asyncio.run(run()) == ("fine",)


def test_without_an_encoder_nothing_waits(encoder: PhraseEncoder, fake: FakeEncoder) -> None:
    async def run() -> None:
        asked = await begun(encoder.encode(("broken", "two"), "ann", SOON))
        other = await begun(encoder.encode(("three",), "bob", SOON))
        fake.available = False
        fake.finish()
        assert (await asked, await other) == ((), ())
        assert await encoder.encode(("four", "known"), "ann", SOON) == ("known",)
        fake.available = True
        again = await begun(encoder.encode(("five",), "ann", SOON))
        fake.finish()
        assert await again == ("five",)

    asyncio.run(run())


def test_closing_leaves_out_what_waits(encoder: PhraseEncoder, fake: FakeEncoder) -> None:
    async def run() -> tuple[str, ...]:
        asked = await begun(encoder.encode(("one", "two"), "ann", SOON))
        encoder.close()
        assert await encoder.encode(("three",), "bob", SOON) == ()
        return await asked

    assert asyncio.run(run()) == ()
    assert fake.closed


def test_what_two_ask_for_is_encoded_once(encoder: PhraseEncoder, fake: FakeEncoder) -> None:
    async def run() -> None:
        asked = [await begun(encoder.encode(("same",), client, SOON)) for client in ("ann", "bob")]
        fake.finish(9)
        assert await asyncio.gather(*asked) == [("same",), ("same",)]

    asyncio.run(run())
    assert fake.made == ["same"]


def test_little_is_kept_of_clients_that_are_done(
    encoder: PhraseEncoder, fake: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MOST_CLIENTS", 20)

    async def run(ask: Callable[[int], tuple[str, str]]) -> None:
        for number in range(50):
            phrase, client = ask(number)
            asked = await begun(encoder.encode((phrase,), client, SOON))
            fake.finish()
            await asked

    asyncio.run(run(lambda number: (f"p{number}", f"client {number}")))
    assert not encoder._waiting
    assert len(encoder._taken) <= 20
