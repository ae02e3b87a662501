"""A canary and what it is to replace, side by side, from one moment on."""

from __future__ import annotations

import time

from deeprec.config import Config
from deeprec.release.cluster import Cluster
from deeprec.release.figures import Comparison, Figures, compare, of_pods, of_prometheus, together


class Sides:
    """Both sides' figures since it was made: of Prometheus where one is named, else of the pods themselves.

    Args:
        name: the InferenceService.
        stable, canary: the label ``app`` of the two predictors' pods.
    """

    def __init__(self, cluster: Cluster, config: Config, name: str, stable: str, canary: str) -> None:
        self.name = name
        self._cluster, self._config = cluster, config
        self._apps = stable, canary
        self._began = time.monotonic()
        self._before = [{} if self._prometheus else of_pods(cluster, app) for app in self._apps]

    @property
    def seconds(self) -> float:
        """Since it was made."""
        return time.monotonic() - self._began

    def compare(self) -> Comparison:
        """What the two have shown so far.

        Raises:
            ReleaseError: figures cannot be read.
        """
        stable, canary = (self._since(place) for place in range(2))
        return compare(stable, canary, self._config.release.ramp)

    @property
    def _prometheus(self) -> str:
        return self._config.release.prometheus

    def _since(self, place: int) -> Figures:
        app = self._apps[place]
        if self._prometheus:
            return of_prometheus(self._prometheus, self._cluster.namespace, app, self.seconds)
        before = self._before[place]
        now = of_pods(self._cluster, app)
        return together(figures.since(before.get(pod, Figures())) for pod, figures in now.items())
