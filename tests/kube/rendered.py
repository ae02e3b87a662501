"""The chart as it renders: objects with the file each comes from, the pods that they make, and what holds for all.

A rule yields a sentence for each fault, with file, object and cure.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import yaml

from tests.kube.tools import run

CHART = Path(__file__).parents[2] / "helm" / "deeprec"
NAMESPACE = "shop"


@dataclass(frozen=True)
class Rendered:
    """An object, and the file of the chart that it comes from."""

    file: str
    object: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.object["kind"])

    @property
    def name(self) -> str:
        return str(self.object["metadata"]["name"])

    def __str__(self) -> str:
        return f"{self.file}: {self.kind} {self.name}"


@dataclass(frozen=True)
class Pod:
    """A pod that some object makes; ``runtime`` says that pod-level fields are an InferenceService's to give."""

    of: Rendered
    spec: dict[str, Any]
    labels: Mapping[str, str]
    runtime: bool = False

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", ()), *self.spec["containers"]]


def render(*options: object, release: str = "deeprec") -> list[Rendered]:
    """What ``helm template`` renders with these options, its test included."""
    text = run("helm", "template", release, CHART, "--namespace", NAMESPACE, *options)
    return parse(text)


def parse(text: str) -> list[Rendered]:
    """Objects of a stream of documents, each with its ``# Source``."""
    found = []
    for part in re.split(r"^---$", text, flags=re.MULTILINE):
        tree = yaml.safe_load(part)
        if tree:
            source = re.search(r"# Source: deeprec/(\S+)", part)
            found.append(Rendered(source[1] if source else "", tree))
    return found


def render_values(values: Mapping[str, Any], place: Path) -> list[Rendered]:
    """Rendered with these values over the defaults."""
    file = place / "values.json"
    file.write_text(json.dumps(values), encoding="utf-8")
    return render("--values", file)


def pods(objects: Sequence[Rendered]) -> Iterator[Pod]:
    """Every pod that the objects make; a runtime's as KServe merges it with an InferenceService that names it."""
    services = [one for one in objects if one.kind == "InferenceService"]
    for one in objects:
        spec = one.object.get("spec", {})
        if one.kind == "Pod":
            yield Pod(one, spec, one.object["metadata"].get("labels", {}))
        elif one.kind in ("Deployment", "Job"):
            yield Pod(one, spec["template"]["spec"], spec["template"]["metadata"]["labels"])
        elif one.kind == "CronJob":
            template = spec["jobTemplate"]["spec"]["template"]
            yield Pod(one, template["spec"], template["metadata"]["labels"])
        elif one.kind == "ServingRuntime":
            of_pod = ("containers", "volumes", "nodeSelector", "tolerations", "imagePullSecrets")
            own = {key: spec[key] for key in of_pod if key in spec}
            served = [each for each in services if each.object["spec"]["predictor"]["model"]["runtime"] == one.name]
            for each in served:
                predictor = dict(each.object["spec"]["predictor"])
                model = predictor.pop("model")
                [container] = own["containers"]
                env = {part["name"]: part for part in (*container["env"], *model.get("env", ()))}
                merged = {**container, "env": [*env.values()]}
                text = json.dumps(merged).replace("{{.Name}}", each.name)
                yield Pod(each, {**predictor, **own, "containers": [json.loads(text)]}, spec["labels"])
            if not served:
                yield Pod(one, own, spec["labels"], runtime=True)


# ------------------------------------------------------------------------------------------------------------- rules

RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
SECRETIVE = re.compile(r"KEY|TOKEN$|PASSWORD|SECRET|DATABASE|REDIS")
DOCUMENTED = {
    "deeprec-store": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
    "deeprec-features": {"DEEPREC_DATABASE", "DEEPREC_REDIS"},
    "events-token": {"token"},
    "training": {"config.yaml"},
}
"""The Secrets and the ConfigMap of the tests' values, and the keys that the chart's README says they have to have."""


def faults(objects: Sequence[Rendered]) -> list[str]:
    """Everything that is wrong with rendered objects."""
    found = [fault for pod in pods(objects) for fault in (*_pod_faults(pod), *_reference_faults(pod, objects))]
    return [*found, *_selector_faults(objects), *_account_faults(objects)]


