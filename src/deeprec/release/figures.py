"""What the two sides of a canary show beside each other, and whether that is good enough.

Counters are those that servers give to Prometheus (``docs/reference/metrics.md``): read from Prometheus where there is
one, else from each pod, at the beginning and the end of a step. A verdict is ``pass``, ``fail`` or ``inconclusive``:
with few requests nothing is said.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx

from deeprec.config import RampConfig
from deeprec.errors import ReleaseError
from deeprec.release.asking import ask
from deeprec.release.cluster import Cluster
from deeprec.types import JsonDict

Verdict = Literal["pass", "fail", "inconclusive"]
ADMIN_PORT = 8081
_SECONDS = 15.0
_Z = 1.96
_HTTP, _ANSWERS = "deeprec_http_requests_total", "deeprec_answer_duration_seconds"
_FAMILIES = re.compile(rf"^(# \w+ )?({_HTTP.removesuffix('_total')}|{_ANSWERS})")


@dataclass(frozen=True)
class Figures:
    """What one side did in some time.

    ``requests`` are HTTP requests for answers, ``failed`` those of them that ended with 5xx; ``answers`` counts by
    path; ``buckets`` answers by the upper bound of their seconds, not cumulated; ``fallback`` answers that something
    else gave in place of what the bundle serves, unknown users apart.
    """

    requests: float = 0.0
    failed: float = 0.0
    answers: Mapping[str, float] = field(default_factory=dict)
    fallback: float = 0.0
    buckets: Mapping[float, float] = field(default_factory=dict)

    @property
    def answered(self) -> float:
        """All answers."""
        return sum(self.answers.values())

    @property
    def p99(self) -> float | None:
        """The 99th percentile in milliseconds, within a bucket on a straight line; None without answers."""
        total, seen, below = sum(self.buckets.values()), 0.0, 0.0
        for bound in sorted(self.buckets):
            count = self.buckets[bound]
            if count and seen + count >= 0.99 * total:
                if math.isinf(bound):
                    return below * 1000
                return (below + (bound - below) * (0.99 * total - seen) / count) * 1000
            seen, below = seen + count, bound
        return None

    def since(self, before: Figures) -> Figures:
        """What came after ``before``; a pod that was started again meanwhile counts from nothing."""
        if self.answered < before.answered or self.requests < before.requests:
            return self
        return Figures(
            self.requests - before.requests,
            self.failed - before.failed,
            _less(self.answers, before.answers),
            self.fallback - before.fallback,
            _less(self.buckets, before.buckets),
        )

    def to_json(self) -> JsonDict:
        """For a record."""
        share = self.answers.get("policy", 0.0) / self.answered if self.answered else None
        return {
            "requests": round(self.requests),
            "failed": round(self.failed),
            "answers": round(self.answered),
            "by the policy": None if share is None else round(share, 4),
            "fallback": round(self.fallback),
            "p99 ms": None if self.p99 is None else round(self.p99, 1),
        }


@dataclass(frozen=True)
class Comparison:
    """What a step came to, in a sentence."""

    verdict: Verdict
    sentence: str
    figures: JsonDict


def compare(stable: Figures, canary: Figures, ramp: RampConfig) -> Comparison:
    """The canary's figures beside the stable one's: 5xx, 99th percentile, and what was answered in the policy's place.

    A share fails where it is larger by more than what is allowed and the 95 % interval of the difference (of two
    independent shares) leaves out 0.
    """
    told = {"stable": stable.to_json(), "canary": canary.to_json()}
    few = min(stable.answered, canary.answered)
    if canary.failed and canary.requests < ramp.min_requests and canary.failed / canary.requests > 0.5:
        return Comparison("fail", f"{canary.failed:.0f} of {canary.requests:.0f} requests ended with 5xx", told)
    if few < ramp.min_requests:
        sentence = f"{canary.answered:.0f} answers, {stable.answered:.0f} of the stable one; {ramp.min_requests} needed"
        return Comparison("inconclusive", sentence, told)
    shares = (
        ("5xx", ramp.max_error_share, (canary.failed, canary.requests), (stable.failed, stable.requests)),
        (
            "answers by something else than what the bundle serves",
            ramp.max_fallback_share,
            (canary.fallback, canary.answered),
            (stable.fallback, stable.answered),
        ),
    )
    for name, allowed, one, other in shares:
        difference, low = _difference(one, other)
        if difference > allowed and low > 0:
            return Comparison("fail", f"{name}: {_share(one)}, the stable one {_share(other)}", told)
    mine, other_p99 = canary.p99, stable.p99
    if mine is not None and other_p99 and mine > ramp.max_p99_ratio * other_p99:
        sentence = f"p99 {mine:.0f} ms, the stable one {other_p99:.0f} ms: more than {ramp.max_p99_ratio:g} times"
        return Comparison("fail", sentence, told)
    return Comparison("pass", f"{canary.answered:.0f} answers, as good as the stable one's", told)


def of_pods(cluster: Cluster, app: str) -> dict[str, Figures]:
    """The figures of each ready pod of a predictor since it was started, asked at its admin port.

    Raises:
        ReleaseError: a pod does not answer.
    """
    with httpx.Client(headers=cluster.headers, verify=cluster.verify, timeout=_SECONDS) as client:
        return {pod: read_metrics(_asked(client, cluster, pod, place)) for pod, place in cluster.pods(app).items()}


def read_metrics(text: str) -> Figures:
    """The figures in a page of metrics, in Prometheus' text format."""
    from prometheus_client.parser import text_string_to_metric_families

    wanted = "\n".join(line for line in text.splitlines() if _FAMILIES.search(line)) + "\n"
    samples = [sample for family in text_string_to_metric_families(wanted) for sample in family.samples]
    return _counted((sample.name, sample.labels, sample.value) for sample in samples)


