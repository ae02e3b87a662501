"""The one configuration tree, read from YAML and overridable on the command line (``--set section.key=value``).

Each section is what one group of pipeline tasks reads, and is handed to those tasks alone, so that a change of one
section leaves the others' results valid. Unknown keys are refused. Committed profiles are in ``configs/``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from deeprec.errors import ConfigError

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused, docstrings under fields become descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


# --------------------------------------------------------------------------------------------------------------- data


class SampleConfig(Section):
    """The generated sample data."""

    users: Positive = 1500
    """Number of users."""
    items: Positive = 800
    """Number of items."""
    mean_history: Positive = 40
    """Mean number of interactions per user."""


class DataConfig(Section):
    """Where interactions and the catalogue come from, how they are cleaned and split."""

    source: Literal["sample", "movielens", "recbole", "table"] = "sample"
    """``sample`` generates data; ``movielens`` and ``recbole`` read a directory; ``table`` reads CSV or Parquet."""
    path: str = ""
    """Directory of the source; for ``table`` the directory that holds ``interactions`` and ``items``."""
    interactions: str = "interactions.parquet"
    """``table`` only: file name of the interactions (.csv or .parquet)."""
    items: str = "items.parquet"
    """``table`` only: file name of the catalogue (.csv or .parquet)."""
    columns: dict[str, str] = Field(default_factory=dict)
    """``table`` only: our column name → the file's, for user_id, item_id, timestamp, rating, title and text columns."""
    time_unit: Literal["seconds", "order"] = "seconds"
    """``table`` only: whether ``timestamp`` is Unix seconds or just an order."""
    text_columns: tuple[str, ...] = ("genres",)
    """Catalogue columns whose values describe an item; several values in one cell are joined by ``|``."""
    year_column: str | None = "year"
    """Catalogue column with a year, turned into a decade phrase; MovieLens titles give it. None or "": no decades."""
    min_rating: float = 0.0
    """Interactions rated below this are dropped; 0 keeps all."""
    min_user_interactions: Positive = 5
    """k-core: users with fewer interactions are dropped (at least 4 are needed to split)."""
    min_item_interactions: Positive = 5
    """k-core: items with fewer interactions are dropped."""
    policy_positions: Positive = 1
    """How many items before the validation target are the policy's targets, hidden from the TRM's training."""
    sample: SampleConfig = SampleConfig()

    @field_validator("year_column")
    @classmethod
    def _empty_is_none(cls, value: str | None) -> str | None:
        return value or None

    @model_validator(mode="after")
    def _enough_positions(self) -> Self:
        needed = self.policy_positions + 3
        if self.min_user_interactions < needed:
            raise ValueError(
                f"min_user_interactions is {self.min_user_interactions}, but policy_positions="
                f"{self.policy_positions} needs at least {needed} (test, validation, policy targets and one to train "
                f"on); raise min_user_interactions or lower policy_positions"
            )
        return self


class ChecksConfig(Section):
    """Thresholds of the data gate."""

    min_users: Positive = 100
    """Fewest users."""
    min_items: Positive = 100
    """Fewest items."""
    min_interactions: Positive = 1000
    """Fewest interactions."""
    max_missing_titles: Share = 0.05
    """Largest share of items whose title was missing at the source."""
    max_duplicate_interactions: Share = 0.0
    """Largest share of repeated (user, item, timestamp) rows after cleaning."""
    earliest: str = "1990-01-01"
    """Earliest timestamp allowed (ISO date, UTC); not checked when ``time_unit`` is ``order``."""


class FeaturesConfig(Section):
    """The feature store."""

    path: str = ""
    """Directory of the feature repository with its offline files and SQLite online store; `deeprec run` fills it with
    ``WORKDIR/features``."""
    history_length: Positive = 100_000
    """Online histories keep this many newest items; the default is longer than any real history, so none is cut."""


class TextConfig(Section):
    """The sentence encoder behind item texts and preferences."""

    provider: Literal["minilm", "sentence-transformers", "hashing"] = "minilm"
    """``minilm`` ships in a package; ``sentence-transformers`` loads ``model``; ``hashing`` is for tests."""
    model: str = "BAAI/bge-large-en-v1.5"
    """Name or path for ``sentence-transformers``."""
    width: Positive = 256
    """Vector width of ``hashing`` only."""


# ---------------------------------------------------------------------------------------------------------------- trm


class TrmGate(Section):
    """Thresholds on the validation target."""

    min_ndcg_10: Share = 0.0
    """Least NDCG@10 without preference."""
    min_ratio_to_popularity: float = 1.0
    """Least ratio of NDCG@10 to popularity's."""


class IndexConfig(Section):
    """The search over the catalogue's item vectors."""

    approximate_above: int = Field(2_000_000, ge=0)
    """Catalogues with more items than this are searched approximately; 0 searches every catalogue exactly."""
    recall: Share = 0.95
    """Recall@20 against the exact search that the approximate one is tuned to, on a sample of queries."""


