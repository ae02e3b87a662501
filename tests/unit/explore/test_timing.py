"""Where the clock says the seconds went, with seconds that only our fakes let pass; and what is done only once."""

from __future__ import annotations

import pytest

from deeprec.explore.rollout import rollout
from deeprec.explore.timing import RolloutClock
from deeprec.types import Example

BROAD = "<|begin_of_preference|>anything<|end_of_preference|>"
ANSWER = "</think>\n<recommendation_list>\n1. Film 4\n</recommendation_list>"


@pytest.fixture
def passing(monkeypatch):
    """``passing(thing, name, seconds)`` lets that much time pass in each call of the method."""
    now = [0.0]
    monkeypatch.setattr("deeprec.explore.timing.time.perf_counter", lambda: now[0])

    def slow(thing, name, seconds):
        method = getattr(thing, name)

        def slower(*arguments, **options):
            now[0] += seconds
            return method(*arguments, **options)

        monkeypatch.setattr(thing, name, slower)

    return slow


def test_seconds_are_told_apart(character_policy, retriever, titles, config, passing):
    policy = character_policy([[BROAD, ANSWER], [BROAD, BROAD, ANSWER], [ANSWER]])
    generation = type(policy.start([]))
    passing(policy, "start", 1)
    passing(generation, "generate", 20)
    passing(generation, "append", 300)
    passing(retriever, "retrieve", 4000)
    passing(policy, "decode", 50_000)
    passing(titles, "title", 600_000)
    clock = RolloutClock()
    examples = [Example(f"u{row}", ("i0", f"i{row + 1}"), "i9") for row in range(3)]
    rollout(policy, retriever, titles, examples, config, temperature=1.0, seed=0, clock=clock)
    assert clock.engine == 1 + 3 * 20 + 2 * 300
    assert clock.retrieval == 2 * 4000
    assert clock.parsing == 6 * 50_000
    assert clock.environment == clock.total - clock.engine - clock.retrieval - clock.parsing
    assert clock.environment > 0
    assert clock.environment % 600_000 == 0
    before = clock.total
    rollout(policy, retriever, titles, [], config, temperature=1.0, seed=0, clock=clock)
    assert clock.total == before


def test_a_text_of_a_batch_is_tokenised_once(character_policy, retriever, titles, config):
    """A group shares its prompt, and a list where its calls ask for the same."""
    policy = character_policy([[BROAD, ANSWER]] * 4)
    seen = []
    encode = policy.encode
    policy.encode = lambda text: seen.append(text) or encode(text)
    examples = [Example("u", ("i0", "i1"), "i9")] * 4
    found = rollout(policy, retriever, titles, examples, config, temperature=1.0, seed=0)
    assert len({trajectory.completion_ids for trajectory in found}) == 1
    texts = [text for text in seen if text.startswith("History:") or "item_list" in text]
    assert len(texts) == 2
    assert "item_list" in texts[1]
