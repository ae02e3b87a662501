"""What has to be there before anything is computed: the checks of a training run, all told at once.

A check has a name, and says in a sentence what it found; what is missing is an error of ours, whose sentence says what
to do. ``deeprec doctor`` runs the list, and so does the pipeline's first task, in a pod as the others have it.
"""

from __future__ import annotations

import importlib.util
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from deeprec.config import Config, DataConfig, FeaturesConfig, GpuPool, TrmConfig
from deeprec.config.run import check_run
from deeprec.errors import ConfigError, DeepRecError, PipelineError, StoreError
from deeprec.objects import is_s3, open_objects

HUB_SECONDS = 20.0


@dataclass(frozen=True)
class Check:
    """Something that has to hold: ``look`` says how it does, or raises an error of ours."""

    name: str
    look: Callable[[], str]


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    name: str
    passed: bool
    sentence: str

    def __str__(self) -> str:
        return f"{'✓' if self.passed else '✗'} {self.name}: {self.sentence}"


def examine(checks: Sequence[Check]) -> list[Finding]:
    """Run all checks, whatever the others found."""
    return [_found(check) for check in checks]


def _found(check: Check) -> Finding:
    try:
        return Finding(check.name, True, check.look())
    except DeepRecError as error:
        return Finding(check.name, False, " ".join(str(error).split()))


def require_all(findings: Sequence[Finding]) -> None:
    """
    Raises:
        PipelineError: some did not pass; the message has every one of their sentences.
    """
    missing = [finding for finding in findings if not finding.passed]
    if missing:
        told = "; and ".join(f"{finding.name}: {finding.sentence}" for finding in missing)
        raise PipelineError(f"{len(missing)} of {len(findings)} checks did not pass: {told}")


def training_checks(config: Config) -> list[Check]:
    """What a training run needs, in the order in which it would miss it."""
    return [
        Check("settings", partial(settings, config)),
        Check("data", partial(data, config.data)),
        Check("feature place", partial(feature_place, config.features)),
        *_store_checks(config),
        *([Check("former TRM", partial(former, config.trm))] if config.trm.continue_from else []),
        *(Check(f"model {name}", partial(hub, name)) for name in _models(config)),
        *_engine_checks(config),
        *_accelerator_checks(config),
    ]


def settings(config: Config) -> str:
    """Whether a run can have these settings; see ``config.run.check_run`` for what it raises."""
    check_run(config)
    return "a run can have them"


def data(settings: DataConfig) -> str:
    """Whether there is a source; see ``data.version.check_source`` for what it raises."""
    from deeprec.data.version import check_source

    check_source(settings)
    return "generated" if settings.source == "sample" else f"there is something at {settings.path}"


def feature_place(settings: FeaturesConfig) -> str:
    """Whether every part of the place can be reached, and its tables are of this version.

    Raises:
        ConfigError, FeatureError, StoreError: not so.
    """
    from deeprec.features.places import open_place

    if settings.place == "directory":
        if not settings.path:
            return "none is named yet"
        _writable(Path(settings.path))
        return f"{settings.path} can be written"
    place = open_place(settings)
    try:
        place.reach()
    finally:
        place.close()
    return f"{place.name} and its Redis can be reached, tables of this version"


def former(settings: TrmConfig) -> str:
    """Whether there is a bundle to continue from, with which a training of these settings can begin; see
    ``bundle.former.pinned`` for what it raises.
    """
    from deeprec.bundle.former import pinned

    return f"training begins with {pinned(settings).continue_from}"


def store(address: str) -> str:
    """Whether objects of S3 can be written, read, and written on condition, as pointers are moved; a directory written.

    Raises:
        StoreError: not so; the address and what refuses are named.
    """
    if not is_s3(address):
        _writable(Path(address))
        return f"{address} can be written"
    objects, name = open_objects(address), f".deeprec-doctor-{uuid.uuid4().hex}"
    try:
        objects.swap(name, b"deeprec", None)
        found = objects.read(name)
    finally:
        objects.remove(name)
    if found is None or found.content != b"deeprec":
        raise StoreError(f"what was written to {address} could not be read again; see which store answers there")
    return f"{address} can be written, read, and written on condition"


