"""What we rely on in TRL 1.16, and what the adapter promises."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from deeprec.config import StageConfig
from deeprec.errors import PolicyError
from deeprec.policy import trl_adapter
from deeprec.policy.trl_adapter import PolicyGradientTrainer, newest_checkpoint, prompt_order, rate_share, train_grpo
from deeprec.types import Example, Trajectory

Make = Callable[..., Trajectory]
EXAMPLES = [Example(f"u{number}", ("i0",), "i1") for number in range(6)]
STAGE = StageConfig(
    steps=2, prompts_per_step=4, rollouts=4, sequences_per_update=8, micro_batch=4, learning_rate=1e-2, save_every=1
)
PROMPT = [5, 6]
ENVIRONMENT = 9
GOOD = 20


def bandit(model: Any, make: Make, keys: list[str], seed: int, parts: Sequence[str] = ("good",)) -> list[Trajectory]:
    """One sampled token, two tokens of the environment, one sampled token; reward 1 for each that is ``GOOD``."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for key in keys:
        ids, logprobs, mask = [], [], []
        for turn in range(2):
            with torch.no_grad():
                scores = model(torch.tensor([PROMPT + ids])).logits[0, -1].log_softmax(-1)
            token = int(torch.multinomial(scores.exp(), 1, generator=generator))
            ids.append(token)
            logprobs.append(float(scores[token]))
            mask.append(1)
            if turn == 0:
                ids += [ENVIRONMENT] * (2 + len(made) % 3)
                logprobs += [0.0] * (2 + len(made) % 3)
                mask += [0] * (2 + len(made) % 3)
        value = float(sum(token == GOOD for token, own in zip(ids, mask, strict=True) if own))
        made.append(make(key, PROMPT, ids, mask, dict.fromkeys(parts, (value, 1.0)), logprobs))
    return made


def run(model: Any, tokenizer: Any, make: Make, path: Path, stage: StageConfig = STAGE, **more: Any) -> Any:
    seen: list[list[str]] = []

    def roll(examples: Sequence[Example], step: int) -> list[Trajectory]:
        seen.append([example.key for example in examples])
        return bandit(model, make, seen[-1], seed=step)

    options = {"temperature": 1.0, "seed": 0, "checkpoints": path, "progress": lambda line: None} | more
    return train_grpo(model, tokenizer, EXAMPLES, roll, {"good": 1.0}, stage, **options), seen


def test_prompts_come_in_rows_of_a_group(model: Any, tokenizer: Any, trajectory: Make, tmp_path: Path) -> None:
    records, seen = run(model, tokenizer, trajectory, tmp_path)
    assert [len(keys) for keys in seen] == [16, 16]
    for keys in seen:
        groups = [keys[start : start + 4] for start in range(0, 16, 4)]
        assert all(len(set(group)) == 1 for group in groups)
        assert len({group[0] for group in groups}) == 4
    assert [record["step"] for record in records] == [1, 2]
    assert {"good", "reward", "mean_calls", "entropy", "loss", "zero_variance_groups"} <= records[0].keys()


def test_recomputed_log_probabilities_are_the_sampled_ones(
    model: Any, tokenizer: Any, trajectory: Make, tmp_path: Path
) -> None:
    records, _ = run(model, tokenizer, trajectory, tmp_path)
    assert records[0]["logprob_gap"] < 1e-4
    assert records[1]["logprob_gap"] < 1e-4


def test_the_reward_rises_on_a_bandit(model: Any, tokenizer: Any, trajectory: Make, tmp_path: Path) -> None:
    stage = STAGE.model_copy(update={"steps": 25, "save_every": 100})
    records, _ = run(model, tokenizer, trajectory, tmp_path, stage)
    assert records[0]["reward"] < 0.5
    assert records[-1]["reward"] > 1.5


def test_lengths_and_parts_reach_trl_unchanged(trajectory: Make) -> None:
    made = [
        trajectory("a@1", [1], [2, 3, 4], [1, 0, 1], {"format": (-1.0, 1.0), "listwise": (None, 1.0)}),
        trajectory("b@1", [1, 2], [], [], {"format": (0.0, 1.0), "other": (3.0, 0.0)}),
    ]
    output = trl_adapter.trl_output(made, {"format": 1.0, "listwise": 1.0}, eos_id=7)
    assert output["completion_ids"] == [[2, 3, 4], [7]]
    assert output["env_mask"] == [[1, 0, 1], [0]]
    assert [len(row) for row in output["logprobs"]] == [3, 1]
    assert output["reward_parts"] == [{"format": -1.0, "listwise": None}, {"format": 0.0}]


