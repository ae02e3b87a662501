from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from deeprec.config import WarmStartConfig
from deeprec.errors import PolicyError
from deeprec.policy.warm_start import SETTLED_RATE, _loss, _tensors, schedule, warm_start
from deeprec.types import Trajectory

Make = Callable[..., Trajectory]
CONFIG = WarmStartConfig(epochs=20, batch_size=4, learning_rate=1e-2)


def lessons(make: Make) -> list[Trajectory]:
    """Copy the prompt's item after an environment token; lengths differ."""
    return [
        make(f"u{row}@1", [1, 20 + row % 2], [5, 9, 9, 9, 20 + row % 2][: 5 + row % 2] + [7] * (row % 2),
             [1, 0, 0, 0, 1] + [1] * (row % 2), {})
        for row in range(16)
    ]  # fmt: skip


def test_it_learns_the_policys_tokens(model: Any, trajectory: Make) -> None:
    lines: list[str] = []
    curve = warm_start(model, lessons(trajectory), CONFIG, seed=0, progress=lines.append)
    assert curve[0]["loss"] > 2
    assert curve[-1]["loss"] < 0.3
    assert curve[-1]["accuracy"] > 0.9
    assert len(lines) == len(curve) >= 10


def test_the_loss_is_that_of_the_masked_tokens(model: Any, trajectory: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeprec.trm.training.has_bf16", lambda device: False)
    own = trajectory("u@1", [1, 2], [5, 9, 6], [1, 0, 1], {})
    short = trajectory("v@1", [1], [8], [1], {})
    ids, wanted = _tensors([own, short], "cpu")
    total, _, count = _loss(model, ids, wanted, ())
    assert count == 3
    whole = model(torch.tensor([[1, 2, 5, 9, 6]])).logits[0].log_softmax(-1)
    other = model(torch.tensor([[1, 8]])).logits[0].log_softmax(-1)
    torch.testing.assert_close(total, -(whole[1, 5] + whole[3, 6] + other[0, 8]))


def test_where_a_rule_held_the_loss_is_among_what_it_allowed(
    model: Any, trajectory: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deeprec.trm.training.has_bf16", lambda device: False)
    one = trajectory("u@1", [1, 2], [5, 9, 6, 7], [1, 0, 1, 1], {})
    ids, wanted = _tensors([one], "cpu")
    total, correct, count = _loss(model, ids, wanted, [{3: {6: -1.0, 20: 0.0, 21: 0.5}, 4: {7: 2.0}}])
    whole = model(torch.tensor([[1, 2, 5, 9, 6, 7]])).logits[0]
    among = (whole[3, [6, 20, 21]] + torch.tensor([-1.0, 0.0, 0.5])).log_softmax(-1)
    torch.testing.assert_close(total, -(whole[1].log_softmax(-1)[5] + among[0]))
    assert count == 3
    assert correct == 1 + int(among.argmax() == 0) + int(whole[1].argmax() == 5)


def test_what_was_allowed_is_found_by_its_place_in_the_completion(model: Any, trajectory: Make) -> None:
    made = [trajectory(f"u{row}@1", [1] * (1 + row % 3), [5, 20 + row % 2], [1, 1], {}) for row in range(12)]
    curve = warm_start(
        model,
        made,
        CONFIG,
        seed=0,
        progress=lambda line: None,
        allowed=[{0: {5: 0.0}, 1: {20: 0.0, 21: 0.0}} for _ in made],
    )
    assert curve[0]["loss"] < 0.5, "the first token is certain, the second one of two"


def test_what_is_rehearsed_is_learnt_beside_and_left_out_of_the_curve(model: Any, trajectory: Make) -> None:
    again = [trajectory(f"v{row}@1", [3, 20 + row % 2], [10 + row % 2], [1], {}) for row in range(320)]
    curve = warm_start(model, lessons(trajectory), CONFIG, seed=0, progress=lambda line: None, rehearsal=again)
    assert curve[-1]["step"] == 80 + 80
    with torch.no_grad():
        said = model.eval()(torch.tensor([[3, 20], [3, 21]])).logits[:, -1].argmax(-1)
    assert said.tolist() == [10, 11]
    draw = torch.Generator().manual_seed(0)
    noise = [
        trajectory(f"v{row}@1", [3], torch.randint(10, 18, (9,), generator=draw).tolist(), [1] * 9, {})
        for row in range(320)
    ]
    curve = warm_start(model, lessons(trajectory), CONFIG, seed=0, progress=lambda line: None, rehearsal=noise)
    assert curve[-1]["loss"] < 0.3, "nobody can foretell the noise"
    alone = warm_start(
        model, lessons(trajectory)[:4], CONFIG.model_copy(update={"epochs": 1}), 0, lambda line: None, rehearsal=noise
    )
    assert len(alone) == 1, "batches that only rehearse are no point of the curve"


def test_what_has_learnt_already_goes_on_at_half_the_rate(model: Any, trajectory: Make) -> None:
    config = CONFIG.model_copy(update={"epochs": 1, "batch_size": 16})
    twin, settled = copy.deepcopy(model), [model.model.norm.weight, model.model.embed_tokens.weight]
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    warm_start(twin, lessons(trajectory), config, seed=0, progress=lambda line: None)
    warm_start(model, lessons(trajectory), config, seed=0, progress=lambda line: None, settled=settled)
    moved = {name: weight.detach() - before[name] for name, weight in model.named_parameters()}
    free = {name: weight.detach() - before[name] for name, weight in twin.named_parameters()}
    for name, step in moved.items():
        share = SETTLED_RATE if name in ("model.norm.weight", "model.embed_tokens.weight") else 1.0
        torch.testing.assert_close(step, share * free[name], rtol=1e-3, atol=1e-7)


def test_the_same_seed_gives_the_same_weights(model: Any, trajectory: Make) -> None:
    twin = copy.deepcopy(model)
    config = CONFIG.model_copy(update={"epochs": 2})
    for one in (model, twin):
        warm_start(one, lessons(trajectory), config, seed=3, progress=lambda line: None)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_the_schedule_rises_and_falls() -> None:
    values = [schedule(step, 100) for step in range(1, 101)]
    assert values[0] == pytest.approx(0.05)
    assert values[19] == 1.0
    assert values[-1] == pytest.approx(0.0)
    assert values[19:] == sorted(values[19:], reverse=True)


def test_what_cannot_be_learnt_is_refused(model: Any, trajectory: Make) -> None:
    with pytest.raises(PolicyError, match="no scripted trajectory"):
        warm_start(model, [], CONFIG, seed=0)
    with pytest.raises(PolicyError, match="5001 tokens but the model reads 4096"):
        warm_start(model, [trajectory("u@1", [1], [2] * 5000, [1] * 5000, {})], CONFIG, seed=0)
