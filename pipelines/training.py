"""The training pipeline: from a source of interactions to a published bundle, as one KFP v2 graph.

``build`` makes the graph for a set of pods (image, CPU, memory, accelerators, retries); what is learned from which data
is in the pipeline's parameters, one per configuration section, so that a schedule changes nothing else and KFP's cache
sees every input; what can change without them, the source's contents, is named by the first task. Gates succeed and
hand their verdict on; the next task refuses. No ``dsl.If``: KFP's local runner takes every condition for false. KFP
reads annotations as objects, so this file does without postponed ones.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kfp import compiler, dsl, kubernetes

from deeprec.components.boundary import CLAIM, GPUS
from deeprec.components.build_policy import build_policy
from deeprec.components.check_data import check_data
from deeprec.components.evaluate import evaluate
from deeprec.components.ingest import ingest
from deeprec.components.publish_bundle import publish_bundle
from deeprec.components.publish_features import publish_features
from deeprec.components.refit import refit
from deeprec.components.resolve_data import resolve_data
from deeprec.components.select_prompts import select_prompts
from deeprec.components.train_stage import train_stage
from deeprec.components.train_trm import train_trm
from deeprec.components.train_trm_everything import train_trm_everything
from deeprec.config import Config, GpuPool, PipelineConfig, TaskResources
from deeprec.errors import ConfigError, PipelineError

NAME = "deeprec-training"

TASKS = (
    "resolve-data",
    "ingest",
    "check-data",
    "publish-features",
    "train-trm",
    "build-policy",
    "select-prompts",
    "train-stage-1",
    "train-stage-2",
    "train-trm-everything",
    "evaluate",
    "refit",
    "publish-bundle",
)
"""Every task, in order; the names under ``pipeline.tasks`` and in a run's figures."""

TRAINING = frozenset({"train-trm", "train-stage-1", "train-stage-2", "train-trm-everything", "refit"})
"""Tasks that go on from a checkpoint when they are started again."""

CHECKPOINTS = "/mnt/checkpoints"
"""Where their claim is mounted."""

LOOKING = frozenset({"resolve-data"})
"""Tasks that look at what may have changed meanwhile; neither KFP's cache nor a resumed run takes an earlier result."""

SIDE_EFFECTS = frozenset({"publish-features", "publish-bundle"})
"""Tasks that change something outside their own artifacts; KFP never caches them."""


