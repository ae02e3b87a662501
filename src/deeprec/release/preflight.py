"""What a release needs of a cluster, looked at before anything is changed; all that is missing is said at once."""

from __future__ import annotations

from collections.abc import Callable

from deeprec.config import ReleaseConfig
from deeprec.errors import ReleaseError
from deeprec.release import service as spec
from deeprec.release.cluster import CRD, RUNTIMES, SERVICES, Cluster, ForbiddenError

RIGHTS = (
    *((verb, SERVICES, "serving.kserve.io") for verb in ("get", "list", "watch", "create", "patch", "delete")),
    ("get", RUNTIMES, "serving.kserve.io"),
    ("list", "pods", ""),
)
"""What the account of a release has to be allowed; (verb, resource, group)."""
ONE_POD = ("pods", "count/pods")


def preflight(settings: ReleaseConfig, cluster: Cluster, say: Callable[[str], None]) -> None:
    """
    Raises:
        ReleaseError: naming everything that is missing.
    """
    missing = [
        *_definition(cluster, say),
        *_rights(cluster),
        *_runtimes(settings, cluster),
        *_quota(cluster),
        *_gateway(settings, cluster),
    ]
    if missing:
        raise ReleaseError(f"the cluster is not ready for a release: {'; '.join(missing)}")
    say(f"preflight: the namespace {cluster.namespace} has all that a release needs")


def _definition(cluster: Cluster, say: Callable[[str], None]) -> list[str]:
    try:
        found = cluster.definition()
    except ForbiddenError:  # definitions are the cluster's, which a namespace's Role gives no right to
        say(f"preflight: whether {CRD} knows spec.canary cannot be looked at by this account")
        return []
    if found is None:
        return ["KServe is not installed (no definition of InferenceServices); install KServe 0.21 or later"]
    for version in found["spec"]["versions"]:
        properties = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
        if version["served"] and "canary" in properties:
            return []
    return ["this KServe has no spec.canary, by which two versions serve side by side; install 0.21 or later"]


def _rights(cluster: Cluster) -> list[str]:
    wanted = list(RIGHTS)
    if not cluster.inside:
        wanted += [("get", "pods/proxy", ""), ("get", "services/proxy", ""), ("create", "services/proxy", "")]
    denied = [f"{verb} {resource}" for verb, resource, group in wanted if not cluster.may(verb, resource, group)]
    if not denied:
        return []
    return [f"this account may not {', '.join(denied)}; bind it to the chart's Role (pipeline.account of the chart)"]


def _runtimes(settings: ReleaseConfig, cluster: Cluster) -> list[str]:
    missing = [name for name in spec.runtimes(settings) if cluster.get(name, RUNTIMES, "v1alpha1") is None]
    cure = "install the chart of this version, or name another with release.runtime"
    return [f"there is no ServingRuntime {name}; {cure}" for name in missing]


def _quota(cluster: Cluster) -> list[str]:
    return [
        f"the quota of {name} is used up ({used} of {hard}), and one pod more is needed; raise it, or set "
        f"release.strategy to replace"
        for name, (used, hard) in cluster.quotas().items()
        if name in ONE_POD and used.isdecimal() and hard.isdecimal() and int(used) >= int(hard)
    ]


def _gateway(settings: ReleaseConfig, cluster: Cluster) -> list[str]:
    """Weights need the Gateway API: where it does not route, an InferenceService has no address."""
    found = cluster.get(settings.name)
    conditions = {one["type"]: one for one in (found or {}).get("status", {}).get("conditions", ())}
    ingress = conditions.get("IngressReady")
    if ingress is None or ingress["status"] == "True":
        return []
    told = ingress.get("message") or "IngressReady is False"
    return [f"the gateway does not route to {settings.name} ({told}); see `kubectl describe httproute`"]
