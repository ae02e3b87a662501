"""One stage of RL as a task: start policy and prompts in, trained policy, curves, verdict and report out.

The rewards' weights are the stage's; the learning itself is ``trl_adapter``'s. A stage that was cut off goes on from
its newest checkpoint, if dataset, TRM, start, prompts and configuration are still the same; bounds on its health may
change. Several processes may run it together (``policy.processes``): process 0 writes, all of them return the verdict.
``launch.train_stage`` starts them; here each runs its part.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deeprec.checks.gate import Verdict, check_metrics
from deeprec.config import ExploreConfig, PolicyConfig, RewardsConfig, StageConfig, TextConfig
from deeprec.explore.answers import answer_rules
from deeprec.explore.loading import load_policy
from deeprec.metrics import metrics_from_ranks, target_ranks
from deeprec.policy.build import KIND, write_policy
from deeprec.policy.charts import stage_figures
from deeprec.policy.processes import gather, join, rank, world_size
from deeprec.policy.select import read_prompts
from deeprec.policy.setting import FORMAT_ONLY, Setting, derived_seed, is_valid, sample, score
from deeprec.policy.sharding import full_weights, whole
from deeprec.store import read_artifact, write_artifact
from deeprec.types import Example, JsonDict, Policy, Trajectory

if TYPE_CHECKING:
    from deeprec.explore.engine import TransformersPolicy

StageName = Literal["stage1", "stage2"]
VALIDATION_USERS = 1000
"""Users, drawn at random, whose validation target the gate's greedy rollouts are measured on."""
FINGERPRINT = "fingerprint.txt"


def train_stage(
    stage: StageName,
    dataset: Path,
    trm: Path,
    start: Path,
    prompts: Path,
    policy: PolicyConfig,
    explore: ExploreConfig,
    rewards: RewardsConfig,
    text: TextConfig,
    seed: int,
    out: Path,
    report: Path,
    checkpoints: Path | None = None,
    *,
    progress: Callable[[str], None] = print,
) -> tuple[Verdict, dict[str, float]]:
    """Train, write the artifact, measure greedy rollouts on validation targets, write the gate's report.

    With 0 steps the start policy is written again. ``checkpoints`` is kept after a failure only.

    Raises:
        PolicyError: the stage cannot be trained as configured, or training collapsed; the message names the last
            healthy checkpoint.
    """
    settings: StageConfig = getattr(policy, stage)
    join()
    setting = Setting.open(dataset, trm, text)
    actor = load_policy(start, dtype=policy.dtype if policy.lora.rank else "float32")
    config: JsonDict = {
        "stage": stage,
        "settings": settings.model_dump(mode="json", exclude={"health"}),
        "dtype": policy.dtype,
        "lora": policy.lora.model_dump(mode="json"),
        "strategy": policy.parallel.strategy,
        "generation": policy.generation.engine,
        "explore": explore.model_dump(mode="json"),
        "rewards": rewards.model_dump(mode="json"),
    }
    parents = [dataset, trm, start, prompts]
    curves: list[JsonDict] = []
    with _checkpoints(checkpoints, _fingerprint(config, parents, seed)) as kept:
        if settings.steps:
            curves = _train(stage, setting, actor, prompts, policy, explore, rewards, seed, kept, progress)
        trained = full_weights(actor.model)
        if rank() == 0:
            with write_artifact(out, KIND, config=config, parents=parents, seed=seed) as work:
                write_policy(work, actor.model, actor.tokenizer, explore, curves, trained)
        del trained
        with whole(actor.model), _precision(actor.model, policy.dtype == "bfloat16"):
            metrics = measure(setting, actor, affordable(actor.model, explore), rewards, seed)
        verdict = _judge(stage, settings, metrics, curves, report)
    if rank() == 0:
        progress(verdict.reason)
    return verdict, metrics


def _judge(
    stage: StageName, settings: StageConfig, metrics: dict[str, float], curves: Sequence[JsonDict], report: Path
) -> Verdict:
    """The gate's verdict; its report is process 0's, what the others write is thrown away."""
    with tempfile.TemporaryDirectory(prefix="deeprec-") as scratch:
        return check_metrics(
            stage,
            [
                ("valid_rate", metrics["valid_rate"], settings.gate.min_valid_rate),
                ("mean_calls", metrics["mean_calls"], settings.gate.min_mean_calls),
            ],
            report if rank() == 0 else Path(scratch) / report.name,
            title=f"{'Stage 1' if stage == 'stage1' else 'Stage 2'} of the policy",
            intro=_intro(metrics, curves),
            figures=stage_figures(curves),
        )


