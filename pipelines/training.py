"""The training pipeline: from a source of interactions to a published bundle, as one KFP v2 graph.

``build`` makes the graph for a set of pods (image, CPU, memory, accelerators, retries); what is learned from which data
is in the pipeline's parameters, one per configuration section, so that a schedule changes nothing else and KFP's cache
sees every input; what can change without them, the source's contents, is named by the first task. Gates succeed and
hand their verdict on; the next task refuses. No ``dsl.If``: KFP's local runner takes every condition for false. KFP
reads annotations as objects, so this file does without postponed ones.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kfp import compiler, dsl

from deeprec.components.build_policy import build_policy
from deeprec.components.check_data import check_data
from deeprec.components.evaluate import evaluate
from deeprec.components.ingest import ingest
from deeprec.components.preflight import preflight
from deeprec.components.publish_bundle import publish_bundle
from deeprec.components.publish_features import publish_features
from deeprec.components.refit import refit
from deeprec.components.require import require
from deeprec.components.resolve_data import resolve_data
from deeprec.components.rollout import rollout
from deeprec.components.select_prompts import select_prompts
from deeprec.components.train_stage import train_stage
from deeprec.components.train_trm import train_trm
from deeprec.components.train_trm_everything import train_trm_everything
from deeprec.config import Config, PipelineConfig, PodTemplate
from deeprec.errors import ConfigError, PipelineError
from deeprec.pipelines import pods
from deeprec.pipelines.environment import environment

NAME = "deeprec-training"

TASKS = (
    "preflight",
    "resolve-data",
    "ingest",
    "check-data",
    "publish-features",
    "train-trm",
    "build-policy",
    "rollout-candidates",
    "select-prompts",
    "train-stage-1",
    "train-stage-2",
    "train-trm-everything",
    "rollout-start",
    "rollout-stage-1",
    "rollout-stage-2",
    "evaluate",
    "refit",
    "publish-bundle",
)
"""Every task, in order; the names under ``pipeline.tasks`` and in a run's figures."""

TRAINING = frozenset({"train-trm", "train-stage-1", "train-stage-2", "train-trm-everything", "refit"})
"""Tasks that go on from a checkpoint when they are started again."""

LOOKING = frozenset({"preflight", "resolve-data"})
"""Tasks that look at what may have changed meanwhile; neither KFP's cache nor a resumed run takes an earlier result."""

REQUIRE = PodTemplate(
    cpu="250m", memory="1Gi", gpus=0, retries=0, scratch="", timeout_seconds=0, volumes=(), secrets={}
)
"""What stands behind a gate in a compiled pipeline asks for this; the rest is the default's."""

READERS = {
    "data": ("preflight", "resolve-data", "ingest"),
    "features": ("preflight", "resolve-data", "ingest", "publish-features"),
    "text": tuple(name for name in TASKS[TASKS.index("train-trm") :] if name != "select-prompts"),
    "policy": ("build-policy", "train-stage-1", "train-stage-2"),
    "bundle": ("preflight", "publish-bundle"),
}
"""Section with a path → the tasks that read or write there; pinned by a test."""

SIDE_EFFECTS = frozenset({"publish-features", "publish-bundle"})
"""Tasks that change something outside their own artifacts; KFP never caches them."""


