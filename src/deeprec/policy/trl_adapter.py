"""The one place that imports TRL: a stage's policy gradient on trajectories that our own loop rolls out.

TRL 1.16 keeps the optimiser, the clipping, the checkpoints and the advantages; this adapter gives it trajectories
(token ids, loss masks, log-probabilities) through ``rollout_func`` and hands each reward part to a reward function of
its own. A prompt is passed to TRL as an example's key. Update rule: REINFORCE with the mean reward of a prompt's group
as baseline, advantages divided by the standard deviation of the whole batch's rewards, PPO clipping (method, section
4); a loss is a mean over the tokens the policy wrote, those of the environment have none.

With several processes (torchrun, accelerate) each rolls out its own share of a batch's prompts, whole groups, and
trains on it; rewards are scaled and gradients averaged over all of them, so that an update is what one process would
make of the same trajectories. Each keeps the whole model (DDP) or a shard of it (FSDP2), as ``policy.parallel`` says.
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

from deeprec.config import PolicyConfig, StageConfig
from deeprec.errors import PolicyError
from deeprec.policy.arguments import arguments
from deeprec.policy.batches import Allowed, Held, by_length, own_logprobs, trim
from deeprec.policy.curves import Curves
from deeprec.policy.generation import TrainingEngine
from deeprec.policy.health import StartModel, collapse
from deeprec.policy.lora import adapters, merge, without_wrapper
from deeprec.policy.processes import gather, rank
from deeprec.policy.sharding import shard_on_cpu
from deeprec.types import Example, JsonDict, Policy, Trajectory

WARM_UP = 0.05
"""Share of the updates over which the learning rate rises to its constant value."""

NUMBERS = "lower the stage's learning_rate"
COLLAPSE = (
    "lower the stage's learning_rate or weigh the part of the reward that fell more, and it starts anew (copy that "
    "checkpoint first to keep it), or move the bound, and it goes on"
)
"""What to do about a stage that stopped."""

Roll = Callable[[Sequence[Example], int, Policy], Sequence[Trajectory]]
"""Examples (each repeated for its group), step (0-based) and what generates → scored trajectories, in order.

