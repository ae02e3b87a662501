"""A stage that collapses under the real trainer stops, says why, and names the checkpoint to go back to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from deeprec.config import HealthConfig, StageConfig
from deeprec.errors import PolicyError
from deeprec.policy.trl_adapter import newest_checkpoint, train_grpo
from deeprec.types import Example, RewardPart, Trajectory
from tests.unit.policy import toy

Spoil = Callable[[Any, int, list[Trajectory]], list[Trajectory]]


def train(place: Path, stage: StageConfig, spoil: Spoil) -> list[int]:
    """Train the toy until it stops with an error; the steps that were rolled out (1-based)."""
    model, tokenizer = toy.build()
    steps: list[int] = []

    def roll(examples: Sequence[Example], step: int, engine: Any) -> list[Trajectory]:
        steps.append(step + 1)
        made = [toy.explore(model, example, row % stage.rollouts, step) for row, example in enumerate(examples)]
        return spoil(model, step + 1, made)

    train_grpo(
        model, tokenizer, toy.EXAMPLES, roll, {"format": 1.0, "good": 1.0}, stage,
        temperature=1.0, seed=0, checkpoints=place, progress=lambda line: steps.append(-1),
    )  # fmt: skip
    return [step for step in steps if step > 0]


def judged(made: list[Trajectory], format_value: float) -> list[Trajectory]:
    return [replace(one, rewards=(*one.rewards, RewardPart("format", format_value, 1.0))) for one in made]


def test_a_valid_share_that_falls_stops_the_stage(tmp_path: Path) -> None:
    """Valid in steps 1 to 3 and never again: two bad steps in a row are one too many."""

    def spoil(model: Any, step: int, made: list[Trajectory]) -> list[Trajectory]:
        return judged(made, 0.0 if step <= 3 else -1.0)

    health = HealthConfig(min_valid_rate=0.5, min_mean_calls=0, patience=2)
    stage = toy.STAGE.model_copy(update={"steps": 9, "health": health})
    with pytest.raises(PolicyError) as stopped:
        train(tmp_path, stage, spoil)
    message = str(stopped.value)
    assert "after step 5 valid_rate stayed below health.min_valid_rate = 0.5 for 2 steps" in message
    # Two updates make a step; the checkpoint after step 3 is still there, though one of an ill step was written since.
    assert f"the last healthy checkpoint is {tmp_path / 'checkpoint-6'}, after step 3" in message
    assert (tmp_path / "checkpoint-6" / "trainer_state.json").is_file()
    assert "learning_rate" in message


def test_calls_that_fall_stop_a_stage_before_its_first_checkpoint(tmp_path: Path) -> None:
    """The toy makes no call at all."""
    health = HealthConfig(min_mean_calls=0.5, patience=1)
    stage = toy.STAGE.model_copy(update={"steps": 4, "health": health})
    with pytest.raises(PolicyError, match=r"after step 1 mean_calls .* no checkpoint was written while it was healthy"):
        train(tmp_path, stage, lambda model, step, made: judged(made, 0.0))
    assert newest_checkpoint(tmp_path) is None


def test_log_probabilities_that_are_not_the_trainers_stop_the_stage(tmp_path: Path) -> None:
    """As from an engine whose weights are stale: every sampled token is reported a nat too likely."""

    def spoil(model: Any, step: int, made: list[Trajectory]) -> list[Trajectory]:
        wrong = [tuple(p + own for p, own in zip(one.logprobs, one.loss_mask, strict=True)) for one in made]
        return [replace(one, logprobs=logprobs) for one, logprobs in zip(judged(made, 0.0), wrong, strict=True)]

    stage = toy.STAGE.model_copy(update={"steps": 4, "health": HealthConfig(min_mean_calls=0, patience=2)})
    with pytest.raises(PolicyError, match=r"after step 2 logprob_gap stayed above health\.max_logprob_gap = 0\.5"):
        train(tmp_path, stage, spoil)


def test_log_probabilities_that_are_no_numbers_stop_the_stage_at_once(tmp_path: Path) -> None:
    """They would pass for no gap at all, as a mean that is not a number exceeds no bound."""

    def spoil(model: Any, step: int, made: list[Trajectory]) -> list[Trajectory]:
        if step == 2:
            made[3] = replace(made[3], logprobs=(float("nan"), *made[3].logprobs[1:]))
        return judged(made, 0.0)

    stage = toy.STAGE.model_copy(update={"steps": 4, "health": HealthConfig(min_mean_calls=0)})
    with pytest.raises(PolicyError, match="has a log-probability that is not a number"):
        train(tmp_path, stage, spoil)


def test_a_loss_that_is_not_a_number_stops_the_stage_at_once(tmp_path: Path) -> None:
    def spoil(model: Any, step: int, made: list[Trajectory]) -> list[Trajectory]:
        if step == 3:
            with torch.no_grad():
                model.get_output_embeddings().weight.fill_(float("nan"))
        return judged(made, 0.0)

    with pytest.raises(PolicyError) as stopped:
        train(tmp_path, toy.STAGE.model_copy(update={"steps": 4}), spoil)
    assert "the loss of step 3 is not a number" in str(stopped.value)
    assert f"the last healthy checkpoint is {tmp_path / 'checkpoint-4'}, after step 2" in str(stopped.value)


def test_a_healthy_stage_does_not_stop(tmp_path: Path) -> None:
    health = HealthConfig(min_valid_rate=0.5, min_mean_calls=0, patience=1)
    stage = toy.STAGE.model_copy(update={"steps": 2, "health": health})
    assert train(tmp_path, stage, lambda model, step, made: judged(made, 0.0)) == [1, 2]
