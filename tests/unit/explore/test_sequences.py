"""Rows of engines that are handed whole sequences: seeds, limits, and what an engine may not return."""

from __future__ import annotations

import pytest

from deeprec.errors import PolicyError
from deeprec.explore.sequences import SequenceGeneration
from deeprec.types import Segment


def start(prompts, answers, *, seed=0, longest=0):
    """A generation whose engine returns ``answers`` one after the other; also the requests it was given."""
    given = []

    def complete(requests, stop_ids, temperature):
        given.append(list(requests))
        return [Segment(tuple(tokens), (-0.5,) * len(tokens)) for tokens in answers.pop(0)]

    return SequenceGeneration(prompts, seed, longest, complete), given


def generate(generation, rows, limit=5):
    return generation.generate(rows, stop_ids={9}, max_new_tokens=limit, temperature=1.0)


def test_the_engine_gets_whole_sequences_as_one_batch():
    generation, given = start([[1], [2, 3]], [[[4, 5], [6]], [[7]]])
    assert [segment.token_ids for segment in generate(generation, [1, 0])] == [(4, 5), (6,)]
    generation.append([1], [[8, 8]])
    generate(generation, [1])
    assert [[request.tokens for request in batch] for batch in given] == [[(2, 3), (1,)], [(2, 3, 4, 5, 8, 8)]]


def test_every_row_and_every_turn_draws_from_a_stream_of_its_own():
    def seeds(seed):
        generation, given = start([[1], [1], [1]], [[[2], [2], [2]]] * 2, seed=seed)
        for _ in range(2):
            generate(generation, [0, 1, 2])
        return [request.seed for batch in given for request in batch]

    assert len(set(seeds(4))) == 6
    assert all(0 <= one < 2**31 for one in seeds(4))
    assert seeds(4) == seeds(4)
    assert not set(seeds(4)) & set(seeds(5))
    assert set(seeds(None)) == {None}


def test_a_row_is_extended_as_far_as_the_engine_has_room():
    generation, given = start([[1] * 7, [1]], [[[2, 2], [2]], [[3]]], longest=10)
    generate(generation, [0, 1])
    assert [request.limit for request in given[0]] == [3, 5]
    generate(generation, [0])
    assert [request.limit for request in given[1]] == [1]
    with pytest.raises(PolicyError, match="a sequence has 10 tokens, and the engine takes 10"):
        generate(generation, [0])


def test_what_comes_after_a_stop_token_is_dropped():
    generation, given = start([[1]], [[[2, 9, 3]], [[4]]])
    [segment] = generate(generation, [0])
    assert segment == Segment((2, 9), (-0.5, -0.5))
    generate(generation, [0])
    assert given[1][0].tokens == (1, 2, 9)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([[2]], "was given 2 sequences and extended 1"),
        ([[2], []], "asked for 1 to 5 tokens and returned 0"),
        ([[2], [3] * 6], "asked for 1 to 5 tokens and returned 6"),
    ],
)
def test_an_engine_that_does_something_else_is_refused(answer, message):
    generation, _ = start([[1], [1]], [answer])
    with pytest.raises(PolicyError, match=message):
        generate(generation, [0, 1])