class TrmConfig(Section):
    """The preference-aware TRM."""

    width: Positive = 128
    """Embedding width d."""
    layers: Positive = 2
    """Transformer layers."""
    heads: Positive = 2
    """Attention heads."""
    max_length: Positive = 200
    """History items the encoder reads (the newest)."""
    dropout: Share = 0.3
    """Dropout of embeddings and residual branches; attention weights have none."""
    epochs: Positive = 20
    """Passes over the training sequences."""
    batch_size: Positive = 64
    """Sequences per step."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak of the one-cycle cosine schedule."""
    weight_decay: float = Field(0.01, ge=0)
    """AdamW weight decay."""
    temperature: float = Field(0.05, ge=0.0125)
    """Softmax temperature on cosine scores; below 0.0125 its exponentials could overflow."""
    skip_seen: bool = True
    """Leave what a user has had before out of the softmax, as it is left out of recommendations; off where users come
    back to the same items. A sampled softmax does not look."""
    preference_share: Share = 0.25
    """Share of training positions that are asked a second time, with a preference; all are asked without one."""
    preference_weight: float = Field(0.5, ge=0)
    """Weight of a question with a preference in the loss; one without weighs 1."""
    false_preference: Share = 0.35
    """Share of training preferences that are those of another target, so that the TRM does not trust them blindly."""
    phrase_drop: Share = 0.5
    """Chance that one of the target's phrases is left out of a training preference."""
    phrase_noise: Share = 0.1
    """Chance that a random phrase is added to a training preference."""
    history_drop: Share = 0.05
    """Share of training preferences that stand without the history (users without one)."""
    id_drop: Share = 0.05
    """Chance that a step leaves out an item's ID embedding, so that its text learns to stand for it (new items)."""
    warmup: Share = 0.05
    """Share of the steps in which the learning rate rises to its peak."""
    clip_norm: float = Field(1.0, gt=0)
    """Largest norm of the gradient of a step."""
    average: float = Field(0.998, ge=0, lt=1)
    """Decay per step of the moving average of the weights, which is what is measured and kept; 0: the last weights."""
    sampled_above: Positive = 50_000
    """Catalogues with more items train with a sampled softmax, and keep text vectors as float16."""
    negatives: Positive = 8192
    """Items drawn per step for the sampled softmax, half by popularity^0.75, half evenly."""
    bf16: bool = True
    """bfloat16 autocast on machines that have it."""
    index: IndexConfig = IndexConfig()
    gate: TrmGate = TrmGate()


# ----------------------------------------------------------------------------------------------------- explore, rewards


class ExploreConfig(Section):
    """The loop: limits, lists and prompt (method, section 1)."""

    items_per_call: Positive = 20
    """Items the TRM returns per call."""
    answer_size: Positive = 10
    """k: items in the answer."""
    max_calls: Positive = 8
    """Calls at most; one more ends the rollout."""
    max_new_tokens: Positive = 2048
    """New tokens per segment."""
    max_context: Positive = 16384
    """Prompt and completion tokens at most."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature in training; evaluation and serving are greedy."""
    prompt: Literal["full", "compact"] = "full"
    """``full`` explains the protocol in words; ``compact`` is for the tiny policy, which is taught it."""
    prompt_history: Positive = 20
    """Newest history items shown in the prompt."""
    show_scores: bool = True
    """Print the TRM's match score (0–100) beside each title."""
    show_phrases: bool = False
    """Print an item's phrases on a line below its title."""
    batch_size: Positive = 256
    """Rollouts that advance together."""

    @model_validator(mode="after")
    def _answer_fits(self) -> Self:
        if self.answer_size > self.items_per_call * self.max_calls:
            raise ValueError(
                f"answer_size is {self.answer_size}, but {self.max_calls} calls of {self.items_per_call} items "
                f"retrieve at most {self.items_per_call * self.max_calls}; lower answer_size or raise items_per_call"
            )
        return self


class StageRewards(Section):
    """Weights of one stage's reward parts (method, section 3). 0 switches a part off; it is then not scored."""

    format: float = 0.0
    """0 if every format rule holds, else −1."""
    interaction: float = 0.0
    """0 if n ≤ 1 calls, else 0.5 · (min(n, 3) − 1)."""
    diversity: float = 0.0
    """0 if n ≤ 1 calls, else 0.2 · (1 − mean pairwise cosine of the preference embeddings)."""
    listwise: float = 0.0
    """1 + 0.2 · (k − rank) when the target is answered, else 0."""
    pointwise: float = 0.0
    """10 · rank-weighted mean similarity of the answered items to the target."""


class RewardsConfig(Section):
    """Reward composition by stage."""

    strict_format: bool = True
    """Also require k distinct catalogue items, each retrieved by this rollout; off reproduces the reference."""
    stage1: StageRewards = StageRewards(format=1.0, interaction=1.0, diversity=1.0)
    stage2: StageRewards = StageRewards(format=1.0, listwise=1.0, pointwise=1.0)


# ------------------------------------------------------------------------------------------------------------- policy


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


# --------------------------------------------------------------------------------------- evaluation, bundle, serving