Each process is asked for its own share of the batch's examples.
"""


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
    policy: PolicyConfig = PolicyConfig(),
    longest: int = 0,
    allowed: Held | None = None,
    progress: Callable[[str], None] = print,
) -> list[JsonDict]:
    """Train ``model`` in place for ``stage.steps`` rollout batches and return their records.

    Adapters, where ``policy.lora`` asks for them, are merged at the end. With ``policy.parallel`` on ``fsdp`` the model
    is left in shards; see ``sharding``.

    Args:
        model: a causal language model, in float32 unless it gets adapters; its ``name_or_path`` is the directory that
            vLLM starts with, and that of the reference of ``stage.kl``.
        tokenizer: its tokenizer, with padding and end-of-text tokens.
        examples: the stage's prompts; their order and repetition follow from ``seed`` alone.
        roll: makes and scores trajectories.
        weights: reward part → weight; parts of trajectories that are not named here are ignored.
        temperature: what ``roll`` samples with; TRL divides its logits by the same.
        checkpoints: directory written every ``stage.save_every`` rollout batches; the newest one there is resumed.
        policy: says what is trained, on which processes, and what generates; its stages are not read.
        longest: tokens of the longest sequence that vLLM keeps room for; 0 is the model's own limit.
        allowed: what ``roll``'s answers were held to, where they were; log-probabilities are then those among it.

    Raises:
        PolicyError: no prompt, a temperature of 0, trajectories that do not fit what was asked, a batch that cannot
            be shared among the processes, an extra that is not installed, a loss that is not a number, or a collapse
            as ``stage.health`` defines it.
    """
    if not examples:
        raise PolicyError("no prompt was selected for this stage; raise policy.select.candidates or set steps to 0")
    if temperature <= 0:
        raise PolicyError(f"explore.temperature is {temperature}, but training needs to sample; set it above 0")
    if not any(weights.values()):
        raise PolicyError("every reward part of this stage has weight 0; give one a weight in the rewards section")
    checkpoints.mkdir(parents=True, exist_ok=True)
    curves = Curves(checkpoints / "curves.json", weights, stage.rollouts, progress, gather=gather, writes=rank() == 0)
    start = _start_model(model, tokenizer, stage, policy, temperature, allowed)
    config = GRPOConfig(**arguments(stage, policy, weights, temperature, longest, seed, checkpoints))
    config.report_to = []
    config._n_gpu = min(config.n_gpu, 1)  # one process, one accelerator, however many it sees: no DataParallel
    order = prompt_order(examples, stage.steps, stage.prompts_per_step, seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*rollout_func.*experimental.*")
        trainer = PolicyGradientTrainer(
            model=model,
            args=config,
            processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": [example.key for example in order]}),
            reward_funcs=[_reward_function(name) for name in weights],
            rollout_func=_rollout_function(
                {example.key: example for example in examples},
                roll,
                weights,
                curves,
                start,
                TrainingEngine(policy.generation),
                allowed,
            ),
            peft_config=adapters(policy.lora),
            callbacks=[_CurvesCallback(curves, stage)],
        )
    trainer.curves = curves
    trainer.schedule = stage.schedule
    trainer.remove_callback(PrinterCallback)
    last = newest_checkpoint(checkpoints)
    if last is not None:
        done = _updates(last) // trainer.updates
        curves.resume(done)
        if curves.writes:
            progress(f"resuming after step {done} from {last}")
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    if policy.lora.rank:
        merge(trainer.model)
    return curves.records


def newest_checkpoint(checkpoints: Path, most: float = math.inf) -> Path | None:
    """The whole checkpoint with the most updates, ``most`` at most, or None.

    One without its trainer state was cut off and is skipped.
    """
    whole = [path for path in checkpoints.glob("checkpoint-*") if (path / "trainer_state.json").is_file()]
    return max((path for path in whole if _updates(path) <= most), key=_updates, default=None)


def _updates(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


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
    position, they are computed for the policy's own tokens alone, unless the model is wrapped or sharded for several
    processes: gradients are only averaged when the whole model's own forward is called.
    """

    lr_scheduler: Any
    _buffered_inputs: Any
    curves: Curves
    schedule: str = "constant"
    own_tokens: torch.Tensor | None = None
    """(batch, completion) bool, of the sequences that are scored next: written by the policy."""
    rules: Allowed = ()
    """What the answers of the present rollout batch were held to, in the order of its trajectories."""
    held: Allowed = ()
    """The same, of the sequences that are scored next."""
    _log_probabilities: torch.Tensor

    @property
    def updates(self) -> int:
        """Optimiser updates in one rollout batch."""
        return int(self.args.steps_per_generation // self.args.gradient_accumulation_steps)

    def create_accelerator_and_postprocess(self) -> None:
        """Sharded weights are sharded on a CPU too."""
        if self.args.fsdp and self.args.use_cpu:
            shard_on_cpu()
        super().create_accelerator_and_postprocess()

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """A linear rise whose first value is not 0, so that the first update counts; then constant, or down to 0."""
        if self.lr_scheduler is None:
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer or self.optimizer, lambda update: rate_share(update, num_training_steps, self.schedule)
            )
        return self.lr_scheduler

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        output = super()._generate_and_score_completions(inputs)
        output["trajectory"] = torch.arange(len(output["completion_ids"]), device=output["completion_ids"].device)
        return output

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is before:
            return inputs
        width = self.args.gradient_accumulation_steps
        self._buffered_inputs = [
            batch
            for start in range(0, len(self._buffered_inputs), width)
            for batch in by_length(self._buffered_inputs[start : start + width])
        ]
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, batch_size: int | None = None,
        compute_entropy: bool = False, **more: Any,
    ) -> tuple[Any, Any, Any]:  # fmt: skip
        own = self.own_tokens
        plain = model is self.model and not self.is_fsdp_enabled and input_ids.device.type == "cpu"
        if own is None or own.shape != (len(input_ids), logits_to_keep) or not (plain or self.held):
            more |= {"batch_size": batch_size, "compute_entropy": compute_entropy}
            result = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, **more
            )
        else:
            size = batch_size or len(input_ids)
            parts = zip(*(rows.split(size) for rows in (input_ids, attention_mask, own)), strict=True)
            scored = [
                own_logprobs(
                    without_wrapper(model) if plain else model, *part, temperature=self.temperature,
                    allowed=self.held[place * size : (place + 1) * size], whole=not plain,
                )
                for place, part in enumerate(parts)
            ]  # fmt: skip
            logps, entropies = (torch.cat(rows) for rows in zip(*scored, strict=True))
            result = (logps, entropies if compute_entropy else None, None)
        self._log_probabilities = result[0].detach()
        return result[0], result[1], result[2]

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Any:
        inputs = trim(inputs)
        self.own_tokens = mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
        self.held = [self.rules[row] for row in inputs["trajectory"].tolist()] if self.rules else ()
        loss = super()._compute_loss(model, inputs)
        gap = (self._log_probabilities - inputs["sampling_per_token_logps"]).abs()[mask]
        figures = torch.stack([(~loss.detach().isfinite()).float(), gap.sum(), mask.sum().float()])
        broken, gaps, tokens = self.accelerator.reduce(figures, reduction="sum").tolist()
        if broken:
            step = self.state.global_step // self.updates + 1
            raise PolicyError(_stopped(f"the loss of step {step} is not a number", self.args, step - 1, NUMBERS))
        if tokens and math.isfinite(gaps) and self.state.global_step % self.updates == 0:
            self.curves.measured["logprob_gap"].append(gaps / tokens)
        return loss


