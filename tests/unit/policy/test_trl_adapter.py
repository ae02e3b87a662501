"""What we rely on in TRL 1.16, and what the adapter promises."""

from __future__ import annotations

import copy
import json
import math
import tomllib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from deeprec.config import HealthConfig, StageConfig
from deeprec.errors import PolicyError
from deeprec.policy import trl_adapter
from deeprec.policy.batches import own_logprobs
from deeprec.policy.trl_adapter import PolicyGradientTrainer, newest_checkpoint, prompt_order, rate_share, train_grpo
from deeprec.types import Example, Trajectory

Make = Callable[..., Trajectory]
EXAMPLES = [Example(f"u{number}", ("i0",), "i1") for number in range(6)]
STAGE = StageConfig(
    steps=2,
    prompts_per_step=4,
    rollouts=4,
    sequences_per_update=8,
    micro_batch=4,
    learning_rate=1e-2,
    save_every=1,
    health=HealthConfig(min_mean_calls=0),
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

    def roll(examples: Sequence[Example], step: int, engine: Any) -> list[Trajectory]:
        seen.append([example.key for example in examples])
        return bandit(model, make, seen[-1], seed=step)

    options = {"temperature": 1.0, "seed": 0, "checkpoints": path, "progress": lambda line: None} | more
    return train_grpo(model, tokenizer, EXAMPLES, roll, {"good": 1.0}, stage, **options), seen


def test_the_installed_trl_is_the_pinned_one() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"trl=={version('trl')}" in project["optional-dependencies"]["train"]


def test_prompts_come_in_order_and_in_rows_of_a_group(
    model: Any, tokenizer: Any, trajectory: Make, tmp_path: Path
) -> None:
    """The bandit samples from the model itself: recomputed log-probabilities are the sampled ones."""
    records, seen = run(model, tokenizer, trajectory, tmp_path)
    order = [example.key for example in prompt_order(EXAMPLES, steps=2, per_step=4, seed=0)]
    assert seen == [[key for key in order[start : start + 4] for _ in range(4)] for start in (0, 4)]
    assert [record["step"] for record in records] == [1, 2]
    assert {"good", "reward", "mean_calls", "entropy", "loss", "zero_variance_groups"} <= records[0].keys()
    assert all(record["logprob_gap"] < 1e-4 for record in records)
    assert 0 <= records[0]["kl"] < 1e-8


def test_the_reward_rises_and_the_loss_falls_on_a_bandit(
    model: Any, tokenizer: Any, trajectory: Make, tmp_path: Path
) -> None:
    def loss() -> float:
        """Cross-entropy of the rewarded token, in nats."""
        with torch.no_grad():
            return -float(model(torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)[GOOD])

    before = loss()
    stage = STAGE.model_copy(update={"steps": 25, "save_every": 100})
    records, _ = run(model, tokenizer, trajectory, tmp_path, stage)
    assert records[0]["reward"] < 0.5
    assert records[-1]["reward"] > 1.5
    assert before > 2.0
    assert loss() < before / 2
    assert records[-1]["kl"] > 0.5


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

    def roll(examples: Sequence[Example], step: int, engine: Any) -> list[Trajectory]:
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

    def roll(examples: Sequence[Example], step: int, engine: Any) -> list[Trajectory]:
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


def test_ids_masks_and_log_probabilities_reach_the_loss_as_they_were(
    model: Any, tokenizer: Any, trajectory: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are regrouped by length, and each keeps its own; what is padding has no loss."""
    caught = capture(monkeypatch)
    made: dict[int, Trajectory] = {}

    def roll(examples: Sequence[Example], step: int, engine: Any) -> list[Trajectory]:
        for row, example in enumerate(examples):
            listed = [ENVIRONMENT] * (7 * row % 5)
            ids, mask = [10 + row, *listed, 21], [1, *[0] * len(listed), 1]
            logprobs = [-0.1 * row, *[0.0] * len(listed), -1.0]
            prompt = PROMPT[: 1 + row % 2]
            made[10 + row] = trajectory(example.key, prompt, ids, mask, {"good": (float(row % 3), 1.0)}, logprobs)
        return list(made.values())

    stage = STAGE.model_copy(update={"steps": 1})
    train_grpo(
        model, tokenizer, EXAMPLES, roll, {"good": 1.0}, stage,
        temperature=1.0, seed=0, checkpoints=tmp_path, progress=lambda line: None,
    )  # fmt: skip
    assert [len(batch["completion_ids"]) for batch in caught] == [4, 4, 4, 4]
    rows = [{key: batch[key][row] for key in BATCH_KEYS} for batch in caught for row in range(4)]
    assert {int(row["completion_ids"][0]) for row in rows} == made.keys()
    for row in rows:
        expected = made[int(row["completion_ids"][0])]
        assert len({len(row[key]) for key in BATCH_KEYS if key.startswith(("completion", "tool", "sampling"))}) == 1
        length = int(row["completion_mask"].sum())
        assert tuple(row["completion_ids"][:length].tolist()) == expected.completion_ids
        assert tuple(row["tool_mask"][:length].tolist()) == expected.loss_mask
        torch.testing.assert_close(row["sampling_per_token_logps"][:length], torch.tensor(expected.logprobs))
        assert tuple(row["prompt_ids"][row["prompt_mask"].bool()].tolist()) == expected.prompt_ids


BATCH_KEYS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask", "sampling_per_token_logps")


@pytest.mark.parametrize("place", ["ids", "mask", "logprobs"])
def test_trajectories_of_unequal_parts_are_refused(
    model: Any, tokenizer: Any, trajectory: Make, tmp_path: Path, place: str
) -> None:
    parts = {"ids": [20, 21], "mask": [1, 1], "logprobs": [-1.0, -1.0]}
    parts[place] = parts[place][:1]

    def roll(examples: Sequence[Example], step: int, engine: Any) -> list[Trajectory]:
        return [
            trajectory(example.key, PROMPT, parts["ids"], parts["mask"], {"good": (1.0, 1.0)}, parts["logprobs"])
            for example in examples
        ]

    with pytest.raises(PolicyError, match="must be equally long"):
        train_grpo(
            model, tokenizer, EXAMPLES, roll, {"good": 1.0}, STAGE,
            temperature=1.0, seed=0, checkpoints=tmp_path, progress=lambda line: None,
        )  # fmt: skip


@pytest.mark.parametrize("path", ["ours", "trl"])
@pytest.mark.parametrize("masked", [True, False])
def test_the_gradient_at_tokens_of_the_environment_is_exactly_0(
    model: Any, tokenizer: Any, trajectory: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str,
    masked: bool,
) -> None:  # fmt: skip
    """Logits come from the last hidden states, place by place. Where the next token is the environment's their gradient
    is 0, in our own scoring and in TRL's; with the mask taken away it is not.
    """
    if path == "trl":
        scored = PolicyGradientTrainer._get_per_token_logps_and_entropies

        def whole(self: Any, *args: Any, **more: Any) -> Any:
            self.own_tokens = None
            return scored(self, *args, **more)

        monkeypatch.setattr(PolicyGradientTrainer, "_get_per_token_logps_and_entropies", whole)
    states: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(module: Any, args: Any, given: dict[str, Any], output: Any) -> None:
        if output.last_hidden_state.requires_grad:
            output.last_hidden_state.retain_grad()
            states.append((given["input_ids"], output.last_hidden_state))

    def roll(examples: Sequence[Example], step: int, engine: Any) -> list[Trajectory]:
        own = [0] if masked else [1]
        return [
            trajectory(
                example.key, PROMPT, [20 + row, ENVIRONMENT, ENVIRONMENT, 22], [1, *own, *own, 1],
                {"good": (float(row), 1.0)}, [-1.0] * 4,
            )
            for row, example in enumerate(examples)
        ]  # fmt: skip

    model.base_model.register_forward_hook(keep, with_kwargs=True)
    stage = StageConfig(steps=1, prompts_per_step=1, rollouts=2, sequences_per_update=2, micro_batch=2)
    train_grpo(
        model, tokenizer, EXAMPLES, roll, {"good": 1.0}, stage,
        temperature=1.0, seed=0, checkpoints=tmp_path, progress=lambda line: None,
    )  # fmt: skip
    ((ids, hidden),) = states
    assert hidden.grad is not None
    sizes = hidden.grad.abs().sum(dim=-1)[:, :-1]
    listed = ids[:, 1:] == ENVIRONMENT
    own = ids[:, 1:] >= 20
    assert (int(listed.sum()), int(own.sum())) == (4, 4)
    assert bool((sizes[own] > 0).all())
    assert bool((sizes[listed] == 0).all()) is masked
    assert bool((sizes[~listed & ~own] == 0).all())


def test_a_stage_that_was_cut_off_goes_on_from_its_checkpoint(
    model: Any, tokenizer: Any, trajectory: Make, tmp_path: Path
) -> None:
    whole, cut = copy.deepcopy(model), copy.deepcopy(model)
    stage = STAGE.model_copy(update={"steps": 4})
    expected, expected_keys = run(whole, tokenizer, trajectory, tmp_path / "whole", stage)

    class Killed(Exception):
        pass

    calls = 0

    def dying(examples: Sequence[Example], step: int, engine: Any) -> list[Trajectory]:
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
    logps, entropies = own_logprobs(model, ids, attention, own, temperature=0.7)
    whole = (model(input_ids=ids, attention_mask=attention).logits / 0.7).log_softmax(-1)
    chosen = whole[:, 2:5].gather(2, ids[:, 3:, None]).squeeze(2)
    torch.testing.assert_close(logps, chosen * own)
    torch.testing.assert_close(entropies, -(whole.exp() * whole).sum(-1)[:, 2:5] * own)


@pytest.mark.parametrize("whole", [False, True])
def test_held_tokens_are_scored_among_what_was_allowed(model: Any, whole: bool) -> None:
    ids = torch.tensor([[0, 5, 6, 20, 9, 21], [4, 5, 6, 22, 23, 0]])
    attention = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    own = torch.tensor([[1, 0, 1], [1, 1, 0]], dtype=torch.bool)
    free, spread = own_logprobs(model, ids, attention, own, temperature=0.7, whole=whole)
    allowed = [{2: {3: 0.0, 21: -1.5, 30: 0.5}, 1: {2: 0.0}}, {0: {22: -3.0}, 7: {1: 0.0, 2: 0.0}}]
    logps, entropies = own_logprobs(model, ids, attention, own, temperature=0.7, allowed=allowed, whole=whole)
    logits = model(input_ids=ids, attention_mask=attention).logits[0, 4, [3, 21, 30]]
    among = ((logits + torch.tensor([0.0, -1.5, 0.5])) / 0.7).log_softmax(-1)
    zero = torch.zeros(())
    expected = torch.stack([free[0, 0], zero, among[1], zero, free[1, 1], zero]).view(2, 3)
    torch.testing.assert_close(logps, expected)
    expected = torch.stack([spread[0, 0], zero, -(among.exp() * among).sum(), zero, spread[1, 1], zero]).view(2, 3)
    torch.testing.assert_close(entropies, expected)
    gradient = torch.autograd.grad(logps.sum(), list(model.parameters()), allow_unused=True)
    assert all(part is None or part.isfinite().all() for part in gradient)


def test_a_stage_scores_what_the_engine_was_held_to(
    model: Any, tokenizer: Any, trajectory: Make, tmp_path: Path
) -> None:
    """Two of the words are allowed at the last token; rewarded for one, the policy learns to choose it among them."""
    good, bad = 20, 21
    rules = {1: {good: -1.0, bad: 0.5}}
    choices, prior = list(rules[1]), torch.tensor(list(rules[1].values()))
    sampled: list[float] = []

    def roll(examples: Sequence[Example], step: int, engine: Any) -> list[Trajectory]:
        made = []
        for row, example in enumerate(examples):
            generator = torch.Generator().manual_seed(100 * step + row)
            with torch.no_grad():
                first = model(torch.tensor([[1, 2]])).logits[0, -1].log_softmax(-1)
                second = (model(torch.tensor([[1, 2, 5]])).logits[0, -1, choices] + prior).log_softmax(-1)
            choice = int(torch.multinomial(second.exp(), 1, generator=generator))
            sampled.append(float(second.exp()[0]))
            reward = {"good": (float(choices[choice] == good), 1.0)}
            logprobs = [float(first[5]), float(second[choice])]
            made.append(trajectory(example.key, [1, 2], [5, choices[choice]], [1, 1], reward, logprobs))
        return made

    stage = STAGE.model_copy(update={"steps": 6, "health": HealthConfig(min_mean_calls=0, min_valid_rate=0)})
    records = train_grpo(
        model, tokenizer, EXAMPLES, roll, {"good": 1.0}, stage,
        temperature=1.0, seed=0, checkpoints=tmp_path, allowed=lambda made: rules, progress=lambda line: None,
    )  # fmt: skip
    assert max(record["logprob_gap"] for record in records) < 1e-4
    divergences = [record["kl"] for record in records]
    assert 0 <= divergences[0] < 1e-8, "the policy is its start, when both are scored among what was allowed"
    assert all(math.isfinite(one) and one > 1e-6 for one in divergences[1:])
    assert sampled[-1] > sampled[0] + 0.1


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
                model, tokenizer, examples, lambda e, s, p: [], weights, STAGE,
                temperature=1.0, seed=0, checkpoints=tmp_path,
            )  # fmt: skip
    with pytest.raises(PolicyError, match="not theirs"):
        train_grpo(
            model, tokenizer, EXAMPLES, lambda e, s, p: [], {"good": 1.0}, STAGE,
            temperature=1.0, seed=0, checkpoints=tmp_path,
        )  # fmt: skip


def test_the_rate_rises_and_stays_or_falls_to_nothing() -> None:
    constant = [rate_share(update, 40, "constant") for update in range(40)]
    linear = [rate_share(update, 40, "linear") for update in range(40)]
    assert 0 < constant[0] < 1
    assert constant[10:] == [1.0] * 30
    assert linear[20] == pytest.approx(0.5)
    assert linear[39] == pytest.approx(1 / 40)
