"""The one place that imports TRL: a stage's policy gradient on trajectories that our own loop rolls out.

TRL 1.16 keeps the optimiser, the clipping, the checkpoints and the advantages; this adapter gives it trajectories
(token ids, loss masks, log-probabilities) through ``rollout_func`` and hands each reward part to a reward function of
its own. A prompt is passed to TRL as an example's key. Update rule: REINFORCE with the mean reward of a prompt's group
as baseline, advantages divided by the standard deviation of the whole batch's rewards, PPO clipping (method, section
4); a loss is a mean over the tokens the policy wrote, those of the environment have none. One process, one device.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from deeprec.config import StageConfig
from deeprec.errors import PolicyError
from deeprec.policy.curves import Curves
from deeprec.types import Example, JsonDict, Trajectory

WARM_UP = 0.05
"""Share of the updates over which the learning rate rises to its constant value."""

Roll = Callable[[Sequence[Example], int], Sequence[Trajectory]]
"""Examples (each repeated for its group) and the step (0-based) → scored trajectories, in order."""


def train_grpo(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    roll: Roll,
    weights: Mapping[str, float],
    stage: StageConfig,
    *,
    temperature: float,
    seed: int,
    checkpoints: Path,
    bf16: bool = False,
    gradient_checkpointing: bool = False,
    progress: Callable[[str], None] = print,
) -> list[JsonDict]:
    """Train ``model`` in place for ``stage.steps`` rollout batches and return their records.

    Args:
        model: a causal language model in float32; with ``stage.kl`` its ``name_or_path`` is the reference's directory.
        tokenizer: its tokenizer, with padding and end-of-text tokens.
        examples: the stage's prompts; their order and repetition follow from ``seed`` alone.
        roll: makes and scores trajectories with ``model``.
        weights: reward part → weight; parts of trajectories that are not named here are ignored.
        temperature: what ``roll`` samples with; TRL divides its logits by the same.
        checkpoints: directory written every ``stage.save_every`` rollout batches; the newest one there is resumed.
        bf16: run the updates in bfloat16 autocast (CUDA).

    Raises:
        PolicyError: no prompt, a temperature of 0, or trajectories that do not fit what was asked.
    """
    if not examples:
        raise PolicyError("no prompt was selected for this stage; raise policy.select.candidates or set steps to 0")
    if temperature <= 0:
        raise PolicyError(f"explore.temperature is {temperature}, but training needs to sample; set it above 0")
    if not any(weights.values()):
        raise PolicyError("every reward part of this stage has weight 0; give one a weight in the rewards section")
    checkpoints.mkdir(parents=True, exist_ok=True)
    curves = Curves(checkpoints / "curves.json", weights, stage.rollouts, progress)
    config = _trl_config(stage, weights, temperature, seed, checkpoints, bf16, gradient_checkpointing)
    order = prompt_order(examples, stage.steps, stage.prompts_per_step, seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*rollout_func.*experimental.*")
        trainer = PolicyGradientTrainer(
            model=model,
            args=config,
            processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": [example.key for example in order]}),
            reward_funcs=[_reward_function(name) for name in weights],
            rollout_func=_rollout_function({example.key: example for example in examples}, roll, weights, curves),
            callbacks=[_CurvesCallback(curves)],
        )
    trainer.curves = curves
    trainer.schedule = stage.schedule
    trainer.remove_callback(PrinterCallback)
    last = newest_checkpoint(checkpoints)
    if last is not None:
        done = int(last.name.rpartition("-")[2]) // trainer.updates
        curves.resume(done)
        progress(f"resuming after step {done} from {last}")
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    return curves.records


def newest_checkpoint(checkpoints: Path) -> Path | None:
    """The whole checkpoint with the most updates, or None. One without its trainer state was cut off and is skipped."""
    whole = [path for path in checkpoints.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def prompt_order(examples: Sequence[Example], steps: int, per_step: int, seed: int) -> list[Example]:
    """``steps × per_step`` examples: shuffled passes, each cut to whole batches so that a batch holds no prompt twice.

    With fewer examples than ``per_step`` a batch repeats them.
    """
    generator = np.random.default_rng(seed)
    order: list[Example] = []
    while len(order) < steps * per_step:
        turn = [examples[index] for index in generator.permutation(len(examples))]
        repeated = (turn * math.ceil(per_step / len(turn)))[:per_step]
        order += turn[: len(turn) // per_step * per_step] or repeated
    return order[: steps * per_step]


def rate_share(update: int, updates: int, schedule: str) -> float:
    """Share of the learning rate at ``update`` (0-based): the rise over ``WARM_UP``, times what ``schedule`` leaves."""
    rise = min(1.0, (update + 1) / (math.ceil(updates * WARM_UP) + 1))
    return rise * (1 - update / updates) if schedule == "linear" else rise


class PolicyGradientTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's trainer, with less padding and with the gap between sampled and recomputed log-probabilities.

    Micro-batches of one update are regrouped by length, and each is cut to its own longest prompt and completion: sums
    over an update are what they were, the padded work is not done. On a CPU, where TRL computes logits at every
    position, they are computed for the policy's own tokens alone.
    """

    lr_scheduler: Any
    _buffered_inputs: Any
    curves: Curves | None = None
    own_tokens: torch.Tensor | None = None
    schedule: str = "constant"
    """(batch, completion) bool, of the sequences that are scored next: written by the policy."""
    _log_probabilities: torch.Tensor | None = None

    @property
    def updates(self) -> int:
        """Optimiser updates in one rollout batch."""
        return int(self.args.steps_per_generation // self.args.gradient_accumulation_steps)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """A linear rise whose first value is not 0, so that the first update counts; then constant, or down to 0."""
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda update: rate_share(update, num_training_steps, self.schedule)
            )
        return self.lr_scheduler

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is before:
            return inputs
        width = self.args.gradient_accumulation_steps
        self._buffered_inputs = [
            batch
            for start in range(0, len(self._buffered_inputs), width)
            for batch in _by_length(self._buffered_inputs[start : start + width])
        ]
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, batch_size: int | None = None,
        compute_entropy: bool = False, **more: Any,
    ) -> tuple[Any, Any, Any]:  # fmt: skip
        own = self.own_tokens
        if input_ids.device.type == "cuda" or own is None or own.shape != (len(input_ids), logits_to_keep):
            more |= {"batch_size": batch_size, "compute_entropy": compute_entropy}
            result = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, **more
            )
        else:
            size = batch_size or len(input_ids)
            parts = zip(*(rows.split(size) for rows in (input_ids, attention_mask, own)), strict=True)
            scored = [_score_own(model, *part, temperature=self.temperature) for part in parts]
            logps, entropies = (torch.cat(rows) for rows in zip(*scored, strict=True))
            result = (logps, entropies if compute_entropy else None, None)
        self._log_probabilities = result[0].detach()
        return result[0], result[1], result[2]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        inputs = _trim(inputs)
        self.own_tokens = mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
        loss = super()._compute_loss(model, inputs)
        if self.curves is not None and self.state.global_step % self.updates == 0:
            gap = (self._log_probabilities - inputs["sampling_per_token_logps"]).abs()[mask]  # type: ignore[operator]
            if gap.numel():
                self.curves.measured["logprob_gap"].append(gap.mean().item())
        return loss


