"""Figures of what is answered: Prometheus instruments on ``/metrics``, and the last hour for the page.

Labels take few values: a reason is counted as its kind, never as its sentence. Percentiles of the last
hour come from counts of latencies in steps of 5 %, so they are that exact and its memory does not grow.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from prometheus_client import CollectorRegistry, Histogram, Info
from prometheus_client import Counter as Counted
from prometheus_client import Gauge as Level

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
    paths: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    latencies: Counter[int] = field(default_factory=Counter)
    shed: int = 0


class Measures:
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
        self._requests = Counted(
            "deeprec_requests", "Answers, by what gave them and why", ["model", "path", "reason"], registry=registry
        )
        self._seconds = Histogram(
            "deeprec_request_seconds",
            "Time to the whole answer",
            ["model", "path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._explorations = Counted(
            "deeprec_explorations", "Explorations that took a turn, by how they ended", ["end"], registry=registry
        )
        self._shed = Counted("deeprec_shed", "Requests refused with 429", registry=registry)
        self._refused = Counted("deeprec_bundles_refused", "Bundles that were not put to use", registry=registry)
        self._bundle = Info("deeprec_bundle", "The bundle that serves", registry=registry)
        self._waiting = Level("deeprec_waiting", "Requests being answered", registry=registry)
        self._policy_down = Level(
            "deeprec_policy_down", "1 when there should be a policy and it cannot be asked", registry=registry
        )
        self._refusing = Level(
            "deeprec_bundle_refused", "1 while what is at the bundle's address is not put to use", registry=registry
        )
        self._restarts = Level("deeprec_policy_restarts", "Times the policy was started again", registry=registry)

    def observe(self, served: AnsweredRequest) -> None:
        """Count one answer."""
        model = served.model if served.model in _MODELS else "other"
        expected = model == "deeprec-trm" and served.path == "trm"
        reason = "none" if expected or served.reason is None else str(served.reason.kind)
        self._requests.labels(model, served.path, reason).inc()
        self._seconds.labels(model, served.path).observe(served.milliseconds / 1000)
        if served.turns:
            self._explorations.labels("answered" if served.policy_items else reason).inc()
        with self._lock:
            minute = self._now()
            minute.paths[served.path] += 1
            minute.reasons[reason] += reason != "none"
            minute.latencies[_step(served.milliseconds)] += 1

    def shed(self) -> None:
        """Count one request that was refused because every place was taken."""
        self._shed.inc()
        with self._lock:
            self._now().shed += 1

    def serves(self, version: str, serve: str) -> None:
        """Name the bundle that serves from now on."""
        self._bundle.info({"version": version, "serve": serve})

    def refuses(self) -> None:
        """Count one bundle that was not put to use."""
        self._refused.inc()

    def watch(
        self,
        *,
        waiting: Callable[[], int],
        refusing: Callable[[], bool],
        policy_down: Callable[[], bool],
        restarts: Callable[[], int],
    ) -> None:
        """Name where the levels are read from, whenever they are asked for."""
        self._waiting.set_function(waiting)
        self._refusing.set_function(refusing)
        self._policy_down.set_function(policy_down)
        self._restarts.set_function(restarts)

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
        latencies: Counter[int] = _sum(one.latencies for one in kept)
        paths: Counter[str] = _sum(one.paths for one in kept)
        reasons: Counter[str] = _sum(one.reasons for one in kept)
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


def _sum(counters: Iterable[Counter[Key]]) -> Counter[Key]:
    total: Counter[Key] = Counter()
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


def _percentile(latencies: Counter[int], share: int) -> float | None:
    """Milliseconds within which ``share`` % were answered; None when there were none."""
    rank = math.ceil(latencies.total() * share / 100)
    seen = 0
    for step in sorted(latencies):
        seen += latencies[step]
        if seen >= rank:
            return round(math.exp(step * _STEP), 2)
    return None
