"""The training pipeline: from a source of interactions to a published bundle, as one KFP v2 graph.

``build`` makes the graph for a set of pods (image, CPU, memory, accelerators, retries); what is learned from which data
is in the pipeline's parameters, one per configuration section, so that a schedule changes nothing else and KFP's cache
sees every input; what can change without them, the source's contents, is named by the second task. The tasks and what
flows between them are in ``graph``. KFP reads annotations as objects, so this file does without postponed ones.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kfp import compiler, dsl

from deeprec.components.preflight import preflight
from deeprec.components.require import require
from deeprec.config import Config, PipelineConfig, PodTemplate, ReleaseConfig
from deeprec.config.run import PARTS, SECTIONS, check_paths, check_run, to_parameters
from deeprec.errors import ConfigError, PipelineError
from deeprec.pipelines import pods
from deeprec.pipelines.environment import environment
from deeprec.pipelines.graph import Graph
from deeprec.release import STEPS

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

RELEASING = ("compare-with-live", *(f"release-{step}" for step in STEPS), "release-end")
"""Tasks of a compiled pipeline that releases what it has published."""

NO_RELEASE = ReleaseConfig()

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
    "trm": ("preflight", "train-trm", "train-trm-everything", "refit"),
    "policy": ("build-policy", "train-stage-1", "train-stage-2"),
    "bundle": ("preflight", "publish-bundle"),
}
"""Section with a path → the tasks that read or write there; pinned by a test."""

SIDE_EFFECTS = frozenset({"publish-features", "publish-bundle", *RELEASING, "require-compare"})
"""Tasks that change something outside their own artifacts; KFP never caches them."""


def build(
    settings: PipelineConfig,
    *,
    in_turn: bool = False,
    environment: Mapping[str, str] = MappingProxyType({}),
    release: ReleaseConfig = NO_RELEASE,
) -> Any:
    """The pipeline for these pods: a KFP graph component that can be compiled, or called to run locally.

    A small task stands behind each gate, so that a refusal asks for no accelerator and is not tried again; the task
    that follows looks at the verdict all the same.

    Args:
        in_turn: for a machine where tasks run one after the other. The TRM on everything waits for stage 2, though it
            needs nothing of it, so that ``TASKS`` is the order (KFP's own differs from one process to the next), and
            nothing stands behind the gates.
        environment: variables of every task.
        release: how what was published reaches users, where it is enabled; a KFP server alone can run these tasks.

    Raises:
        ConfigError: ``settings`` names a task that does not exist, or a quantity Kubernetes does not know.
    """
    place = _placement(settings, environment)
    promised: dict[str, Any] = {} if in_turn else _promised(settings)
    to_users = release.model_dump(mode="json") if release.enabled else {}
    if to_users:
        promised |= {"release": to_users}

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
        graph = Graph(place, let_through, in_turn, given)
        graph.prepare(data_version)
        graph.retrieve()
        graph.learn()
        graph.judge()
        graph.publish()
        if to_users:
            graph.release(to_users, asked["bundle"], overrides)

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
    if config.release.enabled and not config.bundle.uri:
        raise ConfigError(
            "release.enabled is true, but bundle.uri is empty; name the shelf that releases are made from"
        )
    pipeline = build(config.pipeline, environment=environment(config), release=config.release)
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
    unknown = sorted(name for name in settings.tasks if name not in (*TASKS, *RELEASING))
    if unknown:
        known = ", ".join((*TASKS, *RELEASING))
        raise ConfigError(f"pipeline.tasks.{unknown[0]}: there is no such task; the tasks are {known}")

    def place(name: str, task: Any) -> Any:
        pod = settings.pod(name)
        if name not in (*TASKS, *RELEASING):
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