def build(
    settings: PipelineConfig, *, in_turn: bool = False, environment: Mapping[str, str] = MappingProxyType({})
) -> Any:
    """The pipeline for these pods: a KFP graph component that can be compiled, or called to run locally.

    A small task stands behind each gate, so that a refusal asks for no accelerator and is not tried again; the task
    that follows looks at the verdict all the same.

    Args:
        in_turn: for a machine where tasks run one after the other. The TRM on everything waits for stage 2, though it
            needs nothing of it, so that ``TASKS`` is the order (KFP's own differs from one process to the next), and
            nothing stands behind the gates.
        environment: variables of every task.

    Raises:
        ConfigError: ``settings`` names a task that does not exist, or a quantity Kubernetes does not know.
    """
    place = _placement(settings, environment)
    promised: dict[str, Any] = {} if in_turn else _promised(settings)

    def let_through(name: str, task: Any) -> Any:
        verdict = task.outputs["verdict"]
        return verdict if in_turn else place(name, require(gate=verdict)).outputs["passed"]

    @dsl.pipeline(name=NAME, description="From interactions and a catalogue to a served DeepRec recommender.")
    def training(
        data: dict,
        data_version: str,
        checks: dict,
        features: dict,
        text: dict,
        trm: dict,
        explore: dict,
        rewards: dict,
        policy: dict,
        warm_start: dict,
        select: dict,
        stage1: dict,
        stage2: dict,
        evaluation: dict,
        bundle: dict,
        seed: int,
    ):
        looked = place(
            "preflight",
            preflight(
                data=data, features=features, text=text, explore=explore, policy=policy, bundle=bundle, pods=promised
            ),
        )
        resolved = place("resolve-data", resolve_data(data=data, data_version=data_version, features=features)).after(
            looked
        )
        ingested = place(
            "ingest", ingest(data=data, data_version=resolved.outputs["version"], features=features, seed=seed)
        )
        dataset = ingested.outputs["dataset"]
        checked = let_through("require-data", place("check-data", check_data(checks=checks, dataset=dataset)))
        published = place(
            "publish-features",
            publish_features(gate=checked, features=features, dataset=dataset),
        )
        retrieval = place(
            "train-trm",
            train_trm(gate=checked, trm=trm, text=text, seed=seed, dataset=dataset),
        ).after(published)
        retrieves = let_through("require-trm", retrieval)
        world = {"dataset": dataset, "trm": retrieval.outputs["model"], "explore": explore, "text": text, "seed": seed}
        start = place(
            "build-policy",
            build_policy(gate=retrieves, policy=policy, warm_start=warm_start, **world),
        ).outputs["start"]

        def rolled(users: str, who: str, gate: Any, policy: Any, **more: Any) -> Any:
            made = rollout(users=users, gate=gate, select=select, policy=policy, **{"timed": False, **world, **more})
            return place(f"rollout-{who}", made)

        candidates = rolled("candidates", "candidates", retrieves, start).outputs["rollouts"]
        choosing = {"explore": explore, "rewards": rewards, "dataset": dataset, "seed": seed}
        prompts = place(
            "select-prompts",
            select_prompts(policy=policy, select=select, stage1=stage1, stage2=stage2, rollouts=candidates, **choosing),
        ).outputs["prompts"]
        learning = {"policy": policy, "rewards": rewards, "prompts": prompts, **world}
        first = place(
            "train-stage-1",
            train_stage(stage="stage1", gate=retrieves, settings=stage1, start=start, **learning),
        )
        explores = let_through("require-stage-1", first)
        second = place(
            "train-stage-2",
            train_stage(
                stage="stage2",
                gate=explores,
                settings=stage2,
                start=first.outputs["trained"],
                **learning,
            ),
        )
        ranks = let_through("require-stage-2", second)
        everything = place(
            "train-trm-everything",
            train_trm_everything(gate=retrieves, trm=trm, text=text, seed=seed, dataset=dataset),
        )
        if in_turn:
            everything.after(second)
        started = rolled("test", "start", retrieves, start)
        explored = rolled("test", "stage-1", explores, first.outputs["trained"])
        ranked = rolled("test", "stage-2", ranks, second.outputs["trained"], timed=True)
        if in_turn:
            ranked.after(explored.after(started.after(everything)))
        evaluated = place(
            "evaluate",
            evaluate(
                gate=ranks,
                rewards=rewards,
                evaluation=evaluation,
                trm_everything=everything.outputs["model"],
                start=start,
                candidates=candidates,
                prompts=prompts,
                stage1=first.outputs["trained"],
                stage2=second.outputs["trained"],
                start_rollouts=started.outputs["rollouts"],
                stage1_rollouts=explored.outputs["rollouts"],
                stage2_rollouts=ranked.outputs["rollouts"],
                **world,
            ),
        )
        serves = let_through("require-evaluation", evaluated)
        serving = place(
            "refit",
            refit(
                gate=serves,
                serve=evaluated.outputs["serve"],
                trm=trm,
                text=text,
                settings=bundle,
                seed=seed,
                dataset=dataset,
                policy_trm=retrieval.outputs["model"],
            ),
        )
        place(
            "publish-bundle",
            publish_bundle(
                gate=serves,
                text=text,
                explore=explore,
                settings=bundle,
                dataset=dataset,
                trm=serving.outputs["model"],
                policy=second.outputs["trained"],
                evaluation=evaluated.outputs["results"],
                features=published.outputs["published"],
            ),
        )

    pods.lift_retry_limit(training)
    return training


