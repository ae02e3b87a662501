"""Figures of what is answered: Prometheus instruments on ``/metrics``, and the last hour for the page.

Labels take few values: a reason is counted as its kind, never as its sentence. Percentiles of the last
hour come from counts of latencies in steps of 5 %, so they are that exact and its memory does not grow.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from deeprec.recommender.observer import AnsweredRequest
from deeprec.types import JsonDict
from deeprec.wire.reason import DESCRIPTIONS, ReasonKind

MINUTES = 60
_STEP = math.log(1.05)
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_MODELS = {"deeprec", "deeprec-trm"}
Key = TypeVar("Key")


@dataclass
class _Minute:
    minute: int
    paths: Tally[str] = field(default_factory=Tally)
    reasons: Tally[str] = field(default_factory=Tally)
    latencies: Tally[int] = field(default_factory=Tally)
    shed: int = 0


class _Read(Collector):
    """A counter that somebody else keeps, read whenever it is asked for; its value never falls."""

    def __init__(
        self, name: str, says: str, labels: Sequence[str], values: Callable[[], Mapping[tuple[str, ...], float]]
    ):
        self._name, self._says, self._labels, self._values = name, says, labels, values

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(self._name, self._says, labels=self._labels)
        for labels, value in self._values().items():
            family.add_metric(labels, value)
        yield family


class ServingMetrics:
    """What a server has answered. Safe to use from several threads.

    Args:
        registry: where the instruments are; one of its own by default.
        clock: seconds since 1970.
    """

    def __init__(self, registry: CollectorRegistry | None = None, clock: Callable[[], float] = time.time) -> None:
        self.registry = registry = registry or CollectorRegistry()
        self._clock = clock
        self._lock = threading.Lock()
        self._minutes: deque[_Minute] = deque(maxlen=MINUTES)
        self._http = Counter(
            "deeprec_http_requests", "HTTP requests, by route and status", ["route", "status"], registry=registry
        )
        self._http_seconds = Histogram(
            "deeprec_http_request_duration_seconds",
            "Time from a request's head to its whole answer",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._answers = Histogram(
            "deeprec_answer_duration_seconds",
            "Time to the whole answer of one of a body's requests, by what gave it and why",
            ["model", "path", "reason"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "deeprec_stage_duration_seconds",
            "Time in one stage of an answer",
            ["stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._explorations = Counter(
            "deeprec_explorations", "Explorations that took a turn, by how they ended", ["end"], registry=registry
        )
        self._events = Counter("deeprec_events", "Events, by what became of them", ["outcome"], registry=registry)
        self._shed = Counter("deeprec_shed", "Bodies refused with 429", registry=registry)
        self._refused = Counter("deeprec_bundles_refused", "Bundles that were not put to use", registry=registry)
        self._bundle = Info("deeprec_bundle", "The bundle that serves", registry=registry)
        self._queues = Gauge("deeprec_queue_depth", "What waits or is being worked at", ["queue"], registry=registry)
        self._states: dict[str, Gauge] = {}
        self._child = cache(_labelled)

    def http(self, route: str, status: int, seconds: float) -> None:
        """Count one HTTP request; ``route`` is a path as it was declared, not as it was asked for."""
        self._child(self._http, route, str(status)).inc()
        self._child(self._http_seconds, route).observe(seconds)

    def observe(self, served: AnsweredRequest) -> None:
        """Count one answer."""
        model = served.model if served.model in _MODELS else "other"
        expected = model == "deeprec-trm" and served.path == "trm"
        reason = "none" if expected or served.reason is None else str(served.reason.kind)
        self._child(self._answers, model, served.path, reason).observe(served.milliseconds / 1000)
        for stage, seconds in served.stages.items():
            self._child(self._stages, stage).observe(seconds)
        if served.turns:
            self._explorations.labels("answered" if served.policy_items else reason).inc()
        with self._lock:
            minute = self._now()
            minute.paths[served.path] += 1
            minute.reasons[reason] += reason != "none"
            minute.latencies[_step(served.milliseconds)] += 1

    def events(self, outcomes: Iterable[str]) -> None:
        """Count events by what became of each: accepted, duplicate or refused."""
        for outcome in outcomes:
            self._events.labels(outcome).inc()

    def shed(self) -> None:
        """Count one body that was refused because too few places were left."""
        self._shed.inc()
        with self._lock:
            self._now().shed += 1

    def serves(self, version: str, serve: str) -> None:
        """Name the bundle that serves from now on."""
        self._bundle.info({"version": version, "serve": serve})

    def refuses(self) -> None:
        """Count one bundle that was not put to use."""
        self._refused.inc()

    def queue(self, name: str, depth: Callable[[], float]) -> None:
        """Name where the depth of a queue is read from, whenever it is asked for."""
        self._queues.labels(name).set_function(depth)

    def state(self, name: str, says: str, holds: Callable[[], bool]) -> None:
        """Show ``deeprec_NAME``: 1 while ``holds()``."""
        self._states[name] = Gauge(f"deeprec_{name}", says, registry=self.registry)
        self._states[name].set_function(holds)

    def count(
        self, name: str, says: str, values: Callable[[], Mapping[tuple[str, ...], float]], labels: Sequence[str] = ()
    ) -> None:
        """Show ``deeprec_NAME_total``, which is kept elsewhere: from values of the labels to how many."""
        self.registry.register(_Read(f"deeprec_{name}", says, labels, values))

    def last_hour(self) -> JsonDict:
        """The last 60 minutes, the current one included: counts by path and by kind of reason, percentiles in ms.

        ``described`` has the kinds in words. ``minutes`` holds those in which something was asked, oldest first, each
        named by its first second (unix).
        """
        with self._lock:
            return self._last_hour()

    def _last_hour(self) -> JsonDict:
        oldest = self._now().minute - 60 * (MINUTES - 1)
        kept = [one for one in self._minutes if one.minute >= oldest]
        latencies: Tally[int] = _sum(one.latencies for one in kept)
        paths: Tally[str] = _sum(one.paths for one in kept)
        reasons: Tally[str] = _sum(one.reasons for one in kept)
        return {
            "minutes": [_shown(one) for one in kept if one.paths or one.shed],
            "paths": dict(paths),
            "reasons": {name: count for name, count in reasons.most_common() if count},
            "described": {name: DESCRIPTIONS[ReasonKind(name)] for name, count in reasons.items() if count},
            **{f"p{share}": _percentile(latencies, share) for share in (50, 95, 99)},
            "requests": paths.total(),
            "shed": sum(one.shed for one in kept),
        }

    def _now(self) -> _Minute:
        minute = int(self._clock() // 60) * 60
        if not self._minutes or self._minutes[-1].minute < minute:
            self._minutes.append(_Minute(minute))
        return self._minutes[-1]


def _labelled(metric: Any, *labels: str) -> Any:
    """The instrument of these labels; to find it takes as long as to count."""
    return metric.labels(*labels)


def _sum(counters: Iterable[Tally[Key]]) -> Tally[Key]:
    total: Tally[Key] = Tally()
    for one in counters:
        total.update(one)
    return total


def _shown(minute: _Minute) -> JsonDict:
    return {
        "minute": minute.minute,
        "requests": minute.paths.total(),
        "paths": dict(minute.paths),
        "p50": _percentile(minute.latencies, 50),
        "p99": _percentile(minute.latencies, 99),
        "shed": minute.shed,
    }


def _step(milliseconds: float) -> int:
    return round(math.log(max(milliseconds, 0.01)) / _STEP)


def _percentile(latencies: Tally[int], share: int) -> float | None:
    """Milliseconds within which ``share`` % were answered; None when there were none."""
    rank = math.ceil(latencies.total() * share / 100)
    seen = 0
    for step in sorted(latencies):
        seen += latencies[step]
        if seen >= rank:
            return round(math.exp(step * _STEP), 2)
    return None