def of_prometheus(address: str, namespace: str, app: str, seconds: float) -> Figures:
    """The figures of a predictor's pods of the last ``seconds``, by Prometheus.

    Raises:
        ReleaseError: it cannot be asked.
    """
    pods = f'namespace="{namespace}", pod=~"{app.removeprefix("isvc.")}-.*"'
    found: list[tuple[str, Mapping[str, str], float]] = []
    with httpx.Client(timeout=_SECONDS) as client:
        for name in (_HTTP, f"{_ANSWERS}_count", f"{_ANSWERS}_bucket"):
            labels = "le" if name.endswith("bucket") else "route, status" if name == _HTTP else "path, reason, model"
            query = f"sum by ({labels}) (increase({name}{{{pods}}}[{max(1, round(seconds))}s]))"
            try:
                url = f"{address.rstrip('/')}/api/v1/query"
                request = client.build_request("GET", url, params={"query": query})
                answer = ask(client, f"Prometheus at {address}", request).json()
                found += [(name, one["metric"], float(one["value"][1])) for one in answer["data"]["result"]]
            except (ReleaseError, ValueError, KeyError) as error:
                cure = "correct release.prometheus, or leave it empty to ask the pods"
                raise ReleaseError(f"{error}; {cure}") from error
    return _counted(found)


def together(figures: Iterable[Figures]) -> Figures:
    """The sum of several pods' figures."""
    whole = Figures()
    for one in figures:
        whole = Figures(
            whole.requests + one.requests,
            whole.failed + one.failed,
            _sum(whole.answers, one.answers),
            whole.fallback + one.fallback,
            _sum(whole.buckets, one.buckets),
        )
    return whole


def _counted(samples: Iterable[tuple[str, Mapping[str, str], float]]) -> Figures:
    requests = failed = fallback = 0.0
    answers: defaultdict[str, float] = defaultdict(float)
    cumulated: defaultdict[float, float] = defaultdict(float)
    for name, labels, value in samples:
        if name == _HTTP and _is_asked(labels.get("route", "")):
            requests += value
            failed += value if labels.get("status", "").startswith("5") else 0
        elif name == f"{_ANSWERS}_count":
            answers[labels.get("path", "")] += value
            fallback += value if labels.get("reason") not in ("none", "unknown_user", "no_history", "bundle") else 0
        elif name == f"{_ANSWERS}_bucket":
            cumulated[float(labels["le"])] += value
    buckets, before = {}, 0.0
    for bound in sorted(cumulated):
        buckets[bound], before = cumulated[bound] - before, cumulated[bound]
    return Figures(requests, failed, answers, fallback, buckets)


def _is_asked(route: str) -> bool:
    return route.endswith((":predict", "/infer"))


def _asked(client: httpx.Client, cluster: Cluster, pod: str, inside: str) -> str:
    base = cluster.address("pods", pod, ADMIN_PORT, inside)
    try:
        return ask(client, f"pod {pod}", client.build_request("GET", f"{base}/metrics")).text
    except ReleaseError as error:
        raise ReleaseError(
            f"the metrics of {error}; see that its admin port is {ADMIN_PORT} and can be reached from here, or name "
            f"release.prometheus"
        ) from error


def _difference(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """The difference of two shares, and the lower end of its 95 % interval."""
    (a, n), (b, m) = one, other
    if not n or not m:
        return 0.0, 0.0
    p, q = a / n, b / m
    error = math.sqrt(max(p * (1 - p), 1 / n) / n + max(q * (1 - q), 0.0) / m)
    return p - q, p - q - _Z * error


def _share(counts: tuple[float, float]) -> str:
    return f"{counts[0] / counts[1]:.1%}" if counts[1] else "none"


def _less(now: Mapping[Any, float], before: Mapping[Any, float]) -> dict[Any, float]:
    return {name: value - before.get(name, 0.0) for name, value in now.items()}


def _sum(one: Mapping[Any, float], other: Mapping[Any, float]) -> dict[Any, float]:
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in (*one, *other)}
