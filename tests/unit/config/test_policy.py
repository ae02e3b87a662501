"""Sections of training at scale: what they accept, and one clear message for what contradicts itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deeprec.config import Config, load_config, parse_config
from deeprec.errors import ConfigError

PROFILES = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"parallel": {"strategy": "fsdp"}}, r"there is one process, and nothing to shard over; raise per_node"),
        ({"parallel": {"per_node": 0}}, r"policy\.parallel\.per_node: Input should be greater than 0"),
        ({"parallel": {"strategy": "zero3"}}, r"policy\.parallel\.strategy: Input should be 'ddp' or 'fsdp'"),
        (
            {"parallel": {"per_node": 8, "strategy": "fsdp"}, "lora": {"rank": 16}},
            r"lora\.rank is 16 and parallel\.strategy is 'fsdp'.*set parallel\.strategy to 'ddp', or lora\.rank to 0",
        ),
        ({"lora": {"rank": -1}}, r"policy\.lora\.rank: Input should be greater than or equal to 0"),
        ({"generation": {"engine": "server"}}, r"generation\.engine is 'server' and generation\.url is ''"),
        ({"generation": {"url": "http://a:1"}}, r"generation\.engine is 'trainer' and generation\.url is 'http://a:1'"),
        (
            {"parallel": {"nodes": 3, "per_node": 8}},
            r"policy\.stage1\.prompts_per_step is 128, which the 24 processes .* make it a multiple of 24",
        ),
        (
            {"parallel": {"per_node": 8}, "stage2": {"sequences_per_update": 4, "micro_batch": 4, "rollouts": 2}},
            r"policy\.stage2\.sequences_per_update is 4, which the 8 processes",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(policy: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"policy": policy}, "here")


def test_lists_weigh_in_held_answers_alone() -> None:
    with pytest.raises(ConfigError, match=r"list_weight is 0\.5, but answers are free.*set answers to 'retrieved'"):
        parse_config({"explore": {"list_weight": 0.5}}, "here")


def test_a_stage_without_steps_is_not_shared() -> None:
    idle = {"steps": 0}
    config = parse_config({"policy": {"parallel": {"per_node": 3}, "stage1": idle, "stage2": idle}}, "here")
    assert config.policy.parallel.processes == 3


def test_by_default_one_process_trains_all_weights_and_generates_itself() -> None:
    policy = Config().policy
    assert (policy.parallel.processes, policy.lora.rank, policy.generation.engine) == (1, 0, "trainer")


def test_the_7b_profile_has_the_methods_numbers() -> None:
    config = load_config(PROFILES / "qwen2.5-7b.yaml")
    explore, policy = config.explore, config.policy
    assert (explore.items_per_call, explore.answer_size, explore.max_calls) == (20, 10, 8)
    assert (explore.max_new_tokens, explore.max_context, explore.temperature) == (2048, 16384, 1.0)
    for stage, steps in ((policy.stage1, 20), (policy.stage2, 80)):
        assert (stage.steps, stage.prompts_per_step, stage.rollouts, stage.sequences_per_update) == (steps, 128, 8, 512)
        assert (stage.learning_rate, stage.clip, stage.kl, stage.schedule) == (1e-6, 0.2, 0.0, "constant")
        assert stage.health.kl_trajectories == 8
    assert policy.parallel.processes == 8
    assert config.rewards == Config().rewards
    assert config.pipeline.tasks["train-stage-1"].gpus == config.pipeline.tasks["train-stage-2"].gpus == 8


def test_a_stage_of_which_one_key_is_named_keeps_its_other_defaults() -> None:
    config = parse_config({"rewards": {"stage2": {"pointwise": 0}, "stage1": {"diversity": 0.5}}}, "here")
    assert config.rewards.stage2.model_dump() == {
        "format": 1, "interaction": 0, "diversity": 0, "listwise": 1, "pointwise": 0
    }  # fmt: skip
    assert config.rewards.stage1.model_dump() == {
        "format": 1, "interaction": 1, "diversity": 0.5, "listwise": 0, "pointwise": 0
    }  # fmt: skip
    assert parse_config({"policy": {"stage2": {"learning_rate": 1e-5}}}, "here").policy.stage2.steps == 80


def test_a_section_of_which_one_key_is_named_keeps_the_other_defaults_of_its_place() -> None:
    given = {"stage2": {"pointwise": 0}, "stage1": {"diversity": 0.5}}
    rewards = parse_config({"rewards": given}, "here").rewards
    assert [rewards.stage2.format, rewards.stage2.listwise, rewards.stage2.pointwise] == [1, 1, 0]
    assert [rewards.stage1.format, rewards.stage1.interaction, rewards.stage1.diversity] == [1, 1, 0.5]
    policy = parse_config({"policy": {"stage2": {"health": {"patience": 2}}}}, "here").policy
    assert (policy.stage2.steps, policy.stage2.health.patience) == (80, 2)
    assert policy.stage2.health.min_valid_rate == 0.02


@pytest.mark.parametrize("shares", [[], [0, 0.0]])
def test_shares_of_calls_from_which_none_can_be_drawn_are_refused(shares: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"call_shares is \[.*no number of calls can be drawn; give the shares"):
        parse_config({"policy": {"warm_start": {"call_shares": shares}}}, "here")


@pytest.mark.parametrize(
    ("warm_start", "asks"),
    [
        ({"judge": "histories"}, True),
        ({"judge": "histories", "histories": {"passes": 1}}, False),
        ({"judge": "histories", "trajectories": 0}, False),
        ({}, False),
    ],
)
def test_a_judge_asks_the_unlearnt_where_no_history_is_taught(warm_start: dict[str, Any], asks: bool) -> None:
    assert parse_config({"policy": {"warm_start": warm_start}}, "here").policy.warm_start.asks_the_unlearnt is asks