def measure(
    setting: Setting, actor: TransformersPolicy, explore: ExploreConfig, rewards: RewardsConfig, seed: int
) -> dict[str, float]:
    """Greedy rollouts on validation targets: the figures of ``explore.summary`` and the ranking's, misses counted.

    Several processes share the users and all return the same.
    """
    from deeprec.data.splits import validation_examples
    from deeprec.explore.summary import summarise

    examples = sample(validation_examples(setting.dataset), VALIDATION_USERS, derived_seed(seed, 20))
    share = range(rank(), len(examples), world_size())
    mine = [examples[place] for place in share]
    scored = score(
        setting.scorer(FORMAT_ONLY, rewards, explore),
        setting.roll(actor, mine, explore, temperature=0.0, seed=seed),
        mine,
    )
    placed = dict(gather(list(zip(share, scored, strict=True))))
    made = [placed[place] for place in range(len(examples))]
    valid = [is_valid(trajectory) for trajectory in made]
    answers = [trajectory.answer if good else () for trajectory, good in zip(made, valid, strict=True)]
    ranks = target_ranks(answers, [example.target for example in examples])
    return summarise(made, examples, valid) | metrics_from_ranks(ranks) | {"validation_users": float(len(examples))}


def _train(
    stage: StageName,
    setting: Setting,
    actor: TransformersPolicy,
    prompts: Path,
    policy: PolicyConfig,
    explore: ExploreConfig,
    rewards: RewardsConfig,
    seed: int,
    checkpoints: Path,
    progress: Callable[[str], None],
) -> list[JsonDict]:
    from deeprec.data.splits import policy_examples
    from deeprec.policy.trl_adapter import train_grpo

    settings: StageConfig = getattr(policy, stage)
    weights = getattr(rewards, stage)
    scorer = setting.scorer(weights, rewards, explore)
    place = 1 if stage == "stage1" else 2
    low = policy.dtype == "bfloat16"

    def roll(examples: Sequence[Example], step: int, engine: Policy) -> list[Trajectory]:
        path = (30, place, step, rank()) if rank() else (30, place, step)
        with _precision(actor.model, low):
            made = setting.roll(engine, examples, explore, explore.temperature, derived_seed(seed, *path))
        return score(scorer, made, examples)

    rules = answer_rules(actor, setting.titles, explore)
    return train_grpo(
        actor.model,
        actor.tokenizer,
        read_prompts(prompts, stage, policy_examples(setting.dataset)),
        roll,
        {name: weight for name, weight in weights.model_dump().items() if weight},
        settings,
        temperature=explore.temperature,
        seed=derived_seed(seed, 31, place) % 2**31,
        checkpoints=checkpoints,
        policy=policy,
        longest=explore.max_context,
        allowed=rules.allowed if rules else None,
        progress=progress,
    )


def affordable(model: Any, explore: ExploreConfig) -> ExploreConfig:
    """The same with batches whose keys and values, at their longest, take half of an accelerator's free memory at most.

    On a CPU as it is. The transformers engine keeps them for every open rollout, in the type of the weights at most.
    """
    import torch

    parameter = next(model.parameters())
    if parameter.device.type != "cuda":
        return explore
    shape = model.config
    head = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    place = 2 * shape.num_hidden_layers * shape.num_key_value_heads * head * parameter.element_size()
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(parameter.device)
    fits = max(1, free // 2 // (place * explore.max_context))
    return explore.model_copy(update={"batch_size": min(explore.batch_size, fits)})


@contextmanager
def _precision(model: Any, low: bool) -> Iterator[None]:
    """bfloat16 autocast on CUDA, as the updates have it, so that rollouts sample from the distribution they train."""
    import torch

    device = next(model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16, enabled=low and device == "cuda"):
        yield


@contextmanager
def _checkpoints(place: Path | None, fingerprint: str) -> Iterator[Path]:
    """A directory for checkpoints: what another configuration left there is removed first; emptied when all is well.

    Without ``place`` each process has one of its own, for the while.
    """
    if place is None:
        with tempfile.TemporaryDirectory(prefix="deeprec-") as made:
            yield Path(made)
        return
    mark = place / FINGERPRINT
    if rank() == 0:
        if place.exists() and not (mark.is_file() and mark.read_text(encoding="utf-8") == fingerprint):
            shutil.rmtree(place)
        place.mkdir(parents=True, exist_ok=True)
        mark.write_text(fingerprint, encoding="utf-8")
    gather([rank()])
    yield place
    if rank() == 0:
        shutil.rmtree(place, ignore_errors=True)


def _fingerprint(config: JsonDict, parents: Sequence[Path], seed: int) -> str:
    parts = [read_artifact(parent, verify=False).digest for parent in parents]
    text = json.dumps([config, parts, seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _intro(metrics: dict[str, float], curves: Sequence[JsonDict]) -> str:
    shown = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
    trained = "No step was trained; this is the start policy." if not curves else f"{len(curves)} steps were trained."
    if curves:
        seconds, rolling = (sum(record[name] for record in curves) for name in ("seconds", "rollout_seconds"))
        trained += f" They took {seconds:.0f} s, of which {rolling:.0f} s rolling out."
    return f"{trained}\n\nGreedy rollouts on validation targets: {shown}."