def _pod_faults(pod: Pod) -> Iterator[str]:
    spec, of = pod.spec, pod.of
    if not pod.runtime:
        context = spec.get("securityContext", {})
        if not context.get("runAsNonRoot") or context.get("seccompProfile") != RESTRICTED["seccompProfile"]:
            yield f"{of}: its pod may run as root or without seccomp; include deeprec.podSecurity"
        if context.get("runAsUser") == 0:
            yield f"{of}: its pod runs as root; take another user"
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{of}: its pod is given a token that it has no use for; set automountServiceAccountToken to false"
        if not spec.get("serviceAccountName"):
            yield f"{of}: its pod runs as the account default; name one of the chart's"
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield f"{of}: {key} is on; leave it out"
    for volume in spec.get("volumes", ()):
        if "hostPath" in volume:
            yield f"{of}: the volume {volume['name']} is of the node; take an emptyDir or a claim"
        if "emptyDir" in volume and not volume["emptyDir"].get("sizeLimit"):
            yield f"{of}: the volume {volume['name']} may fill the node's disk; give it a sizeLimit"
    serves = of.kind not in ("Job", "CronJob", "Pod")
    for container in pod.containers:
        name = f"{of}, container {container['name']}"
        if container.get("securityContext") != RESTRICTED:
            yield f"{name}: not confined as Pod Security's level restricted; include deeprec.containerSecurity"
        resources = container.get("resources", {})
        for kind, amount in product(("requests", "limits"), ("cpu", "memory", "ephemeral-storage")):
            if amount not in resources.get(kind, {}):
                yield f"{name}: no {kind}.{amount}; include deeprec.resources"
        if serves and not {"startupProbe", "readinessProbe", "livenessProbe"} <= set(container):
            yield f"{name}: a probe is missing; include deeprec.probes"
        image = container["image"]
        if ":" not in image.rpartition("/")[2] or image.endswith(":latest"):
            yield f"{name}: the image {image} can be moved; include deeprec.image"
        for variable in container.get("env", ()):
            if "value" in variable and SECRETIVE.search(variable["name"]) and not variable["value"].startswith("/"):
                yield f"{name}: {variable['name']} is a plain value; take it from a Secret"


def _reference_faults(pod: Pod, objects: Sequence[Rendered]) -> Iterator[str]:
    """Secrets and ConfigMaps of others whose keys nobody has documented, and ConfigMaps that are not there."""
    maps = {one.name: set(one.object["data"]) for one in objects if one.kind == "ConfigMap"}
    asked: list[tuple[str, str]] = []
    for container in pod.containers:
        for variable in container.get("env", ()):
            source = variable.get("valueFrom", {}).get("secretKeyRef")
            asked += [(source["name"], source["key"])] if source else []
        mounted = {one["name"] for one in container.get("volumeMounts", ())}
        known = {one["name"] for one in pod.spec.get("volumes", ())}
        for missing in sorted(mounted - known):
            yield f"{pod.of}, container {container['name']}: there is no volume {missing} to mount"
    for volume in pod.spec.get("volumes", ()):
        if "secret" in volume:
            asked += [(volume["secret"]["secretName"], item["key"]) for item in volume["secret"]["items"]]
        if "configMap" in volume and volume["configMap"]["name"] not in maps:
            keys = [item["key"] for item in volume["configMap"].get("items", ())]
            asked += [(volume["configMap"]["name"], key) for key in keys]
            if not keys:
                yield f"{pod.of}: there is no ConfigMap {volume['configMap']['name']}"
    for name, key in asked:
        if key not in DOCUMENTED.get(name, set()):
            yield f"{pod.of}: the key {key} of {name} is in no table of the chart's README; add it"


def _selector_faults(objects: Sequence[Rendered]) -> Iterator[str]:
    """Selectors that select by what changes with a version, or select nothing."""
    labels = [pod.labels for pod in pods(objects)]
    for one in objects:
        spec = one.object.get("spec") or {}
        chosen = {
            "Deployment": spec.get("selector"),
            "PodDisruptionBudget": spec.get("selector"),
            "PodMonitor": spec.get("selector"),
            "NetworkPolicy": spec.get("podSelector"),
            "Service": {"matchLabels": spec.get("selector")},
        }.get(one.kind)
        if chosen is None:
            continue
        wanted = chosen["matchLabels"]
        if not set(wanted) <= {f"app.kubernetes.io/{part}" for part in ("name", "instance", "component")}:
            yield f"{one}: selects by {sorted(wanted)}, of which some change with a version; include deeprec.selector"
        if not any(wanted.items() <= each.items() for each in labels):
            yield f"{one}: selects no pod that the chart makes; correct the component, or leave it out with its pods"


