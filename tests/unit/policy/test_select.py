from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from deeprec.config import StageConfig
from deeprec.policy.select import Difficulty, split_stages
from deeprec.types import Example

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


@settings(deadline=None)
@given(
    shares=st.lists(st.tuples(SHARES, SHARES), min_size=2, max_size=40),
    steps=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    prompts=st.tuples(st.integers(1, 6), st.integers(1, 6)),
)
def test_stages_never_share_a_prompt_and_never_stay_empty(
    shares: list[tuple[float, float]], steps: tuple[int, int], prompts: tuple[int, int]
) -> None:
    first, second = split_stages(measured(*shares), stage(steps[0], prompts[0]), stage(steps[1], prompts[1]))
    assert not users(first) & users(second)
    assert first
    assert second
    assert len(first) <= max(steps[0], 1) * prompts[0]
    assert len(second) <= max(steps[1], 1) * prompts[1]
