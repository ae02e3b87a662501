"""An InferenceService as a release writes it and reads it back: which versions it has, and how many requests each gets.

One predictor name a version (``r-VERSION``), never edited once its pods are there: what a canary was made with is what
is promoted, so that promotion starts no pod. Facts about KServe's Standard mode that this rests on: the canary's
predictor is laid over the stable one's, lists replaced whole; a name changes only with the storage URI; what the spec
does not name is deleted; a canary's ``minReplicas`` may not be above the stable one's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deeprec import __version__
from deeprec.bundle.shelf import VERSION
from deeprec.config import ReleaseConfig
from deeprec.types import JsonDict

MODEL_FORMAT, POLICY_FORMAT = "deeprec", "deeprec-policy"
CONTAINER = "kserve-container"
"""The runtime's container, over which the model's environment is laid; KServe's definition asks canaries for it."""
_FOR_STABLE_ALONE = ("workerSpec", "maxReplicas", "scaleTarget", "scaleMetric", "scaleMetricType", "autoScaling")
"""What a canary may not have."""


@dataclass(frozen=True)
class Predictor:
    """One version of an InferenceService: its predictor, its per cent of the requests, and whether its pods are ready.

    ``version`` is None for a predictor that no release has made; ``failure`` what KServe says of a model that cannot
    be loaded.
    """

    name: str
    version: str | None
    weight: int
    ready: bool
    failure: str
    raw: JsonDict

    def service(self, isvc: str) -> str:
        """Name of its Kubernetes Service."""
        return service_name(isvc, self.name)


@dataclass(frozen=True)
class State:
    """What a cluster says of an InferenceService; ``current`` whether KServe has seen the newest specification."""

    stable: Predictor
    canaries: tuple[Predictor, ...]
    current: bool
    url: str

    def of(self, version: str) -> Predictor | None:
        """The predictor of a version."""
        return next((one for one in (self.stable, *self.canaries) if one.version == version), None)

    @property
    def versions(self) -> set[str]:
        """All that are there."""
        return {one.version for one in (self.stable, *self.canaries) if one.version}


def read_state(isvc: JsonDict) -> State:
    """The state that an InferenceService's specification and status tell."""
    spec, status = isvc["spec"], isvc.get("status", {})
    conditions = {one["type"]: one["status"] == "True" for one in status.get("conditions", ())}
    told = {one["name"]: one for one in status.get("canaryStatuses") or ()}
    canaries = tuple(
        _predictor(one["predictor"], one["trafficPercent"], told.get(one["predictor"]["name"], {}))
        for one in spec.get("canary") or ()
    )
    stable = {"ready": conditions.get("PredictorReady", False), "modelStatus": status.get("modelStatus", {})}
    left = 100 - sum(one.weight for one in canaries if one.ready)
    return State(
        _predictor(spec["predictor"], left, stable),
        canaries,
        status.get("observedGeneration") == isvc["metadata"].get("generation"),
        str(status.get("url", "")),
    )


def service_name(isvc: str, predictor: str) -> str:
    """Name of a predictor's Deployment and Service."""
    return f"{isvc}-{predictor}-predictor" if predictor else f"{isvc}-predictor"


def predictor_name(version: str) -> str:
    """Name of a version's predictor."""
    return f"r-{version}"


def policy_service(config: ReleaseConfig, version: str) -> str:
    """Name of the InferenceService of a version's policy."""
    return f"{config.name}-policy-{version}"


def runtime_of(config: ReleaseConfig, component: str) -> str:
    """The ServingRuntime of new versions: the one that is named, or the chart's of this version of deeprec."""
    named = {"recommender": config.runtime, "policy": config.policy_runtime}.get(component)
    return named or f"deeprec-{component}-{re.sub(r'[.+]', '-', __version__).lower()}"


def runtimes(config: ReleaseConfig) -> list[str]:
    """The ServingRuntimes that a release needs."""
    components = ["recommender", *(["trm"] if config.trm else []), *(["policy"] if config.policy else [])]
    return [runtime_of(config, component) for component in components]


