"""Figures of the last hour and Prometheus' instruments, from answers made up here."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from deeprec.recommender.observer import AnsweredRequest
from deeprec.serving.metrics import ServingMetrics
from deeprec.wire.reason import DESCRIPTIONS, Reason, ReasonKind

ANSWERS = "deeprec_answer_duration_seconds_count"
NOON = 1_700_000_040
"""The first second of a minute."""


class Clock:
    now = float(NOON)

    def __call__(self) -> float:
        return self.now


UNKNOWN = Reason(kind=ReasonKind.UNKNOWN_USER, sentence="the user is unknown")


def late(number: int) -> Reason:
    return Reason(kind=ReasonKind.LATE, sentence=f"the policy did not finish within {number} ms")


def served(path: str = "trm", reason: Reason | None = UNKNOWN, ms: float = 10.0, **fields: object) -> AnsweredRequest:
    values: dict[str, object] = {
        "model": "deeprec",
        "user_id": "1",
        "path": path,
        "reason": reason,
        "items": ("a",),
        "trm_items": (),
        "policy_items": (),
        "milliseconds": ms,
        "turns": (),
        "deadline_ms": 1000,
        "k": 1,
        "version": "v",
        "at": 0.0,
    }
    return AnsweredRequest(**{**values, **fields})  # type: ignore[arg-type]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(clock: Clock, registry: CollectorRegistry) -> ServingMetrics:
    return ServingMetrics(registry, clock)


def test_an_hour_without_requests_has_no_percentiles(metrics: ServingMetrics) -> None:
    hour = metrics.last_hour()
    assert hour == {
        "minutes": [],
        "paths": {},
        "reasons": {},
        "described": {},
        "p50": None,
        "p95": None,
        "p99": None,
        "requests": 0,
        "shed": 0,
    }


def test_an_hour_is_summed_by_minute_path_and_reason(metrics: ServingMetrics, clock: Clock) -> None:
    for ms in range(1, 101):
        metrics.observe(served(ms=float(ms)))
    clock.now += 60
    metrics.observe(served("policy", None, 1000.0))
    metrics.shed()
    hour = metrics.last_hour()
    assert [minute["minute"] for minute in hour["minutes"]] == [NOON, NOON + 60]
    assert [minute["requests"] for minute in hour["minutes"]] == [100, 1]
    assert hour["paths"] == {"trm": 100, "policy": 1}
    assert hour["reasons"] == {"unknown_user": 100}
    assert (hour["requests"], hour["shed"]) == (101, 1)
    assert hour["minutes"][0]["p50"] == pytest.approx(50, rel=0.03)
    assert hour["minutes"][0]["p99"] == pytest.approx(99, rel=0.03)
    assert hour["minutes"][1]["p50"] == pytest.approx(1000, rel=0.03)
    assert hour["p50"] == pytest.approx(51, rel=0.03)
    assert hour["p95"] == pytest.approx(96, rel=0.03)
    assert hour["p99"] == pytest.approx(100, rel=0.03)


def test_what_is_older_than_an_hour_is_forgotten(metrics: ServingMetrics, clock: Clock) -> None:
    metrics.observe(served())
    clock.now += 59 * 60
    metrics.observe(served())
    assert metrics.last_hour()["requests"] == 2
    clock.now += 60
    assert metrics.last_hour()["requests"] == 1
    clock.now += 24 * 3600
    assert metrics.last_hour()["minutes"] == []


def test_memory_does_not_grow_with_requests(metrics: ServingMetrics, clock: Clock) -> None:
    for number in range(20_000):
        clock.now += 1
        metrics.observe(served(ms=0.01 * 1.001 ** (number % 20_000)))
    assert len(metrics._minutes) <= 60
    assert sum(len(minute.latencies) for minute in metrics._minutes) <= 60 * 60


def test_labels_take_few_values(metrics: ServingMetrics, registry: CollectorRegistry) -> None:
    for number in range(300):
        metrics.observe(served(model=f"m{number}", reason=late(number)))
        metrics.observe(served(reason=late(number)))
        metrics.serves(f"version-{number}", "trm")
    text = generate_latest(registry).decode()
    assert len([line for line in text.splitlines() if line.startswith(f"{ANSWERS}{{")]) == 2
    assert f'{ANSWERS}{{model="other",path="trm",reason="late"}} 300.0' in text
    assert f'{ANSWERS}{{model="deeprec",path="trm",reason="late"}} 300.0' in text
    assert text.count("deeprec_bundle_info{") == 1
    assert 'version="version-299"' in text


def test_explorations_are_counted_by_their_end(metrics: ServingMetrics, registry: CollectorRegistry) -> None:
    metrics.observe(served("policy", None, turns=(1.0, 2.0), policy_items=("a",)))
    metrics.observe(served(reason=late(5), turns=(1.0,)))
    metrics.observe(served(reason=Reason(kind=ReasonKind.BUSY, sentence="the policy is busy")))
    found = {
        sample.labels["end"]: sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "deeprec_explorations_total"
    }
    assert found == {"answered": 1.0, "late": 1.0}


def test_levels_are_read_when_asked_for(metrics: ServingMetrics, registry: CollectorRegistry) -> None:
    kept = {"waiting": 1, "written": 0}
    metrics.queue("requests", lambda: kept["waiting"])
    metrics.state("policy_down", "1 when it is down", lambda: True)
    metrics.count("policy_restarts", "Restarts", lambda: {(): 7})
    metrics.count("log_rows", "Rows", lambda: {("written",): kept["written"], ("dropped",): 1}, ["outcome"])
    kept |= {"waiting": 5, "written": 3}
    assert registry.get_sample_value("deeprec_queue_depth", {"queue": "requests"}) == 5
    assert registry.get_sample_value("deeprec_policy_down") == 1
    assert registry.get_sample_value("deeprec_policy_restarts_total") == 7
    assert registry.get_sample_value("deeprec_log_rows_total", {"outcome": "written"}) == 3
    metrics.refuses()
    assert registry.get_sample_value("deeprec_bundles_refused_total") == 1
    assert registry.get_sample_value("deeprec_shed_total") == 0


@pytest.mark.parametrize("kind", ReasonKind)
def test_a_reason_is_counted_as_its_kind_whatever_its_sentence_says(
    metrics: ServingMetrics, registry: CollectorRegistry, kind: ReasonKind
) -> None:
    reason = Reason(kind=kind, sentence="the gate failed because the busy policy did not finish within 5 ms; shadow")
    metrics.observe(served(reason=reason))
    labels = {"model": "deeprec", "path": "trm", "reason": kind.value}
    assert registry.get_sample_value(ANSWERS, labels) == 1
    assert metrics.last_hour()["reasons"] == {kind.value: 1}
    assert metrics.last_hour()["described"] == {kind.value: DESCRIPTIONS[kind]}
