"""Encoding free text: in time or left out, one client after another, and nothing that nobody waits for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from deeprec.recommender.phrases import PhraseEncoder
from deeprec.types import FloatArray

SOON = 30.0


class Vectors:
    """Makes a vector when it is let, and keeps it."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.go = threading.Semaphore(0)

    def knows(self, text: str) -> bool:
        return text == "known" or text in self.made

    def embed(self, texts: Sequence[str]) -> FloatArray:
        [text] = texts
        assert self.go.acquire(timeout=SOON)
        if text == "broken":
            raise RuntimeError("no vector")
        self.made.append(text)
        return np.zeros((1, 2), dtype=np.float32)


@pytest.fixture
def vectors() -> Vectors:
    return Vectors()


@pytest.fixture
def encoder(vectors: Vectors) -> Iterator[PhraseEncoder]:
    encoder = PhraseEncoder(vectors, most=3)
    yield encoder
    encoder.close()
    vectors.go.release(1000)


def test_what_is_known_waits_for_nothing(encoder: PhraseEncoder) -> None:
    assert asyncio.run(encoder.encode(("known",), "ann", 0.0)) == ("known",)
    assert asyncio.run(encoder.encode((), "ann", 0.0)) == ()


def test_what_is_not_encoded_in_time_is_left_out(encoder: PhraseEncoder, vectors: Vectors) -> None:
    began = time.monotonic()
    assert asyncio.run(encoder.encode(("known", "slow", "slower"), "ann", 0.1)) == ("known",)
    assert time.monotonic() - began < 5
    vectors.go.release(10)
    assert asyncio.run(encoder.encode(("new", "known"), "ann", SOON)) == ("new", "known")
    assert "slower" not in vectors.made, "nobody waited for it any more"


def test_clients_take_turns(encoder: PhraseEncoder, vectors: Vectors) -> None:
    async def run() -> None:
        asked = [asyncio.create_task(encoder.encode(("first", "a1", "a2"), "ann", SOON))]
        await asyncio.sleep(0.1)
        asked.append(asyncio.create_task(encoder.encode(("b1",), "bob", SOON)))
        asked.append(asyncio.create_task(encoder.encode(("c1",), "cid", SOON)))
        await asyncio.sleep(0.1)
        vectors.go.release(10)
        await asyncio.gather(*asked)

    asyncio.run(run())
    assert vectors.made[0] == "first"
    assert vectors.made.index("b1") < vectors.made.index("a2")
    assert vectors.made.index("c1") < vectors.made.index("a2")


def test_a_client_with_enough_waiting_is_given_no_more(encoder: PhraseEncoder, vectors: Vectors) -> None:
    async def run() -> tuple[tuple[str, ...], ...]:
        first = asyncio.create_task(encoder.encode(("first",), "ann", SOON))
        await asyncio.sleep(0.1)
        many = asyncio.create_task(encoder.encode(tuple(f"p{number}" for number in range(9)), "ann", SOON))
        await asyncio.sleep(0.1)
        more = await encoder.encode(("another",), "ann", SOON)
        vectors.go.release(20)
        await first
        return more, await encoder.encode(("other",), "bob", SOON), await many

    more, other, many = asyncio.run(run())
    assert more == ()
    assert other == ("other",)
    assert many == ("p0", "p1", "p2")


def test_a_client_that_took_much_time_waits_until_it_is_forgotten(vectors: Vectors) -> None:
    now = [1000.0]

    class Slow(Vectors):
        def embed(self, texts: Sequence[str]) -> FloatArray:
            now[0] += 0.3
            self.made += texts
            return np.zeros((1, 2), dtype=np.float32)

    encoder = PhraseEncoder(Slow(), most=24, share=0.1, clock=lambda: now[0])

    def encode(client: str, *phrases: str) -> tuple[str, ...]:
        return asyncio.run(encoder.encode(phrases, client, SOON))

    try:
        assert encode("ann", "a1") == ("a1",)
        assert encode("ann", "a2") == ("a2",), "0.3 of the 0.5 seconds"
        assert encode("ann", "a3", "a2") == ("a2",), "what is known is not refused"
        assert encode("bob", "b1") == ("b1",)
        now[0] += 5
        assert encode("ann", "a3") == ("a3",)
    finally:
        encoder.close()


def test_a_client_that_is_refused_while_its_turn_comes_holds_up_nobody(vectors: Vectors) -> None:
    now = [0.0]
    encoder = PhraseEncoder(vectors, most=24, share=0.1, clock=lambda: now[0])

    async def run() -> tuple[tuple[str, ...], ...]:
        first = asyncio.create_task(encoder.encode(("first",), "ann", SOON))
        await asyncio.sleep(0.1)
        given_up = await encoder.encode(("given up",), "bob", 0.05)
        encoder._charge("bob", 10.0)
        refused = await encoder.encode(("refused",), "bob", SOON)
        vectors.go.release(10)
        return given_up, refused, await first, await encoder.encode(("next",), "cid", SOON)

    try:
        assert asyncio.run(run()) == ((), (), ("first",), ("next",))
    finally:
        encoder.close()


def test_who_has_gone_is_not_encoded_for_and_takes_no_place(encoder: PhraseEncoder, vectors: Vectors) -> None:
    async def run() -> tuple[str, ...]:
        first = asyncio.create_task(encoder.encode(("first",), "ann", SOON))
        await asyncio.sleep(0.1)
        kept = asyncio.create_task(encoder.encode(("kept",), "ann", SOON))
        gone = asyncio.create_task(encoder.encode(("gone", "too"), "ann", SOON))
        await asyncio.sleep(0.1)
        gone.cancel()
        await asyncio.sleep(0.1)
        after = asyncio.create_task(encoder.encode(("after",), "ann", SOON))
        await asyncio.sleep(0.1)
        vectors.go.release(10)
        await asyncio.gather(first, kept)
        return await after

    assert asyncio.run(run()) == ("after",)
    assert vectors.made == ["first", "kept", "after"]


def test_one_that_fails_is_left_out_and_the_next_is_not(encoder: PhraseEncoder, vectors: Vectors) -> None:
    vectors.go.release(10)
    assert asyncio.run(encoder.encode(("broken", "fine"), "ann", SOON)) == ("fine",)


def test_closing_leaves_out_what_waits(encoder: PhraseEncoder, vectors: Vectors) -> None:
    async def run() -> tuple[str, ...]:
        asked = asyncio.create_task(encoder.encode(("one", "two"), "ann", 1.0))
        await asyncio.sleep(0.1)
        encoder.close()
        assert await encoder.encode(("three",), "bob", SOON) == ()
        return await asked

    assert asyncio.run(run()) == ()


def test_nothing_is_kept_of_clients_that_are_done(encoder: PhraseEncoder, vectors: Vectors) -> None:
    vectors.go.release(1000)

    async def run() -> None:
        for number in range(50):
            await encoder.encode((f"p{number}",), f"client {number}", SOON)

    asyncio.run(run())
    assert len(encoder._waiting) <= 1
    assert len(encoder._turns) <= 1