def _account_faults(objects: Sequence[Rendered]) -> Iterator[str]:
    accounts = {one.name: one for one in objects if one.kind == "ServiceAccount"}
    for name, one in accounts.items():
        if one.object.get("automountServiceAccountToken") is not False:
            yield f"{one}: hands its token to every pod; set automountServiceAccountToken to false ({name})"
    for pod in pods(objects):
        named = pod.spec.get("serviceAccountName")
        if named and named not in accounts:
            yield f"{pod.of}: runs as {named}, an account that the chart does not make"


# -------------------------------------------------------------------------------------------------------- combinations

FACTORS: dict[str, tuple[dict[str, Any], ...]] = {
    "images": ({}, {"images": {"registry": "r.example/", "serve": {"digest": f"sha256:{'0' * 64}"}}}),
    "pull": ({}, {"images": {"pullSecrets": ["registry"], "pullPolicy": "Always"}}),
    "policy": ({}, {"policy": {"enabled": True}}, {"policy": {"enabled": True, "strategy": "rolling", "gpus": 2}}),
    "pool": ({}, {"policy": {"pool": {"nodeSelector": {"gpu": "yes"}, "tolerations": [{"operator": "Exists"}]}}}),
    "events": ({}, {"events": {"enabled": False}}, {"events": {"tokenSecret": "events-token"}}),
    "features": ({}, {"features": {"secret": ""}, "events": {"enabled": False}, "migrate": {"enabled": False}}),
    "store": ({}, {"store": {"secret": ""}}, {"store": {"endpoint": "http://s3.example:8333"}}),
    "bootstrap": ({}, {"serving": {"bootstrap": {"enabled": True}, "replicas": 3}}),
    "network": (
        {},
        {"network": {"enabled": False}},
        {
            "network": {
                "callers": [{"namespaceSelector": {"matchLabels": {"a": "b"}}}],
                "monitoring": [{"podSelector": {}}],
                "stores": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
            }
        },
    ),
    "monitoring": (
        {},
        {"monitoring": {"kind": "none"}},
        {"monitoring": {"kind": "podMonitor", "labels": {"release": "prometheus"}}},
    ),
    "rules": ({}, {"monitoring": {"rules": True}}),
    "admin": ({}, {"config": {"serving": {"admin_port": None}}}, {"config": {"serving": {"admin_port": 9100}}}),
    "user": ({}, {"security": {"user": 0}}),
    "placement": ({}, {"placement": {"nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}]}}),
    "launcher": ({}, {"pipeline": {"launcher": {"enabled": True}}}),
    "queue": ({}, {"pipeline": {"queue": {"enabled": True, "clusterQueue": "gpus"}, "accountNamespace": "kubeflow"}}),
    "jobs": (
        {},
        {
            "pipeline": {
                "schedule": {"enabled": True},
                "drift": {"enabled": True},
                "config": "training",
                "host": "http://kfp.example:8888",
            }
        },
    ),
    "log": ({}, {"serving": {"logClaim": "requests"}}),
}


@cache
def combined(count: int = 50) -> tuple[dict[str, Any], ...]:
    """So many values: first those in which every pair of choices of two factors occurs, then drawn ones."""
    names = [*FACTORS]
    draw = random.Random(0)
    pairs = {
        ((a, i), (b, j))
        for a, b in combinations(names, 2)
        for i in range(len(FACTORS[a]))
        for j in range(len(FACTORS[b]))
    }
    rows: list[dict[str, int]] = []
    while pairs or len(rows) < count:
        row: dict[str, int] = dict(min(pairs)) if pairs else {}
        for name in names:
            if name not in row:
                choices = [*range(len(FACTORS[name]))]
                draw.shuffle(choices)
                row[name] = max(choices, key=lambda one: len(pairs & _pairs({**row, name: one}, names)))
        pairs -= _pairs(row, names)
        rows.append(row)
    return tuple(_merged([FACTORS[name][row[name]] for name in names]) for row in rows)


def _pairs(row: Mapping[str, int], names: Sequence[str]) -> set[Any]:
    return set(combinations([(name, row[name]) for name in names if name in row], 2))


def _merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for part in parts:
        _lay_over(tree, part)
    if not tree.get("features", {}).get("secret", "deeprec-features"):
        tree["events"] = {"enabled": False}
    if not tree.get("events", {}).get("enabled", True):
        tree["events"] = {"enabled": False}
    return tree


def _lay_over(tree: dict[str, Any], part: Mapping[str, Any]) -> None:
    for key, value in part.items():
        if isinstance(value, Mapping) and isinstance(tree.get(key), dict):
            _lay_over(tree[key], value)
        else:
            tree[key] = json.loads(json.dumps(value))
