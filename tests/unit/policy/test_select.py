"""Prompts by difficulty, from shares made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeprec.config import ExploreConfig, StageConfig
from deeprec.policy.select import Difficulty, _difficulty, split_stages
from deeprec.types import Call, EndReason, Example, RetrievedItem, Trajectory

SHARES = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])


def stage(steps: int, prompts: int) -> StageConfig:
    return StageConfig(steps=steps, prompts_per_step=prompts, rollouts=2, sequences_per_update=2, micro_batch=2)


def measured(*shares: tuple[float, float]) -> list[Difficulty]:
    return [
        Difficulty(Example(f"u{row}", ("i",), "t"), valid, answered, answered)
        for row, (valid, answered) in enumerate(shares)
    ]


def users(chosen: list[Difficulty]) -> set[str]:
    return {one.example.user_id for one in chosen}


def test_sometimes_but_not_always_qualifies() -> None:
    rows = measured((0.5, 0), (1, 0.25), (0, 0), (1, 1), (0.25, 0), (1, 0.75))
    first, second = split_stages(rows, stage(1, 2), stage(1, 2))
    assert users(first) == {"u0", "u4"}
    assert users(second) == {"u1", "u5"}


def test_too_few_are_filled_up_to_a_batch_with_what_is_left() -> None:
    rows = measured((0.5, 0), (0, 0), (0, 0), (1, 0), (1, 0), (1, 0))
    first, second = split_stages(rows, stage(1, 3), stage(1, 3))
    assert first[0].example.user_id == "u0"
    assert (len(first), len(second)) == (3, 3)


def test_those_that_do_not_qualify_stay_out_when_enough_do() -> None:
    rows = measured(*[(1, 0.5)] * 10, *[(0.5, 0)] * 10, *[(1, 0)] * 40)
    first, second = split_stages(rows, stage(10, 2), stage(10, 2))
    assert users(second) == {f"u{row}" for row in range(10)}
    assert users(first) == {f"u{row}" for row in range(10, 20)}


def test_what_was_found_suits_stage_2_whatever_is_answered_of_it_when_so_configured() -> None:
    found = (1.0, 0.5, 0.25, 0.0, 1.0, 0.75)
    answered = (1.0, 0.0, 0.25, 0.0, 0.5, 0.75)
    rows = [
        Difficulty(Example(f"u{row}", ("i",), "t"), 1.0, *pair)
        for row, pair in enumerate(zip(answered, found, strict=True))
    ]
    _, second = split_stages(rows, stage(0, 1), stage(5, 1), "found")
    assert [one.example.user_id for one in second] == ["u0", "u1", "u4", "u5"], "in the order they were drawn"
    _, second = split_stages(rows, stage(0, 1), stage(3, 1), "found")
    assert len(second) == 3


def test_rollouts_without_a_call_do_not_say_that_a_target_cannot_be_found() -> None:
    example = Example("u", ("i",), "t")
    blank = Trajectory(example.key, "u", (), (), (), (), "", (), (), EndReason.ANSWERED)
    hit, miss = (Call("anything", (), (RetrievedItem(item, 1.0),)) for item in ("t", "x"))
    found, missed = replace(blank, calls=(miss, hit)), replace(blank, calls=(miss,))
    assert _difficulty(example, [blank, blank, found, found], ExploreConfig(), strict=True).found == 1.0
    assert _difficulty(example, [blank, missed, found, missed], ExploreConfig(), strict=True).found == pytest.approx(
        1 / 3
    )
    assert _difficulty(example, [blank, blank], ExploreConfig(), strict=True).found == 0.0


@settings(deadline=None)
@given(
    shares=st.lists(st.tuples(SHARES, SHARES), min_size=2, max_size=40),
    steps=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    prompts=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_stages_never_share_a_prompt_and_have_some_where_they_have_steps(
    shares: list[tuple[float, float]], steps: tuple[int, int], prompts: tuple[int, int]
) -> None:
    first, second = split_stages(measured(*shares), stage(steps[0], prompts[0]), stage(steps[1], prompts[1]))
    assert not users(first) & users(second)
    for chosen, count, size in zip((first, second), steps, prompts, strict=True):
        assert bool(chosen) == (count > 0)
        assert len(chosen) <= count * size


def test_a_stage_without_steps_leaves_all_prompts_to_the_other() -> None:
    rows = measured(*[(0.5, 0.5)] * 12)
    assert [len(chosen) for chosen in split_stages(rows, stage(0, 4), stage(3, 4))] == [0, 12]
    assert [len(chosen) for chosen in split_stages(rows, stage(0, 4), stage(0, 4))] == [0, 0]