class EvaluationGate(Section):
    """Thresholds on the test target, read once."""

    min_valid_rate: Share = 0.0
    """Least share of valid answers after stage 2."""
    min_ndcg_10_trm: Share = 0.0
    """Least NDCG@10 of the TRM alone."""
    min_ratio_to_trm: float = Field(1.0, ge=0)
    """The policy is published when its NDCG@10 reaches this multiple of the TRM's; below, the bundle serves the TRM."""


class EvaluationConfig(Section):
    """Evaluation on the test target."""

    bootstrap_samples: Positive = 2000
    """Resamples of the paired bootstrap."""
    trajectories: Positive = 12
    """Trajectories printed in the report."""
    gate: EvaluationGate = EvaluationGate()


class BundleConfig(Section):
    """Where the bundle is published besides the run's own artifact."""

    uri: str = ""
    """Local path or ``s3://bucket/prefix``; empty publishes nowhere else."""


class ServingConfig(Section):
    """The servers' limits."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8080, ge=0, le=65535)
    """HTTP port."""
    deadline_ms: Positive = 1000
    """Default deadline of a recommendation; after it the TRM answers."""
    max_deadline_ms: Positive = 30000
    """Largest deadline a request may ask for."""
    max_k: Positive = 100
    """Largest k a request may ask for."""
    max_history: Positive = 2000
    """Longest history a request may carry."""
    max_instances: Positive = 32
    """Most requests in one body."""
    max_body_bytes: Positive = 262144
    """Largest request body."""
    workers: Positive = 2
    """Threads that run models."""


# ----------------------------------------------------------------------------------------------------------- pipeline


class GpuPool(Section):
    """The nodes that carry accelerators: the one place where they are described."""

    accelerator: str = "nvidia.com/gpu"
    """Resource name."""
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of the pool's nodes."""
    tolerations: tuple[dict[str, str], ...] = ()
    """Tolerations (key, operator, value, effect)."""
    shared_memory: str = "8Gi"
    """Size of /dev/shm for tasks with accelerators."""


class TaskResources(Section):
    """What one task's pod asks for."""

    cpu: str = "2"
    """CPU request and limit."""
    memory: str = "8Gi"
    """Memory request and limit."""
    gpus: int = Field(0, ge=0)
    """Accelerators from the GPU pool."""
    retries: int = Field(2, ge=0)
    """Times KFP starts the task again after a failure."""
    image: str = ""
    """Overrides ``pipeline.image``."""


class PipelineConfig(Section):
    """How the pipeline runs in pods."""

    image: str = "deeprec-python:0.1.0"
    """Container image of every task; name a digest so that caching sees a change."""
    default: TaskResources = TaskResources()
    tasks: dict[str, TaskResources] = Field(default_factory=dict)
    """Overrides by task name."""
    gpu_pool: GpuPool = GpuPool()


class Config(Section):
    """The whole tree."""

    name: str = Field("run", pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    """Name of the run: its directory under ``runs/`` and its pipeline run name."""
    seed: int = Field(0, ge=0)
    """The one seed."""
    data: DataConfig = DataConfig()
    checks: ChecksConfig = ChecksConfig()
    features: FeaturesConfig = FeaturesConfig()
    text: TextConfig = TextConfig()
    trm: TrmConfig = TrmConfig()
    explore: ExploreConfig = ExploreConfig()
    rewards: RewardsConfig = RewardsConfig()
    policy: PolicyConfig = PolicyConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    bundle: BundleConfig = BundleConfig()
    serving: ServingConfig = ServingConfig()
    pipeline: PipelineConfig = PipelineConfig()

    @model_validator(mode="after")
    def _prompt_fits(self) -> Self:
        if self.policy.model != "tiny" and self.explore.prompt == "compact":
            raise ValueError(
                f"explore.prompt is 'compact' but policy.model is {self.policy.model!r}; only the tiny policy is "
                f"taught the protocol by a warm start, so set explore.prompt to 'full'"
            )
        return self


def load_config(path: str | Path, overrides: tuple[str, ...] = ()) -> Config:
    """Read a YAML profile and apply ``section.key=value`` overrides (values are YAML).

    Raises:
        ConfigError: the file cannot be read, an override is malformed, a key is unknown or a value is out of range.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}; name a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}; correct the file") from error
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds a {type(raw).__name__}, not a mapping; see configs/quickstart.yaml")
    for override in overrides:
        apply_override(raw, override)
    return parse_config(raw, str(path))


def parse_config(raw: dict[str, Any], where: str) -> Config:
    """Check a mapping against the tree.

    Raises:
        ConfigError: naming ``where``, the key, the value and the rule for every mistake found.
    """
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_describe(item) for item in error.errors())) from error


def _describe(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"]) or "configuration"
    if item["type"] == "extra_forbidden":
        return f"unknown key {key}; remove it or correct its spelling"
    return f"{key}: {item['msg'].removeprefix('Value error, ')} (got {item['input']!r:.80})"


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Set one key of a raw tree as ``--set section.key=value`` says; the value is YAML.

    Raises:
        ConfigError: it is malformed, or goes through a value as if it were a section.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override!r} is not of the form section.key=value, for example trm.epochs=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not valid YAML: {error}") from error
    *parents, last = key.split(".")
    node = raw
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override!r}: {parent} is a value, not a section")
    node[last] = value if text else ""
