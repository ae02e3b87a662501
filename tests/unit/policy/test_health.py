"""When a stage stops, on curves made by hand; and how far a policy is from its start."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from deeprec.config import HealthConfig
from deeprec.policy.health import StartModel, collapse
from deeprec.types import JsonDict, Trajectory

Make = Callable[..., Trajectory]
HEALTH = HealthConfig(
    min_valid_rate=0.2, min_mean_calls=1.0, max_repeated_preferences=0.5, max_top_preference_share=0.4,
    max_logprob_gap=0.1, patience=3,
)  # fmt: skip
GOOD = {
    "valid_rate": 0.8, "mean_calls": 2.0, "repeated_preferences": 0.1, "top_preference_share": 0.1, "logprob_gap": 0.01,
}  # fmt: skip


def curve(name: str, values: list[float | None]) -> list[JsonDict]:
    """Records whose other figures are healthy."""
    return [{"step": step, **GOOD, name: value} for step, value in enumerate(values, start=1)]


@pytest.mark.parametrize(
    ("name", "good", "bad", "words"),
    [
        ("valid_rate", 0.2, 0.19, "valid_rate stayed below health.min_valid_rate = 0.2 for 3 steps"),
        ("mean_calls", 1.0, 0.9, "mean_calls stayed below health.min_mean_calls = 1 for 3 steps"),
        (
            "repeated_preferences", 0.5, 0.6,
            "repeated_preferences stayed above health.max_repeated_preferences = 0.5 for 3 steps",
        ),
        (
            "top_preference_share", 0.4, 0.5,
            "top_preference_share stayed above health.max_top_preference_share = 0.4 for 3 steps",
        ),
        ("logprob_gap", 0.1, 0.2, "logprob_gap stayed above health.max_logprob_gap = 0.1 for 3 steps"),
    ],
)  # fmt: skip
def test_each_bound_stops_when_it_is_broken_for_long_enough(name: str, good: float, bad: float, words: str) -> None:
    values: list[float | None] = [good, bad, good, bad, bad]
    assert collapse(curve(name, values), HEALTH) is None
    assert collapse(curve(name, [*values, good]), HEALTH) is None
    found = collapse(curve(name, [*values, bad]), HEALTH)
    assert found is not None
    assert found.reason.startswith(words)
    assert f"last {bad:.3g}, {bad:.3g}, {bad:.3g}" in found.reason
    assert found.healthy_steps == 3
    longer = collapse(curve(name, [*values, bad, bad]), HEALTH)
    assert longer is not None
    assert (longer.healthy_steps, "for 4 steps" in longer.reason) == (3, True)


def test_a_stage_that_never_was_healthy_has_no_healthy_step() -> None:
    found = collapse(curve("valid_rate", [0.0, 0.0, 0.0]), HEALTH)
    assert found is not None
    assert found.healthy_steps == 0


def test_different_bounds_broken_in_turn_do_not_add_up() -> None:
    records = curve("valid_rate", [0.0, 0.0, 0.8])
    records[2]["mean_calls"] = 0.0
    assert collapse(records, HEALTH) is None


def test_what_was_not_measured_breaks_nothing() -> None:
    assert collapse(curve("valid_rate", [None, None, None]), HEALTH) is None
    assert collapse([{"step": step} for step in range(1, 9)], HEALTH) is None


def test_bounds_can_be_switched_off() -> None:
    off = HealthConfig(min_valid_rate=0, min_mean_calls=0, max_repeated_preferences=1, max_logprob_gap=0, patience=1)
    worst = {"valid_rate": 0.0, "mean_calls": 0.0, "repeated_preferences": 1.0, "logprob_gap": 9.0}
    worst["top_preference_share"] = 1.0  # its bound is off unless it is set
    assert collapse([{"step": 1, **worst}], off) is None


def test_the_defaults_leave_a_weak_start_alone() -> None:
    """A tenth of the rollouts valid, hardly varied, for a whole stage."""
    weak = {"valid_rate": 0.1, "mean_calls": 0.5, "repeated_preferences": 0.9, "logprob_gap": 0.05}
    assert collapse([{"step": step, **weak} for step in range(1, 81)], HealthConfig()) is None


def test_the_divergence_is_the_k3_estimate_on_the_policys_own_tokens(model: Any, trajectory: Make) -> None:
    rows = [([5, 6], [20, 9, 21], [1, 0, 1], [-1.0, 0.0, -2.0]), ([7], [22, 23], [1, 1], [-0.5, -6.0])]
    made = [trajectory(f"u{row}@1", *given[:3], {}, given[3]) for row, given in enumerate(rows)]
    estimates = []
    for prompt, completion, mask, sampled in rows:
        with torch.no_grad():
            scores = (model(torch.tensor([prompt + completion])).logits[0] / 0.7).log_softmax(-1)
        for place, (token, own, now) in enumerate(zip(completion, mask, sampled, strict=True)):
            if own:
                ratio = float(scores[len(prompt) + place - 1, token]) - now
                estimates.append(math.exp(ratio) - 1 - ratio)
    start = StartModel(model, temperature=0.7, pad_id=0, most=8)
    assert start.divergence(made, model) == pytest.approx(sum(estimates) / 4, rel=1e-4)
    first = StartModel(model, temperature=0.7, pad_id=0, most=1)
    assert first.divergence(made, model) == pytest.approx(sum(estimates[:2]) / 2, rel=1e-4)
    assert start.divergence([trajectory("u@1", [5], [], [], {})], model) is None


def test_the_start_stays_what_it_was(model: Any, trajectory: Make) -> None:
    """It is a copy: training the policy does not move it, and it takes no gradient."""
    start = StartModel(model, temperature=1.0, pad_id=0, most=8)
    made = [trajectory("u@1", [5, 6], [20, 21], [1, 1], {}, [-1.0, -2.0])]
    before = start.divergence(made, model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert start.divergence(made, model) == before
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_start_kept_in_half_precision_measures_about_the_same(model: Any, trajectory: Make) -> None:
    """What a large policy can afford; the trained model stays what it is."""
    rows = [([5, 6], [20, 9, 21], [1, 0, 1], [-1.0, 0.0, -2.0]), ([7], [22, 23], [1, 1], [-0.5, -6.0])]
    made = [trajectory(f"u{row}@1", *given[:3], {}, given[3]) for row, given in enumerate(rows)]
    whole, half = (StartModel(model, temperature=0.7, pad_id=0, most=8, dtype=to) for to in (None, torch.bfloat16))
    assert half.divergence(made, model) == pytest.approx(whole.divergence(made, model), rel=0.05)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