def capture(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every micro-batch as the loss sees it."""
    caught: list[dict[str, Any]] = []
    original = PolicyGradientTrainer._compute_loss

    def spy(self: Any, model: Any, inputs: dict[str, Any]) -> Any:
        caught.append(dict(inputs))
        return original(self, model, inputs)

    monkeypatch.setattr(PolicyGradientTrainer, "_compute_loss", spy)
    return caught


def test_an_advantage_is_the_reward_less_its_groups_mean_over_the_batchs_deviation(
    model: Any, tokenizer: Any, trajectory: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caught = capture(monkeypatch)
    rewards = [1.0, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0, None]
    other = [None, None, None, None, None, None, None, 3.0]

    def roll(examples: Sequence[Example], step: int) -> list[Trajectory]:
        return [
            trajectory(example.key, PROMPT, [30 + row, ENVIRONMENT], [1, 0], {"good": (reward, 1.0), "bad": (b, -1.0)})
            for row, (example, reward, b) in enumerate(zip(examples, rewards, other, strict=True))
        ]

    stage = StageConfig(steps=1, prompts_per_step=2, rollouts=4, sequences_per_update=8, micro_batch=8)
    train_grpo(
        model, tokenizer, EXAMPLES, roll, {"good": 1.0, "bad": -1.0}, stage,
        temperature=1.0, seed=0, checkpoints=tmp_path, progress=lambda line: None,
    )  # fmt: skip
    (batch,) = caught
    advantages = {int(ids[0]): float(a) for ids, a in zip(batch["completion_ids"], batch["advantages"], strict=True)}
    # Rewards 1 0 0 0 | 2 2 2 −3: means 0.25 and 0.75; squared deviations from 0.5 sum to 20, over 7 that is 2.857.
    deviation = (20 / 7) ** 0.5 + 1e-4
    expected = [0.75, -0.25, -0.25, -0.25, 1.25, 1.25, 1.25, -3.75]
    for row, value in enumerate(expected):
        assert advantages[30 + row] == pytest.approx(value / deviation, abs=1e-4)


def test_tokens_of_the_environment_get_no_gradient(
    model: Any, tokenizer: Any, trajectory: Make, tmp_path: Path
) -> None:
    """The gradient is that of the policy's own tokens alone, computed by hand."""
    start = copy.deepcopy(model)
    rows = [([20, ENVIRONMENT, 9, 21], 1.0), ([22, 9, ENVIRONMENT, 23], 0.0)]

    def roll(examples: Sequence[Example], step: int) -> list[Trajectory]:
        return [
            trajectory(example.key, PROMPT, ids, [1, 0, 0, 1], {"good": (reward, 1.0)})
            for example, (ids, reward) in zip(examples, rows, strict=True)
        ]

    gradients: dict[str, torch.Tensor] = {}

    class Spy(trl_adapter._CurvesCallback):
        def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
            gradients.update({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})

    original = trl_adapter._CurvesCallback
    trl_adapter._CurvesCallback = Spy  # type: ignore[misc]
    try:
        stage = StageConfig(steps=1, prompts_per_step=1, rollouts=2, sequences_per_update=2, micro_batch=2)
        train_grpo(
            model, tokenizer, EXAMPLES, roll, {"good": 1.0}, stage,
            temperature=1.0, seed=0, checkpoints=tmp_path, progress=lambda line: None,
        )  # fmt: skip
    finally:
        trl_adapter._CurvesCallback = original  # type: ignore[misc]

    deviation = 0.5**0.5 + 1e-4
    loss = torch.tensor(0.0)
    for (ids, _), advantage in zip(rows, (0.5 / deviation, -0.5 / deviation), strict=True):
        scores = start(torch.tensor([PROMPT + ids])).logits[0].log_softmax(-1)
        own = scores[1, ids[0]] + scores[4, ids[3]]
        loss = loss - advantage * own / 4
    loss.backward()
    norm = torch.sqrt(sum((p.grad**2).sum() for p in start.parameters()))  # type: ignore[arg-type]
    scale = min(1.0, 1.0 / (float(norm) + 1e-6))
    for name, parameter in start.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad * scale, rtol=1e-3, atol=1e-6)