def arguments(config: Config, data_version: str = "") -> dict[str, Any]:
    """The pipeline's parameters for a configuration: each section as plain data, the policy's parts apart.

    A task is given only the sections it reads, so that another learning rate of stage 2 leaves everything before it
    valid. ``data_version`` is the caller's name of the source's contents; where it is empty, each run reads them for
    one. KFP's parameters cannot hold null, so that ``data.year_column`` is passed as "" where there is none, which the
    configuration reads as none.

    Raises:
        ConfigError: the engine is a server, which cannot have the policies that the run is yet to make; the stages'
            processes do not fit their pods; or answers are to be ranked by a policy that has learnt from no history.
    """
    _check_processes(config)
    if config.policy.model == "tiny" and config.policy.warm_start.asks_the_unlearnt:
        raise ConfigError(
            "policy.warm_start.judge is 'histories', but policy.warm_start.histories.passes is 0, and a policy that "
            "has learnt from no history has no opinion to rank answers by; set passes to 1 or more, or judge to 'lists'"
        )
    if config.explore.engine.kind == "server":
        raise ConfigError(
            f"explore.engine.kind is 'server', but the policies of a run are made while it runs, so that "
            f"{config.explore.engine.url} cannot be serving them; set it to 'transformers' or 'vllm'"
        )
    tree = config.model_dump(mode="json")
    tree["data"]["year_column"] = tree["data"]["year_column"] or ""
    parts = {name: tree["policy"].pop(name) for name in ("warm_start", "select", "stage1", "stage2")}
    names = ("data", "checks", "features", "text", "trm", "explore", "rewards", "policy", "evaluation", "bundle")
    return {**{name: tree[name] for name in names}, **parts, "seed": config.seed, "data_version": data_version}


def compile(config: Config, path: Path, data_version: str = "") -> None:
    """Write the pipeline as KFP v2 YAML, the configuration as its parameters' defaults; whole or not at all.

    Raises:
        ConfigError: the configuration's pods cannot be expressed, an image can be moved, a path lies on no volume, or
            the engine cannot be a run's.
        PipelineError: the file cannot be written.
    """
    given = arguments(config, data_version)
    pipeline = build(config.pipeline, environment=environment(config))
    pods.check_images(config.pipeline, TASKS)
    pods.check_paths(config, READERS)
    try:
        with tempfile.TemporaryDirectory(prefix=".deeprec-", dir=path.parent) as folder:
            draft = Path(folder) / "pipeline.yaml"
            compiler.Compiler().compile(pipeline, str(draft), pipeline_parameters=given)
            os.replace(draft, path)
    except OSError as error:
        raise PipelineError(f"cannot write {path}: {error.strerror}; name a file in a directory that exists") from error


def _check_processes(config: Config) -> None:
    """A stage's task is one pod, with an accelerator for each of its processes, or none at all."""
    parallel = config.policy.parallel
    if parallel.nodes > 1:
        raise ConfigError(
            f"policy.parallel.nodes is {parallel.nodes}, but a task of the pipeline is one pod; set it to 1, and train "
            f"the stages on several machines with `deeprec policy trainjob`"
        )
    for name in ("train-stage-1", "train-stage-2"):
        gpus = config.pipeline.pod(name).gpus
        if gpus not in (0, parallel.per_node):
            raise ConfigError(
                f"pipeline.tasks.{name}.gpus is {gpus}, but policy.parallel.per_node is {parallel.per_node}; each "
                f"process trains on one accelerator, so make them equal"
            )


def _promised(settings: PipelineConfig) -> dict[str, Any]:
    """The accelerators that tasks will ask for, and images of their own, as a part of the section ``pipeline``."""
    named = {name: settings.tasks.get(name, settings.default) for name in TASKS}
    tasks = {name: {"gpus": pod.gpus, "image": pod.image} for name, pod in named.items() if pod.gpus or pod.image}
    return {"tasks": tasks, "gpu_pool": settings.gpu_pool.model_dump(mode="json")} if tasks else {}


def _placement(settings: PipelineConfig, environment: Mapping[str, str]) -> Callable[[str, Any], Any]:
    """A function that gives a task its name, pod, retries and caching."""
    unknown = sorted(name for name in settings.tasks if name not in TASKS)
    if unknown:
        raise ConfigError(f"pipeline.tasks.{unknown[0]}: there is no such task; the tasks are {', '.join(TASKS)}")

    def place(name: str, task: Any) -> Any:
        pod = settings.pod(name)
        if name not in TASKS:
            pod = pod.model_copy(update={key: getattr(REQUIRE, key) for key in REQUIRE.model_fields_set})
        try:
            pods.dress(task, pod, settings.gpu_pool, environment)
        except ValueError as error:
            raise ConfigError(f"pipeline.tasks.{name}: {error}; correct the quantity") from error
        if name in TRAINING:
            pods.keep_checkpoints(task, settings)
        task.set_display_name(name)
        task.set_caching_options(name not in SIDE_EFFECTS | LOOKING)
        return task

    return place