class _CurvesCallback(TrainerCallback):  # type: ignore[misc]
    """Closes a record after a batch's last update, and stops the stage when training has collapsed."""

    def __init__(self, curves: Curves, stage: StageConfig) -> None:
        self.curves = curves
        self.stage = stage

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not logs or "train_runtime" in logs:
            return
        updates = args.steps_per_generation // args.gradient_accumulation_steps
        step = math.ceil(state.global_step / updates)
        if not math.isfinite(logs.get("grad_norm", 0.0)):
            raise PolicyError(_stopped(f"the gradient of step {step} is not a number", args, step - 1, NUMBERS))
        self.curves.updated(logs)
        if state.global_step % updates == 0:
            self.curves.finish()
            found = collapse(self.curves.records, self.stage.health)
            if found is not None:
                raise PolicyError(_stopped(f"after step {step} {found.reason}", args, found.healthy_steps, COLLAPSE))


def _stopped(reason: str, args: Any, healthy_steps: int, cure: str) -> str:
    """The message of a stage that stops; checkpoints after ``healthy_steps`` are not to be trusted."""
    updates = args.steps_per_generation // args.gradient_accumulation_steps
    last = newest_checkpoint(Path(args.output_dir), healthy_steps * updates)
    kept = "no checkpoint was written while it was healthy"
    if last is not None:
        kept = f"the last healthy checkpoint is {last}, after step {_updates(last) // updates}"
    return f"training stopped: {reason}; {kept}; {cure}"


def _start_model(
    model: Any, tokenizer: Any, stage: StageConfig, policy: PolicyConfig, temperature: float, allowed: Held | None
) -> StartModel | None:
    """The start to measure the divergence from; None when it is not wanted or TRL's KL term measures it anyway."""
    most = stage.health.kl_trajectories
    if not most or stage.kl:
        return None
    low = policy.dtype == "bfloat16" and torch.cuda.is_available()
    return StartModel(
        model, temperature=temperature, pad_id=tokenizer.pad_token_id, most=most, allowed=allowed,
        adapted=policy.lora.rank > 0, dtype=torch.bfloat16 if low else None,
    )  # fmt: skip


def _reward_function(name: str) -> Callable[..., list[float | None]]:
    def read(reward_parts: Sequence[Mapping[str, float | None]], **_: Any) -> list[float | None]:
        return [parts.get(name) for parts in reward_parts]

    read.__name__ = name
    return read


def _rollout_function(
    examples: Mapping[str, Example],
    roll: Roll,
    weights: Mapping[str, float],
    curves: Curves,
    start: StartModel | None,
    engine: TrainingEngine,
    allowed: Held | None,
) -> Callable[[list[str], Any], dict[str, Any]]:
    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        step = trainer.state.global_step // trainer.updates
        started = time.perf_counter()
        with engine.rolling(trainer) as policy:
            trajectories = roll([examples[key] for key in prompts], step, policy)
        _check(prompts, trajectories)
        seconds = time.perf_counter() - started
        with trainer.accelerator.autocast():
            divergence = start.divergence(trajectories, trainer.model) if start else None
        curves.rolled_out(step + 1, trajectories, seconds, divergence)
        output = trl_output(trajectories, weights, trainer.processing_class.eos_token_id)
        rows = [torch.tensor(mask, dtype=torch.bool) for mask in output["env_mask"]]
        trainer.own_tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        trainer.rules = trainer.held = [allowed(trajectory) for trajectory in trajectories] if allowed else ()
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
        if not all(map(math.isfinite, trajectory.logprobs)):
            raise PolicyError(
                f"the rollout of {trajectory.example_key} has a log-probability that is not a number; the engine's "
                f"weights or sampling are broken, and an update would break the trained ones"
            )
