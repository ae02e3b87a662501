"""``--print-pod``: what a pod that runs a server has to say of its ports, its probes and its end."""

from __future__ import annotations

import math

import yaml

from deeprec.config import ServingConfig
from deeprec.types import JsonDict

PROBE_SECONDS = 5
START_SECONDS = 1800
"""For a large bundle to be fetched and loaded, before the process is started again."""


def pod(serving: ServingConfig) -> str:
    """The part of a pod's specification, as YAML."""
    from deeprec.serving.http.life import CLOSE_SECONDS

    ports = [{"name": "http", "containerPort": serving.port}]
    if serving.admin_port is not None:
        ports.append({"name": "admin", "containerPort": serving.admin_port})
    container = {
        "ports": ports,
        "startupProbe": _probe("started", failures=START_SECONDS // PROBE_SECONDS),
        "readinessProbe": _probe("ready", failures=1),
        "livenessProbe": _probe("live", failures=3),
    }
    grace = math.ceil(serving.drain_seconds + serving.answer_seconds + CLOSE_SECONDS)
    return yaml.safe_dump({"terminationGracePeriodSeconds": grace, "containers": [container]}, sort_keys=False)


def _probe(name: str, failures: int) -> JsonDict:
    path = {"path": f"/v2/health/{name}", "port": "http"}
    return {"httpGet": path, "periodSeconds": PROBE_SECONDS, "timeoutSeconds": 5, "failureThreshold": failures}
