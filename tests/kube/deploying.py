"""A release in a process of its own, for tests that kill it: forked from one that has imported what a release needs."""

from __future__ import annotations

import os

import kubernetes.client
import kubernetes.watch

from deeprec.bundle.shelf import Shelf
from deeprec.config import Config
from deeprec.release import preflight as preflight
from deeprec.release.cluster import Cluster
from deeprec.release.protocol import begin

IMPORTED = (kubernetes.client, kubernetes.watch)


def deploy(config: Config, kubeconfig: str, version: str, last: int | None = None) -> None:
    """Deploy a version; end, as a killed process does, when the line of progress with number ``last`` is said."""
    os.environ["KUBECONFIG"] = kubeconfig
    said = 0

    def say(line: str) -> None:
        nonlocal said
        if said == last:
            os._exit(137)
        said += 1

    begin(config, Cluster(config.release.namespace), Shelf(config.bundle.uri), version, say).deploy()