class _CurvesCallback(TrainerCallback):  # type: ignore[misc]
    def __init__(self, curves: Curves) -> None:
        self.curves = curves

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "train_runtime" in logs:
            return
        self.curves.updated(logs)
        if state.global_step % (args.steps_per_generation // args.gradient_accumulation_steps) == 0:
            self.curves.finish()


def _trl_config(
    stage: StageConfig,
    weights: Mapping[str, float],
    temperature: float,
    seed: int,
    checkpoints: Path,
    bf16: bool,
    gradient_checkpointing: bool,
) -> GRPOConfig:
    batch = stage.prompts_per_step * stage.rollouts
    updates = batch // stage.sequences_per_update
    config = GRPOConfig(
        output_dir=str(checkpoints),
        use_cpu=not torch.cuda.is_available(),
        bf16=bf16 and torch.cuda.is_available(),
        seed=seed,
        max_steps=stage.steps * updates,
        per_device_train_batch_size=stage.micro_batch,
        gradient_accumulation_steps=stage.sequences_per_update // stage.micro_batch,
        steps_per_generation=batch // stage.micro_batch,
        num_generations=stage.rollouts,
        num_iterations=1,
        shuffle_dataset=False,
        learning_rate=stage.learning_rate,
        reward_weights=list(weights.values()),
        scale_rewards="batch",
        loss_type="dapo",
        beta=stage.kl,
        epsilon=stage.clip,
        temperature=temperature,
        top_p=1.0,
        max_completion_length=None,
        mask_truncated_completions=False,
        pad_to_multiple_of=None,
        gradient_checkpointing=gradient_checkpointing,
        use_vllm=False,
        dataloader_pin_memory=False,
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
        save_strategy="steps",
        save_steps=stage.save_every * updates,
        save_total_limit=2,
    )
    config.report_to = []
    return config


def _reward_function(name: str) -> Callable[..., list[float | None]]:
    def read(reward_parts: Sequence[Mapping[str, float | None]], **_: Any) -> list[float | None]:
        return [parts.get(name) for parts in reward_parts]

    read.__name__ = name
    return read


def _rollout_function(
    examples: Mapping[str, Example], roll: Roll, weights: Mapping[str, float], curves: Curves
) -> Callable[[list[str], Any], dict[str, Any]]:
    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        step = trainer.state.global_step // trainer.updates
        started = time.perf_counter()
        training = trainer.model.training
        trainer.model.eval()
        try:
            trajectories = roll([examples[key] for key in prompts], step)
        finally:
            trainer.model.train(training)
        _check(prompts, trajectories)
        curves.rolled_out(step + 1, trajectories, time.perf_counter() - started)
        output = trl_output(trajectories, weights, trainer.processing_class.eos_token_id)
        rows = [torch.tensor(mask, dtype=torch.bool) for mask in output["env_mask"]]
        trainer.own_tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return output

    return rollout


def trl_output(trajectories: Sequence[Trajectory], weights: Mapping[str, float], eos_id: int) -> dict[str, Any]:
    """What TRL's ``rollout_func`` returns. A completion without tokens becomes one masked end-of-text token."""
    empty = ([eos_id], [0], [0.0])
    rows = [
        (list(t.completion_ids), list(t.loss_mask), list(t.logprobs)) if t.completion_ids else empty
        for t in trajectories
    ]
    return {
        "prompt_ids": [list(trajectory.prompt_ids) for trajectory in trajectories],
        "completion_ids": [ids for ids, _, _ in rows],
        "env_mask": [mask for _, mask, _ in rows],
        "logprobs": [logprobs for _, _, logprobs in rows],
        "reward_parts": [
            {part.name: part.value for part in trajectory.rewards if part.name in weights}
            for trajectory in trajectories
        ],
    }


def _score_own(
    model: Any, ids: torch.Tensor, attention: torch.Tensor, own: torch.Tensor, *, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies (without gradient) of the policy's own completion tokens, 0 elsewhere.

    ``ids`` and ``attention`` (batch, P + C), ``own`` (batch, C); both results (batch, C) in nats.
    """
    width = own.shape[1]
    hidden = model.base_model(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state
    logits = model.get_output_embeddings()(hidden[:, -width - 1 : -1][own]).float() / temperature
    logps = logits.log_softmax(dim=-1)
    chosen = logps.gather(1, ids[:, -width:][own][:, None]).squeeze(1)
    spread = -(logps.detach().exp() * logps.detach()).sum(dim=-1)
    empty = chosen.new_zeros(own.shape)
    return empty.masked_scatter(own, chosen), empty.masked_scatter(own, spread)


def _check(prompts: Sequence[str], trajectories: Sequence[Trajectory]) -> None:
    if [trajectory.example_key for trajectory in trajectories] != list(prompts):
        raise PolicyError(
            f"{len(prompts)} rollouts were asked for, but the trajectories that came back are not theirs, in order"
        )
    for trajectory in trajectories:
        sizes = {len(trajectory.completion_ids), len(trajectory.loss_mask), len(trajectory.logprobs)}
        if len(sizes) != 1:
            raise PolicyError(
                f"the rollout of {trajectory.example_key} has ids, mask and log-probabilities of {sorted(sizes)} "
                f"tokens; they must be equally long"
            )


def _by_length(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows in the same number of equal batches, shortest completions first."""
    whole = {
        key: torch.cat([batch[key] for batch in batches])
        for key, value in batches[0].items()
        if isinstance(value, torch.Tensor) and value.ndim
    }
    order = torch.chunk(torch.argsort(whole["completion_mask"].sum(dim=1), stable=True), len(batches))
    return [
        {**batch, **{key: value[rows] for key, value in whole.items()}}
        for batch, rows in zip(batches, order, strict=True)
    ]


_COMPLETION_KEYS = (
    "completion_ids",
    "completion_mask",
    "tool_mask",
    "sampling_per_token_logps",
    "old_per_token_logps",
    "ref_per_token_logps",
)


def _trim(inputs: dict[str, Any]) -> dict[str, Any]:
    """Cut padding columns: prompts (batch, P) are padded left, completions (batch, C) right."""
    prompt = int(inputs["prompt_mask"].sum(dim=1).max())
    completion = int(inputs["completion_mask"].sum(dim=1).max())
    trimmed = dict(inputs)
    for key in ("prompt_ids", "prompt_mask"):
        trimmed[key] = inputs[key][:, -prompt:]
    for key in _COMPLETION_KEYS:
        if inputs.get(key) is not None:
            trimmed[key] = inputs[key][:, :completion]
    return trimmed
