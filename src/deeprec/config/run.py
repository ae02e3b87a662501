"""A run's configuration as the parameters of its pipeline, and back, with what a person overrides.

The parameters are what a run depends on: sections, the policy's parts apart, so that another learning rate of stage 2
leaves everything before it valid; name and seed. ``serving`` and ``pipeline`` are not among them: the one is the
servers', the other is in the compiled pods.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from deeprec.config.tree import Config, apply_override, parse_config
from deeprec.errors import ConfigError

SECTIONS = {
    "data": "what to read: source, path, columns, and how it is split",
    "checks": "what the data have to hold up to; the first gate",
    "features": "where histories are published, for the servers",
    "text": "the text encoder of phrases",
    "trm": "the traditional recommender, its training and its gate",
    "explore": "the policy's calls and answers, and the engine that generates them",
    "rewards": "what is rewarded, with which weight, in each stage",
    "policy": "the policy's model, its processes, adapters and generation",
    "evaluation": "intervals, trajectories in the report, and the last gate",
    "bundle": "what is published where, and whether it is served at once",
}
"""Section → what it is about."""
PARTS = {
    "warm_start": "what the tiny policy is shown first",
    "select": "how prompts are chosen by difficulty",
    "stage1": "the first stage: to explore; steps, learning rate, gate, bounds on its health",
    "stage2": "the second stage: to recommend; steps, learning rate, gate, bounds on its health",
}
"""Parts of the section ``policy`` that are parameters of their own → what they are about."""


def to_parameters(config: Config) -> dict[str, Any]:
    """Each parameter's value, as plain data without null.

    KFP's parameters cannot hold null, so that ``data.year_column`` is "" where there is none, which the configuration
    reads as none.
    """
    tree = config.model_dump(mode="json")
    tree["data"]["year_column"] = tree["data"]["year_column"] or ""
    parts = {name: tree["policy"].pop(name) for name in PARTS}
    return {"name": config.name, **{name: tree[name] for name in SECTIONS}, **parts, "seed": config.seed}


def from_parameters(given: Mapping[str, Any], overrides: str, pipeline: Mapping[str, Any]) -> Config:
    """The configuration that parameters say.

    Args:
        given: as of ``to_parameters``.
        overrides: lines ``section.key=value`` as after ``--set``, laid over them; blank ones and those that begin with
            ``#`` say nothing.
        pipeline: what is known of the section that is in the pods.

    Raises:
        ConfigError: a line is malformed, names a section that is no parameter, or what comes of it is not valid.
    """
    tree = {name: given[name] for name in ("name", *SECTIONS, "seed")}
    tree["policy"] = {**given["policy"], **{name: given[name] for name in PARTS}}
    for number, section, text in _lines(overrides):
        if section in ("pipeline", "release", "serving"):
            raise ConfigError(
                f"overrides, line {number}: {section} is no parameter of a run; "
                + ("set it where the server is started" if section == "serving" else "compile the pipeline again")
            )
        apply_override(tree, text, f"overrides, line {number}:")
    return parse_config({**tree, "pipeline": pipeline}, "the run's parameters")


def overridden(name: str, section: Mapping[str, Any], overrides: str) -> dict[str, Any]:
    """A section with those lines of ``overrides`` laid over it that are of it."""
    tree: dict[str, Any] = {name: dict(section)}
    for number, of, text in _lines(overrides):
        if of == name:
            apply_override(tree, text, f"overrides, line {number}:")
    return dict(tree[name])


def _lines(overrides: str) -> Iterator[tuple[int, str, str]]:
    """Number, section and text of each line that says something."""
    for number, line in enumerate(overrides.splitlines(), start=1):
        text = line.strip()
        if text and not text.startswith("#"):
            yield number, text.partition("=")[0].partition(".")[0].strip(), text


def check_run(config: Config) -> None:
    """See that a run can have these settings.

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


def check_paths(config: Config, mounted: Mapping[str, Mapping[str, Iterable[str]]]) -> None:
    """See that every path of the configuration lies on a volume of each pod that reads or writes it.

    Args:
        mounted: section → the tasks that are given it → where their volumes are.

    Raises:
        ConfigError: one does not, or a place is not named at all.
    """
    if config.features.place == "directory" and not config.features.path:
        raise ConfigError(
            "features.path is empty, so that histories would end with a pod; set it to a directory on a volume, or "
            "features.place to 'cluster'"
        )
    for key, path in _paths(config).items():
        place = PurePosixPath(os.path.normpath(path))
        for task, volumes in mounted[key.partition(".")[0]].items():
            if not any(place.is_relative_to(volume) for volume in volumes):
                raise ConfigError(
                    f"{key} is {path!r}, which lies on no volume of the pod of {task}; name the claim that holds it, "
                    f"as in pipeline.default.volumes: [{{claim: NAME, path: {_root(path)}}}]"
                )


def _paths(config: Config) -> dict[str, str]:
    """Key → a path on a disk that it names; addresses and names of models are none."""
    named = {
        "data.path": config.data.path if config.data.source != "sample" else "",
        "features.path": config.features.path if config.features.place == "directory" else "",
        "features.offline": config.features.offline if config.features.place == "cluster" else "",
        "trm.continue_from": config.trm.continue_from,
        "bundle.uri": config.bundle.uri,
        "text.model": config.text.model if config.text.model.startswith((".", "/", "~")) else "",
        "policy.model": config.policy.model if config.policy.model.startswith((".", "/", "~")) else "",
    }
    return {key: path for key, path in named.items() if path and "://" not in path}


def _root(path: str) -> str:
    return str(PurePosixPath(path)) if path.startswith("/") else "/data"


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
