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
from deeprec.config.run import PARTS, SECTIONS, check_paths, check_run, to_parameters
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

ASKED = ("name", "overrides", *SECTIONS, *PARTS, "seed")
"""Parameters that the first task settles for all others; besides, there is ``data_version``."""

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
        name: str,
        data_version: str,
        overrides: str,
        data: dict,
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
        asked = {key: value for key, value in locals().items() if key in ASKED}
        given = place("preflight", preflight(pods=promised, **asked)).outputs
        seed = given["seed"]
        resolved = place(
            "resolve-data",
            resolve_data(data=given["data"], data_version=data_version, features=given["features"]),
        )
        ingested = place(
            "ingest",
            ingest(
                data=given["data"],
                data_version=resolved.outputs["version"],
                features=given["features"],
                seed=seed,
            ),
        )
        dataset, text, explore, rewards = ingested.outputs["dataset"], given["text"], given["explore"], given["rewards"]
        checked = let_through("require-data", place("check-data", check_data(checks=given["checks"], dataset=dataset)))
        published = place(
            "publish-features",
            publish_features(gate=checked, features=given["features"], dataset=dataset),
        )
        retrieval = place(
            "train-trm",
            train_trm(gate=checked, trm=given["trm"], text=text, seed=seed, dataset=dataset),
        ).after(published)
        retrieves = let_through("require-trm", retrieval)
        world = {"dataset": dataset, "trm": retrieval.outputs["model"], "explore": explore, "text": text, "seed": seed}
        start = place(
            "build-policy",
            build_policy(gate=retrieves, policy=given["policy"], warm_start=given["warm_start"], **world),
        ).outputs["start"]

        def rolled(users: str, who: str, gate: Any, policy: Any, **more: Any) -> Any:
            made = rollout(
                users=users, gate=gate, select=given["select"], policy=policy, **{"timed": False, **world, **more}
            )
            return place(f"rollout-{who}", made)

        candidates = rolled("candidates", "candidates", retrieves, start).outputs["rollouts"]
        choosing = {"explore": explore, "rewards": rewards, "dataset": dataset, "seed": seed}
        prompts = place(
            "select-prompts",
            select_prompts(
                policy=given["policy"],
                select=given["select"],
                stage1=given["stage1"],
                stage2=given["stage2"],
                rollouts=candidates,
                **choosing,
            ),
        ).outputs["prompts"]
        learning = {"policy": given["policy"], "rewards": rewards, "prompts": prompts, **world}
        first = place(
            "train-stage-1",
            train_stage(stage="stage1", gate=retrieves, settings=given["stage1"], start=start, **learning),
        )
        explores = let_through("require-stage-1", first)
        second = place(
            "train-stage-2",
            train_stage(
                stage="stage2",
                gate=explores,
                settings=given["stage2"],
                start=first.outputs["trained"],
                **learning,
            ),
        )
        ranks = let_through("require-stage-2", second)
        everything = place(
            "train-trm-everything",
            train_trm_everything(gate=retrieves, trm=given["trm"], text=text, seed=seed, dataset=dataset),
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
                evaluation=given["evaluation"],
                name=given["name"],
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
                trm=given["trm"],
                text=text,
                settings=given["bundle"],
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
                settings=given["bundle"],
                dataset=dataset,
                trm=serving.outputs["model"],
                policy=second.outputs["trained"],
                evaluation=evaluated.outputs["results"],
                features=published.outputs["published"],
            ),
        )

    pods.lift_retry_limit(training)
    _describe(training)
    return training


def arguments(config: Config, data_version: str = "") -> dict[str, Any]:
    """The pipeline's parameters for a configuration.

    ``data_version`` is the caller's name of the source's contents; where it is empty, each run reads them for one.

    Raises:
        ConfigError: a run cannot have these settings; see ``config.run.check_run``.
    """
    check_run(config)
    return {**to_parameters(config), "data_version": data_version, "overrides": ""}


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
    check_paths(config, _mounted(config.pipeline))
    try:
        with tempfile.TemporaryDirectory(prefix=".deeprec-", dir=path.parent) as folder:
            draft = Path(folder) / "pipeline.yaml"
            compiler.Compiler().compile(pipeline, str(draft), pipeline_parameters=given)
            os.replace(draft, path)
    except OSError as error:
        raise PipelineError(f"cannot write {path}: {error.strerror}; name a file in a directory that exists") from error


def _describe(graph: Any) -> None:
    """Say beside each parameter what it is, for the form that starts a run."""
    section = "as JSON, and simpler to change by overrides"
    told = {
        "name": "Name of the run; it stands above its report.",
        "data_version": "Your name of the data's contents; where it is empty, the run reads them for one.",
        "overrides": "Lines section.key=value, laid over what stands below: trm.epochs=20, policy.stage2.steps=40.",
        "seed": "The one seed.",
        **{name: f"{about[0].upper()}{about[1:]}; {section}." for name, about in {**SECTIONS, **PARTS}.items()},
    }
    parameters = graph.pipeline_spec.root.input_definitions.parameters
    for name, text in told.items():
        parameters[name].description = text


def _promised(settings: PipelineConfig) -> dict[str, Any]:
    """What the first task cannot see of the pods: accelerators that are asked for, images, and volumes by section."""
    named = {name: settings.tasks.get(name, settings.default) for name in TASKS}
    tasks = {name: {"gpus": pod.gpus, "image": pod.image} for name, pod in named.items() if pod.gpus or pod.image}
    pipeline = {"tasks": tasks, "gpu_pool": settings.gpu_pool.model_dump(mode="json")} if tasks else {}
    return {"pipeline": pipeline, "mounted": _mounted(settings)}


def _mounted(settings: PipelineConfig) -> dict[str, dict[str, list[str]]]:
    """Section with a path → tasks → where their volumes are."""
    return {
        section: {name: [mount.path for mount in settings.pod(name).volumes] for name in tasks}
        for section, tasks in READERS.items()
    }


def _placement(settings: PipelineConfig, environment: Mapping[str, str]) -> Callable[[str, Any], Any]:
    """A function that gives a task its name, pod, retries and caching."""
    unknown = sorted(name for name in settings.tasks if name not in TASKS)
    if unknown:
        raise ConfigError(f"pipeline.tasks.{unknown[0]}: there is no such task; the tasks are {', '.join(TASKS)}")

    def place(name: str, task: Any) -> Any:
        pod = settings.pod(name)
        if name not in TASKS:
            pod = pod.model_copy(update={key: getattr(REQUIRE, key) for key in REQUIRE.model_fields_set})
        if name == "preflight":  # what it finds wrong is as wrong a minute later
            pod = pod.model_copy(update={"retries": 0})
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
