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
    upper_layers: int = Field(0, ge=0)
    """Decoder layers above those, which ``warm_start.histories`` pass by. A position reads in each layer what the one
    below left at earlier positions, so what the topmost concludes of a history can be read by an upper layer only."""
    heads: Positive = 4
    """Attention heads."""
    inner: Positive = 384
    """Width of the feed-forward layers."""


class HistoriesConfig(Section):
    """Language modelling of plain histories before the scripted trajectories: what follows what."""

    passes: int = Field(0, ge=0)
    """Passes over the training sequences, each cut into other windows; 0 skips it."""
    rehearse: float = Field(0.0, ge=0)
    """Windows of histories that are learnt among the scripted trajectories, for each of those, so that the policy keeps
    its opinion of what comes next while it learns to explore."""
    batch_size: Positive = 64
    """Windows per step."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak of the cosine schedule."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the embeddings' cells that are dropped."""


class WarmStartConfig(Section):
    """Supervised learning on trajectories of the scripted explorer; for the tiny policy only."""

    histories: HistoriesConfig = HistoriesConfig()
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
    judge: Literal["lists", "histories"] = "lists"
    """What ranks the items of the teacher's answers: ``lists`` is their merged lists alone, ``histories`` also what the
    policy itself expects to come next, once it has learnt from histories."""

    @model_validator(mode="after")
    def _calls_can_be_drawn(self) -> Self:
        if not sum(self.call_shares) > 0:
            raise ValueError(
                f"call_shares is {list(self.call_shares)}, from which no number of calls can be drawn; give the shares "
                f"of 1, 2, 3, … calls, at least one of them above 0"
            )
        return self

    @property
    def asks_the_unlearnt(self) -> bool:
        """Whether the teacher's answers are ranked by an opinion that this warm start alone teaches no policy."""
        return bool(self.trajectories) and self.judge == "histories" and not self.histories.passes


class SelectConfig(Section):
    """Choosing prompts by difficulty (method, section 4)."""

    candidates: Positive = 2000
    """Examples the start model is rolled out on."""
    rollouts: Annotated[int, Field(ge=2)] = 4
    """Rollouts per example."""
    stage2: Literal["answered", "found"] = "answered"
    """What suits stage 2: ``answered``, some rollouts answer the target and some do not; ``found``, at least half of
    those that call retrieve it. Where a policy ranks well already, the first leaves out what it is right about, and so
    teaches it to prefer what is less likely."""


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
    max_top_preference_share: Share = 1.0
    """Largest share of rollouts that ask one same preference after their first call; 1 never stops."""
    max_logprob_gap: float = Field(0.5, ge=0)
    """Largest mean gap, in nats per token, between sampled and recomputed log-probabilities; 0 never stops."""
    patience: Positive = 5
    """Steps in a row, each beyond the same bound, that stop the stage; 1 stops at the first."""
    kl_trajectories: int = Field(32, ge=0)
    """Trajectories per step and process on which the divergence from the stage's start is measured; 0 measures none.
    Measuring keeps a copy of the weights in each process's memory (not the accelerator's), unless there are adapters,
    or ``kl`` has the reference model anyway."""


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


class LoraConfig(Section):
    """Low-rank adapters (Hu et al., 2021) in place of all weights.

    They start at no change, have no dropout, so that rollouts and updates see one distribution, and are merged into
    the weights when the stage is done: what is written is a plain model.
    """

    rank: int = Field(0, ge=0)
    """Rank of the adapters; 0 trains all weights."""
    alpha: float = Field(64.0, gt=0)
    """An adapter's product is scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that get adapters, such as ``q_proj``; empty takes all but the output embedding."""


class ParallelConfig(Section):
    """The processes that train a stage together, one per accelerator; on a CPU they share its cores."""

    nodes: Positive = 1
    """Machines. The pipeline's tasks are one pod each; ``deeprec policy trainjob`` makes a job of several."""
    per_node: Positive = 1
    """Processes on each machine."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """``ddp`` keeps weights, gradients and optimiser whole in every process; ``fsdp`` cuts them into shards (FSDP2)."""

    @property
    def processes(self) -> int:
        """Number of processes."""
        return self.nodes * self.per_node

    @model_validator(mode="after")
    def _shards_need_processes(self) -> Self:
        if self.strategy == "fsdp" and self.processes == 1:
            raise ValueError(
                "strategy is 'fsdp', but there is one process, and nothing to shard over; raise per_node, or set "
                "strategy to 'ddp'"
            )
        return self


class GenerationConfig(Section):
    """What generates a stage's rollouts, while its weights change."""

    engine: Literal["trainer", "vllm", "server"] = "trainer"
    """``trainer`` is the model under training itself; ``vllm`` runs beside it in every process (extra ``gpu``);
    ``server`` is vLLM on accelerators of its own. Those two are sent the new weights before each rollout batch."""
    gpu_memory_utilization: float = Field(0.35, gt=0, le=1)
    """``vllm``: share of an accelerator's memory it takes for weights and cache."""
    sleep: bool = True
    """``vllm``: give that memory back during the updates."""
    url: str = ""
    """``server``: its address, such as ``http://rollouts:8000``; process 0 and the server must reach one another."""
    timeout: float = Field(600.0, gt=0)
    """``server``: seconds that its start and each request may take."""

    @model_validator(mode="after")
    def _server_has_an_address(self) -> Self:
        if (self.engine == "server") != self.url.startswith(("http://", "https://")):
            raise ValueError(
                f"generation.engine is {self.engine!r} and generation.url is {self.url!r}; a server, and nothing else, "
                f"needs an address, such as http://rollouts:8000"
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
    lora: LoraConfig = LoraConfig()
    parallel: ParallelConfig = ParallelConfig()
    generation: GenerationConfig = GenerationConfig()
    stage1: StageConfig = StageConfig(steps=20)
    stage2: StageConfig = StageConfig(steps=80)

    @model_validator(mode="after")
    def _adapters_are_not_sharded(self) -> Self:
        if self.lora.rank and self.parallel.strategy == "fsdp":
            raise ValueError(
                f"lora.rank is {self.lora.rank} and parallel.strategy is 'fsdp'; with adapters each process keeps the "
                f"frozen weights whole, so set parallel.strategy to 'ddp', or lora.rank to 0"
            )
        return self