def of_recommender(config: ReleaseConfig, namespace: str, shelf: str, version: str, policy: bool) -> JsonDict:
    """A version's predictor, the recommender's; ``policy`` where its policy has a server of its own."""
    env = [{"name": "DEEPREC_BUNDLE", "value": f"{shelf}@{version}"}]
    if policy:
        address = f"http://{service_name(policy_service(config, version), '')}.{namespace}.svc"
        env.append({"name": "DEEPREC__SERVING__POLICY_URL", "value": address})
    return _made(
        config, predictor_name(version), MODEL_FORMAT, runtime_of(config, "recommender"), f"{shelf}/{version}", env
    )


def of_trm(config: ReleaseConfig, shelf: str, version: str) -> JsonDict:
    """A version's predictor, the TRM's alone."""
    env = [{"name": "DEEPREC_BUNDLE", "value": f"{shelf}@{version}"}]
    return _made(config, predictor_name(version), MODEL_FORMAT, runtime_of(config, "trm"), f"{shelf}/{version}", env)


def of_policy(config: ReleaseConfig, shelf: str, version: str) -> JsonDict:
    """The predictor of a version's policy on vLLM."""
    env = [{"name": "DEEPREC_BUNDLE", "value": f"{shelf}@{version}"}]
    made = _made(config, "", POLICY_FORMAT, runtime_of(config, "policy"), f"{shelf}/{version}", env)
    if config.strategy == "replace":
        made["deploymentStrategy"] = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    return {name: value for name, value in made.items() if name != "name"}


def as_service(namespace: str, name: str, stable: JsonDict, canaries: Sequence[tuple[int, JsonDict]] = ()) -> JsonDict:
    """An InferenceService whose ``stable`` predictor gets what the canaries (per cent, predictor) do not."""
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": "deeprec-release"},
            "annotations": {
                "serving.kserve.io/deploymentMode": "Standard",
                "serving.kserve.io/autoscalerClass": "none",
            },
        },
        "spec": {
            "predictor": stable,
            "canary": [{"trafficPercent": weight, "predictor": predictor} for weight, predictor in canaries],
        },
    }


def as_canary(predictor: JsonDict, stable: JsonDict, weight: int) -> tuple[int, JsonDict]:
    """A predictor beside ``stable``, with as many pods as its share of the requests needs, one at least."""
    least = int(stable.get("minReplicas", 1))
    kept = {name: value for name, value in predictor.items() if name not in _FOR_STABLE_ALONE}
    return weight, {**kept, "minReplicas": max(1, math.ceil(least * weight / 100))}


def as_stable(predictor: JsonDict, before: JsonDict) -> JsonDict:
    """A canary's predictor in the place of the one before, with that one's replicas."""
    kept = {name: before[name] for name in ("minReplicas", *_FOR_STABLE_ALONE) if name in before}
    return {**predictor, **kept}


def _made(
    config: ReleaseConfig, name: str, form: str, runtime: str, storage: str, env: list[dict[str, str]]
) -> JsonDict:
    identity: JsonDict = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if config.user:
        identity |= {"runAsUser": config.user, "runAsGroup": 0, "fsGroup": config.user}
    return {
        "name": name,
        "minReplicas": config.replicas,
        "timeout": config.timeout_seconds,
        "serviceAccountName": config.service_account,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": config.stop_seconds,
        "securityContext": identity,
        "model": {
            "name": CONTAINER,
            "modelFormat": {"name": form},
            "runtime": runtime,
            "storageUri": storage,
            "env": env,
        },
    }


def _predictor(raw: JsonDict, weight: int, status: JsonDict) -> Predictor:
    return Predictor(
        str(raw.get("name", "")), _version(raw), weight, bool(status.get("ready")), _failure(status), dict(raw)
    )


def _version(raw: JsonDict) -> str | None:
    model: JsonDict = raw.get("model") or {}
    env: Any = {one["name"]: one.get("value", "") for one in model.get("env") or ()}
    for told in (model.get("storageUri") or "", env.get("DEEPREC_BUNDLE") or ""):
        last = re.split(r"[/@]", told)[-1]
        if VERSION.fullmatch(last):
            return last
    return None


def _failure(status: JsonDict) -> str:
    told = status.get("modelStatus") or {}
    failure = told.get("lastFailureInfo") or {}
    if told.get("transitionStatus") not in ("BlockedByFailedLoad", "InvalidSpec"):
        return ""
    return ": ".join(str(failure[key]) for key in ("reason", "message") if failure.get(key)) or "it cannot be loaded"