def build(settings: PipelineConfig, *, in_turn: bool = False) -> Any:
    """The pipeline for these pods: a KFP graph component that can be compiled, or called to run locally.

    Args:
        in_turn: the TRM on everything waits for stage 2, though it needs nothing of it. Where tasks run one after the
            other, as locally, ``TASKS`` is their order then; KFP's own differs from one process to the next.

    Raises:
        ConfigError: ``settings`` names a task that does not exist, or a quantity Kubernetes does not know.
    """
    place = _placement(settings)

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
        resolved = place("resolve-data", resolve_data(data=data, data_version=data_version, features=features))
        ingested = place(
            "ingest", ingest(data=data, data_version=resolved.outputs["version"], features=features, seed=seed)
        )
        dataset = ingested.outputs["dataset"]
        checked = place("check-data", check_data(checks=checks, dataset=dataset))
        published = place(
            "publish-features",
            publish_features(gate=checked.outputs["verdict"], features=features, dataset=dataset),
        )
        retrieval = place(
            "train-trm",
            train_trm(gate=checked.outputs["verdict"], trm=trm, text=text, seed=seed, dataset=dataset),
        ).after(published)
        world = {"dataset": dataset, "trm": retrieval.outputs["model"], "explore": explore, "text": text, "seed": seed}
        start = place(
            "build-policy",
            build_policy(gate=retrieval.outputs["verdict"], policy=policy, warm_start=warm_start, **world),
        ).outputs["start"]
        world["rewards"] = rewards
        prompts = place(
            "select-prompts",
            select_prompts(policy=policy, select=select, stage1=stage1, stage2=stage2, start=start, **world),
        ).outputs["prompts"]
        learning = {"policy": policy, "prompts": prompts, **world}
        first = place(
            "train-stage-1",
            train_stage(stage="stage1", gate=retrieval.outputs["verdict"], settings=stage1, start=start, **learning),
        )
        second = place(
            "train-stage-2",
            train_stage(
                stage="stage2",
                gate=first.outputs["verdict"],
                settings=stage2,
                start=first.outputs["trained"],
                **learning,
            ),
        )
        everything = place(
            "train-trm-everything",
            train_trm_everything(gate=retrieval.outputs["verdict"], trm=trm, text=text, seed=seed, dataset=dataset),
        )
        if in_turn:
            everything.after(second)
        evaluated = place(
            "evaluate",
            evaluate(
                gate=second.outputs["verdict"],
                evaluation=evaluation,
                trm_everything=everything.outputs["model"],
                start=start,
                prompts=prompts,
                stage1=first.outputs["trained"],
                stage2=second.outputs["trained"],
                **world,
            ),
        )
        serving = place(
            "refit",
            refit(
                gate=evaluated.outputs["verdict"],
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
                gate=evaluated.outputs["verdict"],
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
        ConfigError: the configuration's pods cannot be expressed, or its engine cannot be a run's.
        PipelineError: the file cannot be written.
    """
    pipeline = build(config.pipeline)
    try:
        with tempfile.TemporaryDirectory(prefix=".deeprec-", dir=path.parent) as folder:
            draft = Path(folder) / "pipeline.yaml"
            compiler.Compiler().compile(pipeline, str(draft), pipeline_parameters=arguments(config, data_version))
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
        gpus = config.pipeline.tasks.get(name, config.pipeline.default).gpus
        if gpus not in (0, parallel.per_node):
            raise ConfigError(
                f"pipeline.tasks.{name}.gpus is {gpus}, but policy.parallel.per_node is {parallel.per_node}; each "
                f"process trains on one accelerator, so make them equal"
            )


def _placement(settings: PipelineConfig) -> Callable[[str, Any], Any]:
    """A function that gives a task its name, pod, retries and caching."""
    unknown = sorted(name for name in settings.tasks if name not in TASKS)
    if unknown:
        raise ConfigError(f"pipeline.tasks.{unknown[0]}: there is no such task; the tasks are {', '.join(TASKS)}")

    def place(name: str, task: Any) -> Any:
        resources = settings.tasks.get(name, settings.default)
        try:
            _give_resources(task, resources, settings)
        except ValueError as error:
            raise ConfigError(f"pipeline.tasks.{name}: {error}; correct the quantity") from error
        if name in TRAINING and settings.checkpoints_claim:
            kubernetes.mount_pvc(task, pvc_name=settings.checkpoints_claim, mount_path=CHECKPOINTS)
            task.set_env_variable(CLAIM, CHECKPOINTS)
        task.set_display_name(name)
        task.set_caching_options(name not in SIDE_EFFECTS | LOOKING)
        return task

    return place


def _give_resources(task: Any, resources: TaskResources, settings: PipelineConfig) -> None:
    task.set_container_image(resources.image or settings.image)
    task.set_cpu_request(resources.cpu).set_cpu_limit(resources.cpu)
    task.set_memory_request(resources.memory).set_memory_limit(resources.memory)
    if resources.retries:
        task.set_retry(num_retries=resources.retries, backoff_duration="60s")
    if resources.gpus:
        _give_accelerators(task, resources.gpus, settings.gpu_pool)


def _give_accelerators(task: Any, count: int, pool: GpuPool) -> None:
    task.set_accelerator_type(pool.accelerator).set_accelerator_limit(count)
    task.set_env_variable(GPUS, str(count))
    for key, value in pool.node_selector.items():
        kubernetes.add_node_selector(task, label_key=key, label_value=value)
    for toleration in pool.tolerations:
        kubernetes.add_toleration(task, **toleration)
    kubernetes.empty_dir_mount(
        task, volume_name="shared-memory", mount_path="/dev/shm", medium="Memory", size_limit=pool.shared_memory
    )