def hub(model: str) -> str:
    """Whether the Hugging Face hub, or its cache here, has a model that this account may read.

    Raises:
        ConfigError: not so.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if isinstance(try_to_load_from_cache(model, "config.json"), str):
        return "it is in the cache"
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        raise ConfigError(f"{model!r} is not in the cache, and HF_HUB_OFFLINE is 1; download it first, or unset that")
    try:
        HfApi().model_info(model, timeout=HUB_SECONDS)
    except GatedRepoError as error:
        cure = "accept its licence on the hub, and give a token of that account as HF_TOKEN"
        raise ConfigError(f"{model!r} may not be read by this account; {cure}") from error
    except RepositoryNotFoundError as error:
        cure = "correct the name, or give a token that may read it as HF_TOKEN"
        raise ConfigError(f"the hub has no model {model!r} for this account; {cure}") from error
    except HfHubHTTPError as error:
        told = error.response.status_code if error.response is not None else "nothing"
        raise ConfigError(f"the hub answers {told} for {model!r}; check HF_TOKEN and HF_ENDPOINT") from error
    except Exception as error:  # no network: what is raised depends on the client
        cure = "let the pods reach it or its mirror (HF_ENDPOINT), or name a directory"
        raise ConfigError(f"the hub cannot be asked for {model!r} ({type(error).__name__}); {cure}") from error
    return "the hub has it for this account"


def accelerators(wanted: Mapping[str, int], pool: GpuPool) -> str:
    """Whether some node of the pool has as many accelerators as the largest task asks for.

    Raises:
        ConfigError: none has.
    """
    task = max(wanted, key=wanted.__getitem__)
    nodes = _nodes()
    if nodes is None:
        return "not looked at: there is no cluster here, or this account may not list its nodes"
    there = [
        int(allocatable.get(pool.accelerator, 0))
        for labels, allocatable in nodes
        if pool.node_selector.items() <= labels.items()
    ]
    if wanted[task] > max(there, default=0):
        chosen = ", ".join(f"{key}={value}" for key, value in pool.node_selector.items()) or "any label"
        raise ConfigError(
            f"pipeline.tasks.{task}.gpus is {wanted[task]}, and the {len(there)} nodes with {chosen} have at most "
            f"{max(there, default=0)} of {pool.accelerator}; correct pipeline.gpu_pool, or add such nodes"
        )
    return f"a node has the {wanted[task]} of {pool.accelerator} that {task} asks for"


def _nodes() -> list[tuple[dict[str, str], dict[str, str]]] | None:
    """Labels and what can be allocated, of each node of the cluster that this runs in; None where that is not known."""
    if not os.environ.get("KUBERNETES_SERVICE_HOST"):
        return None
    from kubernetes import client, config

    try:
        config.load_incluster_config()
        listed: Any = client.CoreV1Api().list_node(_request_timeout=HUB_SECONDS)
    except (client.ApiException, config.ConfigException, OSError):
        return None
    return [(dict(node.metadata.labels or {}), dict(node.status.allocatable or {})) for node in listed.items]


def _store_checks(config: Config) -> Iterator[Check]:
    named = {"bundle.uri": config.bundle.uri}
    if config.features.place == "cluster":
        named["features.offline"] = config.features.offline
    for key, address in named.items():
        if address:
            yield Check(f"store, {key}", partial(store, address))


def _models(config: Config) -> list[str]:
    """Names that only the hub can answer."""
    named = [config.policy.model] if config.policy.model != "tiny" else []
    named += [config.text.model] if config.text.provider == "sentence-transformers" else []
    return [name for name in named if not name.startswith(("/", ".", "~")) and not Path(name).exists()]


def _engine_checks(config: Config) -> Iterator[Check]:
    kinds = {
        "explore.engine.kind": config.explore.engine.kind,
        "policy.generation.engine": config.policy.generation.engine,
    }
    for key, kind in kinds.items():
        if kind == "vllm":
            yield Check(f"vLLM, {key}", partial(vllm, key, config))


def vllm(key: str, config: Config) -> str:
    """Whether vLLM is installed; not known of tasks that run in images of their own.

    Raises:
        ConfigError: it is not.
    """
    elsewhere = [name for name, pod in config.pipeline.tasks.items() if pod.image and pod.gpus]
    if elsewhere:
        return f"not looked at: {', '.join(elsewhere)} run in images of their own"
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(f"{key} is 'vllm', which is not installed here; take an image with deeprec[train,gpu]")
    return "installed"


def _accelerator_checks(config: Config) -> Iterator[Check]:
    wanted = {name: pod.gpus for name, pod in config.pipeline.tasks.items() if pod.gpus}
    if wanted:
        yield Check("accelerators", partial(accelerators, wanted, config.pipeline.gpu_pool))


def _writable(path: Path) -> None:
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise StoreError(f"nothing can be written at {path}; correct its permissions, or name another place")
