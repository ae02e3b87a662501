"""Sections of the policy: the embedded model, its warm start, and the stages of RL."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from deeprec.config.section import Positive, Section, Share


class TinyConfig(Section):
    """The embedded default: a Qwen2-architecture model built from the catalogue."""

    width: Positive = 128
    """Hidden width; titles start from the TRM's item embeddings, projected at random where its width differs."""
    layers: Positive = 3
    """Decoder layers."""
    heads: Positive = 4
    """Attention heads."""
    inner: Positive = 384
    """Width of the feed-forward layers."""


class WarmStartConfig(Section):
    """Supervised learning on trajectories of the scripted explorer; for the tiny policy only."""

    trajectories: int = Field(6000, ge=0)
    """Scripted trajectories to learn from; 0 skips the warm start."""
    epochs: Positive = 3
    """Passes over them."""
    batch_size: Positive = 32
    """Trajectories per step."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak of the cosine schedule."""
    call_shares: tuple[Share, ...] = (0.0, 0.8, 0.2)
    """Shares of scripted trajectories with 1, 2, 3, … calls."""
    short_histories: Share = 0.2
    """Share of trajectories whose history is cut to fewer than 10 items, so that new users are not strange to it."""
    promote_target: bool = False
    """Teach to answer the target first where the scripted calls found it."""
    use_target: Share = 0.0
    """Chance that a narrow call of the teacher draws its phrases from the target instead of the history."""


class SelectConfig(Section):
    """Choosing prompts by difficulty (method, section 4)."""

    candidates: Positive = 2000
    """Examples the start model is rolled out on."""
    rollouts: Annotated[int, Field(ge=2)] = 4
    """Rollouts per example."""


class StageGate(Section):
    """Thresholds on greedy rollouts for validation targets after a stage."""

    min_valid_rate: Share = 0.0
    """Least share of valid answers."""
    min_mean_calls: float = Field(0.0, ge=0)
    """Least mean number of calls."""


class HealthConfig(Section):
    """When a stage stops training: bounds on its rollout batches, broken for ``patience`` steps in a row.

    A loss or gradient that is not a number stops it at once.
    """

    min_valid_rate: Share = 0.02
    """Least share of rollouts that keep the format; 0 never stops."""
    min_mean_calls: float = Field(0.1, ge=0)
    """Least mean number of calls per rollout; 0 never stops."""
    max_repeated_preferences: Share = 0.95
    """Largest share of calls after the first that repeat a preference of their own rollout; 1 never stops."""
    max_logprob_gap: float = Field(0.5, ge=0)
    """Largest mean gap, in nats per token, between sampled and recomputed log-probabilities; 0 never stops."""
    patience: Positive = 5
    """Steps in a row, each beyond the same bound, that stop the stage; 1 stops at the first."""
    kl_trajectories: int = Field(32, ge=0)
    """Trajectories per step and process on which the divergence from the stage's start is measured; 0 measures none.
    Measuring keeps a second copy of the weights, unless ``kl`` has the reference model anyway."""


class StageConfig(Section):
    """One stage of RL (method, section 4)."""

    steps: int = Field(20, ge=0)
    """Rollout batches; 0 skips the stage."""
    prompts_per_step: Positive = 128
    """Distinct prompts of a rollout batch."""
    rollouts: Annotated[int, Field(ge=2)] = 8
    """Rollouts per prompt (the group)."""
    sequences_per_update: Positive = 512
    """Trajectories per optimiser update; divides prompts_per_step × rollouts."""
    micro_batch: Positive = 32
    """Trajectories per forward pass."""
    learning_rate: float = Field(1e-6, gt=0)
    """AdamW learning rate."""
    schedule: Literal["constant", "linear"] = "constant"
    """``linear`` lets the learning rate fall to 0 over the stage: with a large rate, the last updates then settle."""
    clip: float = Field(0.2, gt=0)
    """PPO clipping range ε."""
    kl: float = Field(0.0, ge=0)
    """Weight of the KL term to the stage's start; 0 is none."""
    save_every: Positive = 10
    """Rollout batches between checkpoints."""
    gate: StageGate = StageGate()
    health: HealthConfig = HealthConfig()

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        batch = self.prompts_per_step * self.rollouts
        if batch % self.sequences_per_update or self.sequences_per_update % self.micro_batch:
            raise ValueError(
                f"a rollout batch of {self.prompts_per_step} × {self.rollouts} = {batch} must be a multiple of "
                f"sequences_per_update={self.sequences_per_update}, and that of micro_batch={self.micro_batch}; "
                f"change one of them"
            )
        if self.micro_batch % self.rollouts and self.rollouts % self.micro_batch:
            raise ValueError(
                f"micro_batch={self.micro_batch} and rollouts={self.rollouts} must divide one another; change one"
            )
        return self


class PolicyConfig(Section):
    """The policy: ``tiny``, or any Hugging Face causal language model by name or path."""

    model: str = "tiny"
    """``tiny`` builds a model from the catalogue; anything else is loaded with transformers."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Weights' type while training and serving."""
    tiny: TinyConfig = TinyConfig()
    warm_start: WarmStartConfig = WarmStartConfig()
    select: SelectConfig = SelectConfig()
    stage1: StageConfig = StageConfig(steps=20)
    stage2: StageConfig = StageConfig(steps=80)
