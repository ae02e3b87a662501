"""Composition by stage: weights, unscored parts, batches."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deeprec.config import RewardsConfig, StageRewards
from deeprec.rewards.compose import Scorer
from deeprec.types import EndReason, RewardPart


@pytest.fixture
def scorer(explore, catalogue, embedder, vectors):
    def build(weights, **options):
        return Scorer(weights, RewardsConfig(**options), explore, catalogue, embedder, vectors)

    return build


def test_stage_1(make, scorer, embedder):
    stage = scorer(RewardsConfig().stage1)
    silent = make(calls=(), answer=(), end=EndReason.OUTSIDE_PROTOCOL)
    assert stage.score([make(), silent], ["a", "a"]) == [
        (
            RewardPart("format", 0.0, 1.0),
            RewardPart("interaction", 0.5, 1.0),
            RewardPart("diversity", pytest.approx(0.2), 1.0),
        ),
        (RewardPart("format", -1.0, 1.0), RewardPart("interaction", 0.0, 1.0), RewardPart("diversity", 0.0, 1.0)),
    ]
    assert len(embedder.requests) == 1


def test_stage_2(make, scorer, embedder):
    stage = scorer(RewardsConfig().stage2)
    valid, repeated = stage.score([make(), make(answer=("a", "a"))], ["c", "a"])
    # Answer a, c for target c: s_a = 0.4, s_c = 1, weights 1 and 1/4; rank 1 of k = 2.
    assert valid == (
        RewardPart("format", 0.0, 1.0),
        RewardPart("listwise", pytest.approx(1.2), 1.0),
        RewardPart("pointwise", pytest.approx(10 * (0.4 + 0.25) / 1.25), 1.0),
    )
    assert repeated == (
        RewardPart("format", -1.0, 1.0),
        RewardPart("listwise", None, 1.0),
        RewardPart("pointwise", None, 1.0),
    )
    assert embedder.requests == []
    assert replace(make(), rewards=valid).reward == pytest.approx(1.2 + 5.2)
    assert replace(make(), rewards=repeated).reward == -1.0


def test_the_references_format_accepts_repeats(make, scorer):
    parts = scorer(RewardsConfig().stage2, strict_format=False).score([make(answer=("a", "a"))], ["a"])[0]
    assert [part.value for part in parts] == [0.0, pytest.approx(1.4), pytest.approx(10.0)]


def test_parts_of_weight_zero_are_left_out_but_for_the_format(make, scorer):
    """Validity is read from it, whatever it weighs: by the health of a stage, by selection, by the gates."""
    stage = scorer(StageRewards(listwise=2.0, pointwise=0.0))
    valid, broken = RewardPart("format", 0.0, 0.0), RewardPart("format", -1.0, 0.0)
    assert stage.score([make()], ["a"]) == [(valid, RewardPart("listwise", pytest.approx(1.4), 2.0))]
    assert scorer(StageRewards()).score([make()], ["a"]) == [(valid,)]
    found = stage.score([make(answer=("a", "a"))], ["a"])
    assert found == [(broken, RewardPart("listwise", None, 2.0))]
    assert replace(make(), rewards=found[0]).reward == 0.0


def test_an_unknown_target_leaves_the_pointwise_part_unscored(make, scorer):
    parts = scorer(RewardsConfig().stage2).score([make()], ["gone"])[0]
    assert [part.value for part in parts] == [0.0, 0.0, None]


def test_diversity_may_be_scored_in_stage_2_as_well(make, scorer, embedder):
    """Weighted as configured, scored whether or not the format holds, and part of the sum."""
    stage = scorer(RewardsConfig().stage2.model_copy(update={"diversity": 2.0}))
    valid, broken = stage.score([make(), make(answer=("a", "a"))], ["c", "c"])
    assert [(part.name, part.weight) for part in valid] == [
        ("format", 1.0),
        ("diversity", 2.0),
        ("listwise", 1.0),
        ("pointwise", 1.0),
    ]
    assert [part.value for part in broken] == [-1.0, pytest.approx(0.2), None, None]
    assert replace(make(), rewards=valid).reward == pytest.approx(0.4 + 1.2 + 5.2)
    assert replace(make(), rewards=broken).reward == pytest.approx(-1.0 + 0.4)
    assert len(embedder.requests) == 1


def test_groups_of_a_batch_are_one_call_of_the_embedder(make, scorer, embedder):
    """Eight prompts with groups of eight, each phrase once."""
    calls = ((((), "ab"), (("comedy",), "cd")), ((("drama",), "ab"), (("dark comedy", "comedy"), "cd")))
    batch = [make(calls=calls[row % 2], key=f"u{row // 8}@3") for row in range(64)]
    scored = scorer(RewardsConfig().stage1).score(batch, ["a"] * 64)
    assert embedder.requests == [("anything", "comedy", "dark comedy", "drama")]
    assert scored[2:] == scored[:-2]


def test_the_weights_of_the_method():
    rewards = RewardsConfig()
    assert rewards.stage1 == StageRewards(format=1, interaction=1, diversity=1)
    assert rewards.stage2 == StageRewards(format=1, listwise=1, pointwise=1)
    assert rewards.strict_format


def test_nothing_to_score(scorer):
    assert scorer(RewardsConfig().stage1).score([], []) == []


@given(st.permutations(range(5)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
def test_a_permutation_of_a_group_permutes_its_rewards(make, scorer, order):
    group = [
        make(),
        make(answer=("c", "a")),
        make(answer=("a", "a")),
        make(calls=(((), "ac"),)),
        make(calls=((("comedy", "drama"), "ab"), (("dark comedy",), "ac"), (("drama",), "cd"))),
    ]
    targets = ["a", "c", "a", "b", "d"]
    stage = scorer(StageRewards(format=1.0, interaction=1.0, diversity=1.0, listwise=1.0, pointwise=1.0))
    plain = stage.score(group, targets)
    shuffled = stage.score([group[row] for row in order], [targets[row] for row in order])
    assert shuffled == [plain[row] for row in order]