def test_a_stage_that_was_cut_off_goes_on_from_its_checkpoint(
    model: Any, tokenizer: Any, trajectory: Make, tmp_path: Path
) -> None:
    whole, cut = copy.deepcopy(model), copy.deepcopy(model)
    stage = STAGE.model_copy(update={"steps": 4})
    expected, expected_keys = run(whole, tokenizer, trajectory, tmp_path / "whole", stage)

    class Killed(Exception):
        pass

    calls = 0

    def dying(examples: Sequence[Example], step: int) -> list[Trajectory]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Killed
        return bandit(cut, trajectory, [example.key for example in examples], seed=step)

    with pytest.raises(Killed):
        train_grpo(
            cut, tokenizer, EXAMPLES, dying, {"good": 1.0}, stage,
            temperature=1.0, seed=0, checkpoints=tmp_path / "cut", progress=lambda line: None,
        )  # fmt: skip
    last = newest_checkpoint(tmp_path / "cut")
    assert last is not None
    assert last.name == "checkpoint-4"
    done, nothing = run(whole, tokenizer, trajectory, tmp_path / "whole", stage)
    assert (done, nothing) == (expected, [])
    fresh = copy.deepcopy(model)
    records, keys = run(fresh, tokenizer, trajectory, tmp_path / "cut", stage)
    assert keys == expected_keys[2:]
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert [record["reward"] for record in records] == [record["reward"] for record in expected]
    assert json.loads((tmp_path / "cut" / "curves.json").read_text()) == records
    for left, right in zip(whole.parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


def test_scoring_own_tokens_alone_changes_no_number(model: Any) -> None:
    ids = torch.tensor([[0, 5, 6, 20, 9, 21], [4, 5, 6, 22, 23, 0]])
    attention = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    own = torch.tensor([[1, 0, 1], [1, 1, 0]], dtype=torch.bool)
    logps, entropies = trl_adapter._score_own(model, ids, attention, own, temperature=0.7)
    whole = (model(input_ids=ids, attention_mask=attention).logits / 0.7).log_softmax(-1)
    chosen = whole[:, 2:5].gather(2, ids[:, 3:, None]).squeeze(2)
    torch.testing.assert_close(logps, chosen * own)
    torch.testing.assert_close(entropies, -(whole.exp() * whole).sum(-1)[:, 2:5] * own)


def test_prompts_are_shuffled_passes_without_repeats_in_a_batch() -> None:
    order = prompt_order(EXAMPLES, steps=3, per_step=4, seed=1)
    assert len(order) == 12
    for start in range(0, 12, 4):
        assert len({example.key for example in order[start : start + 4]}) == 4
    assert order == prompt_order(EXAMPLES, steps=3, per_step=4, seed=1)
    assert order != prompt_order(EXAMPLES, steps=3, per_step=4, seed=2)
    assert len(prompt_order(EXAMPLES[:2], steps=2, per_step=3, seed=0)) == 6


def test_what_cannot_be_trained_is_refused(model: Any, tokenizer: Any, trajectory: Make, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"explore\.temperature is 0"):
        run(model, tokenizer, trajectory, tmp_path, temperature=0.0)
    for examples, weights, message in (([], {"good": 1.0}, "no prompt"), (EXAMPLES, {"good": 0.0}, "weight 0")):
        with pytest.raises(PolicyError, match=message):
            train_grpo(
                model, tokenizer, examples, lambda e, s: [], weights, STAGE,
                temperature=1.0, seed=0, checkpoints=tmp_path,
            )  # fmt: skip
    with pytest.raises(PolicyError, match="not theirs"):
        train_grpo(
            model, tokenizer, EXAMPLES, lambda e, s: [], {"good": 1.0}, STAGE,
            temperature=1.0, seed=0, checkpoints=tmp_path,
        )  # fmt: skip


def test_the_rate_rises_and_stays_or_falls_to_nothing() -> None:
    constant = [rate_share(update, 40, "constant") for update in range(40)]
    linear = [rate_share(update, 40, "linear") for update in range(40)]
    assert 0 < constant[0] < 1
    assert constant[10:] == [1.0] * 30
    assert linear[20] == pytest.approx(0.5)
    assert linear[39] == pytest.approx(1 / 40)
